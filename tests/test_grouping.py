"""When siblings fork if that is decided from rollout to rollout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.buffers import HybridRolloutBuffer
from sb3_hybrid_grpo.grouping import FORK_ABOVE, FREE_BELOW, PROBE_INTERVAL, AutoGrouping
from tests.toy_envs import NoisyWalk


class Decisions(BaseCallback):
    """Writes down which rollouts were grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.forks: list[bool] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.forks.append(self.model.rollout_buffer.forks)  # type: ignore[attr-defined]


def model(**kwargs: Any) -> HybridGRPO:
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=3)
    arguments = {"n_steps": 16, "n_epochs": 1, "n_samples": 3, "batch_size": 48, "seed": 3, "branch_horizon": "auto"}
    return HybridGRPO("MlpPolicy", env, **{**arguments, **kwargs})


def decisions(auto: AutoGrouping, signals: list[float]) -> list[bool]:
    made = []
    for signal in signals:
        made.append(auto.forks)
        auto.observe(signal if auto.forks else None)
    return made


def test_where_no_noise_was_seen_no_rollout_is_grouped() -> None:
    assert not any(decisions(AutoGrouping(), [0.9] * 30))


def test_groups_that_pay_stay() -> None:
    assert all(decisions(AutoGrouping(noise_seen=True), [0.8] * 30))


def test_groups_that_do_not_pay_are_given_a_chance_and_then_probed_now_and_then() -> None:
    made = decisions(AutoGrouping(noise_seen=True), [0.1] * (4 * PROBE_INTERVAL + 10))
    at_first = made.index(False)
    assert 2 <= at_first <= 6
    probes = np.flatnonzero(made)[at_first:] - at_first
    assert probes.tolist() == [PROBE_INTERVAL, 2 * PROBE_INTERVAL + 1, 3 * PROBE_INTERVAL + 2, 4 * PROBE_INTERVAL + 3]


def test_a_bad_start_alone_does_not_end_groups_that_pay() -> None:
    assert all(decisions(AutoGrouping(noise_seen=True), [0.0, 0.1] + [0.6] * 20))


def test_groups_come_back_when_they_pay_again() -> None:
    auto = AutoGrouping(noise_seen=True)
    decisions(auto, [0.1] * 20)
    assert not auto.grouped
    made = decisions(auto, [0.9] * 100)
    assert auto.grouped
    assert all(made[-10:])


def test_a_signal_within_the_band_changes_nothing() -> None:
    between = (FORK_ABOVE + FREE_BELOW) / 2
    assert all(decisions(AutoGrouping(noise_seen=True), [between] * 30))
    free = AutoGrouping(noise_seen=True, grouped=False, variance_removed=0.0)
    decisions(free, [between] * 300)
    assert not free.grouped


def test_a_single_odd_rollout_changes_nothing() -> None:
    assert all(decisions(AutoGrouping(noise_seen=True), [0.8] * 5 + [0.1] + [0.8] * 5))


def test_where_groups_pay_auto_is_a_fixed_horizon() -> None:
    auto = model()
    auto.auto_grouping = AutoGrouping(noise_seen=True, variance_removed=1e9)
    auto.learn(3 * 32)
    fixed = model(branch_horizon=64).learn(3 * 32)
    for mine, other in zip(auto.policy.parameters(), fixed.policy.parameters(), strict=True):
        assert th.equal(mine, other)


def test_free_rollouts_have_no_group_baseline_and_no_forks() -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=-1e9)
    seen = Decisions()
    one.learn(2 * 32, callback=seen)
    assert seen.forks == [False, False]
    buffer = one.rollout_buffer
    assert not buffer.cut.any()  # type: ignore[attr-defined]
    assert np.array_equal(buffer.returns, buffer.values + buffer.advantages)
    states = buffer.observations.reshape(16, 3, 2, -1)
    assert not np.isclose(states[:, 0], states[:, 1]).all(axis=-1).any()  # siblings live lives of their own


def test_siblings_are_let_go_and_called_back() -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=0.0, since_probe=PROBE_INTERVAL - 1)
    seen = Decisions()
    one.learn(3 * 32, callback=seen)
    assert seen.forks == [False, True, False]
    assert one.num_simulator_steps == 3 * one.num_timesteps


