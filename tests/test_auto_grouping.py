"""When siblings fork if that is decided from rollout to rollout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.auto_grouping import GROUPED_ABOVE, PROBE_INTERVAL, SINGLE_BELOW, AutoGrouping
from tests.toy_envs import NoisyWalk


class Decisions(BaseCallback):
    """Writes down which rollouts were grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped: list[bool] = []
        self.observations: list[np.ndarray] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.observations.append(self.model.rollout_buffer.observations.copy())  # type: ignore[attr-defined]
        self.grouped.append(self.model.rollout_buffer.n_samples > 1)  # type: ignore[attr-defined]


def model(**kwargs: Any) -> HybridGRPO:
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=3)
    arguments = {"n_steps": 48, "n_epochs": 1, "n_samples": 3, "batch_size": 48, "seed": 3, "branch_horizon": "auto"}
    return HybridGRPO("MlpPolicy", env, **{**arguments, **kwargs})


def decisions(auto: AutoGrouping, signals: list[float]) -> list[bool]:
    made = []
    for signal in signals:
        made.append(auto.next_is_grouped)
        auto.observe(signal if made[-1] else None)
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
    between = (GROUPED_ABOVE + SINGLE_BELOW) / 2
    assert all(decisions(AutoGrouping(noise_seen=True), [between] * 30))
    single = AutoGrouping(noise_seen=True, grouped=False, variance_removed=0.0)
    decisions(single, [between] * 300)
    assert not single.grouped


def test_a_single_odd_rollout_changes_nothing() -> None:
    assert all(decisions(AutoGrouping(noise_seen=True), [0.8] * 5 + [0.1] + [0.8] * 5))


def test_what_was_learned_is_saved_and_goes_on(tmp_path: Path) -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=-1e9, since_probe=3)
    one.save(tmp_path / "model")
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=3)
    loaded = HybridGRPO.load(tmp_path / "model", env=env)
    assert loaded.auto_grouping == one.auto_grouping
    seen = Decisions()
    loaded.learn(96, callback=seen, reset_num_timesteps=False)
    assert seen.grouped == [False]
    assert loaded.auto_grouping.since_probe == 4


def test_another_env_is_asked_anew_whether_it_is_noisy() -> None:
    class Calm(NoisyWalk):
        def step(self, action: Any) -> Any:
            self.place = self.place + 0.05 * np.asarray(action)
            return self._observe(), 0.0, False, False, {}

    one = HybridGRPO("MlpPolicy", NoisyWalk(), n_steps=64, batch_size=32, n_epochs=1).learn(2 * 64)
    assert one.auto_grouping.noise_seen
    one.set_env(one.get_env())  # type: ignore[arg-type]
    assert one.auto_grouping.noise_seen
    one.set_env(Calm())
    seen = Decisions()
    one.learn(3 * 64, callback=seen)
    assert seen.grouped == [False] * 3 and not one.auto_grouping.noise_seen


def test_a_model_loaded_without_an_env_remembers_its_own(tmp_path: Path) -> None:
    model().learn(2 * 96).save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model")
    loaded.auto_grouping = AutoGrouping(noise_seen=True)
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=2, seed=3))
    assert loaded.auto_grouping.noise_seen


def test_whether_a_rollout_was_grouped_is_logged() -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=0.0)
    one.learn(96)
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


def test_where_groups_pay_auto_is_a_fixed_horizon() -> None:
    auto = model()
    auto.auto_grouping = AutoGrouping(noise_seen=True, variance_removed=1e9)
    auto.learn(3 * 96)
    fixed = model(branch_horizon=64).learn(3 * 96)
    for mine, other in zip(auto.policy.parameters(), fixed.policy.parameters(), strict=True):
        assert th.equal(mine, other)


def test_siblings_are_not_stepped_in_single_rollouts_and_fork_for_a_probe() -> None:
    one = model()
    one.auto_grouping = AutoGrouping(noise_seen=True, grouped=False, variance_removed=-1e9, since_probe=PROBE_INTERVAL - 1)
    seen = Decisions()
    one.learn(96, callback=seen)
    assert one.num_executed_steps == one.num_timesteps == 96
    one.learn(96, callback=seen, reset_num_timesteps=False)
    single, observations = seen.observations
    assert single.shape[:2] == (48, 2) and observations.shape[:2] == (16, 6)
    np.testing.assert_array_equal(observations[0, :2], observations[0, 2:4])  # all act from where member 0 is
    assert not np.isclose(observations[-1, :2], observations[-1, 2:4]).all()
    one.learn(96, callback=seen, reset_num_timesteps=False)
    assert seen.grouped == [False, True, False]
    assert (one.num_timesteps, one.num_executed_steps) == (3 * 96, 96 + 32 + 96)