def test_free_siblings_go_on_after_a_probe_where_they_were() -> None:
    """Pendulum's episodes have 200 steps, ten rollouts; probes, every fifth of them, must not keep siblings at the start."""
    one = model(n_steps=20, batch_size=120)
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=-1e9)
    before = None
    for rollout in range(PROBE_INTERVAL + 2):
        one.learn(40, reset_num_timesteps=rollout == 0)
        buffer = one.rollout_buffer
        assert isinstance(buffer, HybridRolloutBuffer)
        assert buffer.forks == (rollout == PROBE_INTERVAL)
        siblings = buffer.observations.reshape(20, 3, 2, 3)[:, 1:]
        if not buffer.forks:
            if before is not None:  # a step turns the pendulum by 0.05 s of at most 8 rad/s
                assert np.abs(siblings[0, ..., :2] - before[..., :2]).max() < 0.41
            before = siblings[-1]


def test_what_interrupts_a_letting_go_leaves_no_sibling_on_member_0s_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, variance_removed=1e9)
    one.learn(64)
    one.auto_grouping.grouped = False

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(one._groups), "_reset_siblings", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.learn(32, reset_num_timesteps=False)
    one.learn(32, reset_num_timesteps=False)
    assert not one.rollout_buffer.forks  # type: ignore[attr-defined]
    states = one.rollout_buffer.observations.reshape(16, 3, 2, -1)
    assert not np.isclose(states[:, 0], states[:, 1]).all(axis=-1).any()


def test_the_same_seed_gives_the_same_training() -> None:
    runs = []
    for _ in range(2):
        one = model()
        one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=0.0, since_probe=PROBE_INTERVAL - 1)
        runs.append(one.learn(3 * 32).policy.state_dict())
    assert all(th.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_what_was_learned_is_saved_and_goes_on(tmp_path: Path) -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=-1e9, since_probe=3)
    one.save(tmp_path / "model")
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=3)
    loaded = HybridGRPO.load(tmp_path / "model", env=env)
    assert loaded.auto_grouping == one.auto_grouping
    seen = Decisions()
    loaded.learn(32, callback=seen, reset_num_timesteps=False)
    assert seen.forks == [False]
    assert loaded.auto_grouping.since_probe == 4


def test_another_env_is_asked_anew_whether_it_is_noisy() -> None:
    class Calm(NoisyWalk):
        def step(self, action: Any) -> Any:
            self.place = self.place + 0.05 * np.asarray(action)
            return self._observe(), 0.0, False, False, {}

    one = HybridGRPO("MlpPolicy", NoisyWalk(), n_steps=16, batch_size=32, n_epochs=1).learn(2 * 16)
    assert one.auto_grouping.noise_seen
    one.set_env(one.get_env())  # type: ignore[arg-type]
    assert one.auto_grouping.noise_seen
    one.set_env(Calm())
    seen = Decisions()
    one.learn(3 * 16, callback=seen)
    assert seen.forks == [False] * 3 and not one.auto_grouping.noise_seen


def test_a_model_loaded_without_an_env_remembers_its_own(tmp_path: Path) -> None:
    model().learn(2 * 32).save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model")
    loaded.auto_grouping = AutoGrouping(noise_seen=True)
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=2, seed=3))
    assert loaded.auto_grouping.noise_seen


def test_whether_a_rollout_was_grouped_is_logged() -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=0.0)
    one.learn(32)
    logged: dict[str, Any] = {}
    one.logger.record = lambda key, value, *_, **__: logged.update({key: value})  # type: ignore[method-assign]
    one.dump_logs()
    one.train()
    assert logged["train/grouped"] == 0
    assert "train/group_beta" not in logged


@pytest.mark.parametrize("more", [{"group_baseline": 0.5}, {"advantage_estimator": "grpo"}, {"advantage_estimator": "paper"}])
def test_what_auto_cannot_decide_about_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="branch_horizon"):
        model(**more)


def test_with_one_member_auto_is_ppo() -> None:
    auto = model(n_samples=1, batch_size=32).learn(2 * 32)
    plain = model(n_samples=1, batch_size=32, branch_horizon=64).learn(2 * 32)
    for mine, other in zip(auto.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(mine, other)
