"""``branch_horizon="auto"``: grouped rollouts while the measured gradient says that they pay, as long as it says."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO, auto_grouping, group_rollouts, policy_scores
from sb3_hybrid_grpo.auto_grouping import AutoGrouping
from sb3_hybrid_grpo.gradient_variance import GradientVariances


def measured(ratio: float, n_units: int = 10) -> GradientVariances:
    return GradientVariances(ratio, 1.0, n_units)


def run(auto: AutoGrouping, ratios: Sequence[float | None], n_samples: int = 2048, n_units: int = 10) -> list[bool]:
    """What is decided, rollout by rollout, where a grouped one would measure these."""
    decided = []
    for ratio in ratios:
        grouped = auto.next_is_grouped(n_samples)
        decided.append(grouped)
        auto.observe(4 if grouped else 1, measured(ratio, n_units) if grouped and ratio is not None else None)
    return decided


def test_without_noise_rollouts_are_single_but_for_ever_rarer_probes() -> None:
    probes = np.flatnonzero(run(AutoGrouping(), [1.0] * 40))
    assert probes.tolist() == [4, 13, 30]  # after 4, 8 and 16 single ones


@pytest.mark.parametrize(("n_samples", "expected"), [(16384, [4, 13]), (1024, [8, 25]), (256, [32, 97])])
def test_small_rollouts_are_probed_after_as_many_samples(n_samples: int, expected: list[int]) -> None:
    assert np.flatnonzero(run(AutoGrouping(), [1.0] * (expected[-1] + 1), n_samples)).tolist() == expected


def test_two_low_probes_find_noise_that_no_step_draws() -> None:
    auto = AutoGrouping()
    assert np.flatnonzero(run(auto, [0.2] * 9)).tolist() == [4, 5, 6, 7, 8]
    assert auto.noise_seen is None


@pytest.mark.parametrize(
    ("first", "second", "grouped"),
    [(0.3, 0.8, list(range(4, 15))), (0.8, 0.3, list(range(4, 15))), (0.3, 1.0, [4, 5, 14]), (0.95, 0.1, [4, 13, 14])],
)
def test_two_probes_decide_together_unless_the_first_is_above_0_9(first: float, second: float, grouped: list[int]) -> None:
    auto = AutoGrouping()
    assert np.flatnonzero(run(auto, [0.0] * 4 + [first, second] + [0.7] * 9)).tolist() == grouped
    if len(grouped) == 11:  # both are in the average
        assert auto.ratio == pytest.approx(np.average([first, second, *[0.7] * 9], weights=0.9 ** np.arange(11)[::-1]))


@pytest.mark.parametrize(("n_units", "n_probes"), [(1, 16), (5, 4), (15, 2), (16, 1), (64, 1)])
@pytest.mark.parametrize("ratio", [0.55, 0.65])
def test_probes_go_on_until_they_have_16_units(ratio: float, n_units: int, n_probes: int) -> None:
    auto = AutoGrouping()
    run(auto, [ratio] * (3 + n_probes), n_units=n_units)
    assert not auto.grouped
    run(auto, [ratio], n_units=n_units)
    assert auto.grouped == (ratio < 0.6) and auto.probe is None


def test_with_a_number_for_the_horizon_rho_is_averaged_and_nothing_is_decided() -> None:
    auto = AutoGrouping(shape=(4, 64))
    for ratio in [0.85, 0.5] * 20:
        auto.observe(4, measured(ratio))
    assert not auto.grouped and auto.probe is None
    assert auto.ratio == pytest.approx(0.67, abs=0.01) and auto.weight > 0.98


def test_noise_that_is_seen_late_ends_the_probes_that_look_for_it() -> None:
    auto = AutoGrouping()
    assert run(auto, [0.7] * 5) == [False] * 4 + [True] and auto.probe is not None
    auto.see_noise(True)
    assert run(auto, [0.7] * 6) == [False] * 4 + [True, False]


def test_a_second_probe_that_measures_nothing_begins_no_groups() -> None:
    assert np.flatnonzero(run(AutoGrouping(), [0.2] * 5 + [None] + [1.0] * 12)).tolist() == [4, 5, 14]


@pytest.mark.parametrize(("seen", "grouped"), [(None, False), (False, False), (True, True)])
def test_rollouts_begin_grouped_where_steps_draw(seen: bool | None, grouped: bool) -> None:
    auto = AutoGrouping()
    auto.see_noise(seen)
    assert auto.next_is_grouped(2048) == grouped and auto.noise_seen == seen


@pytest.mark.parametrize("seen", [None, False, True])
def test_noise_that_is_looked_for_late_does_not_undo_what_was_measured(seen: bool | None) -> None:
    found, ended = AutoGrouping(), AutoGrouping()
    run(found, [0.2] * 16)
    ended.see_noise(True)
    run(ended, [1.0] * 20)
    for auto, grouped in ((found, True), (ended, False)):
        auto.see_noise(seen)
        assert auto.grouped == grouped


@pytest.mark.parametrize(("seen", "probes"), [(True, [4, 9, 14, 19]), (False, [4, 5, 14, 15])])
def test_groups_end_where_they_do_not_pay_and_come_back_where_they_do(seen: bool, probes: list[int]) -> None:
    auto = AutoGrouping(seen, grouped=True)
    assert run(auto, [0.2] * 5) == [True] * 5
    for _ in range(50):
        if auto.grouped:
            run(auto, [1.0])
    again = dataclasses.replace(auto)
    assert np.flatnonzero(run(auto, [0.8] * (probes[-1] + 1))).tolist() == probes
    assert np.flatnonzero(run(again, [0.4] * 7)).tolist() == [4, 5, 6]


@pytest.mark.parametrize("seen", [True, False])
def test_where_groups_begin_to_pay_late_larger_gradients_of_before_do_not_end_them(seen: bool) -> None:
    auto = AutoGrouping(seen, grouped=True)
    for _ in range(20):
        auto.observe(4, GradientVariances(99.0, 90.0, 16))
    assert not auto.grouped
    assert np.flatnonzero(run(auto, [0.3] * 40)).tolist() == list(range(4, 40))
    assert auto.ratio == pytest.approx(0.3)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_rho_is_that_of_the_present_gradients_however_much_their_scale_has_changed(factor: float) -> None:
    """The gradients of a tracking task shrink ten thousandfold while it is learned."""
    auto = AutoGrouping(grouped=True)
    for _ in range(5):
        auto.observe(4, GradientVariances(0.8, 1.0, 16))
    auto.observe(4, GradientVariances(0.2 * factor, factor, 16))
    assert auto.ratio == pytest.approx(0.2, rel=0.05)


def test_groups_whose_averages_start_anew_end_only_when_enough_units_are_in_them() -> None:
    auto = AutoGrouping()
    auto.see_noise(True)
    for _ in range(5):
        auto.observe(4, GradientVariances(20.0, 100.0, 16))
    auto.observe(4, GradientVariances(0.9, 0.3, 2))  # gradients have become small, and a short rollout says little
    assert auto.grouped and auto.ratio == pytest.approx(3.0)
    auto.observe(4, GradientVariances(0.9, 0.3, 30))
    assert not auto.grouped


def test_few_units_do_not_end_groups() -> None:
    auto = AutoGrouping()
    auto.see_noise(True)
    for n_units in (2, 2, 27):
        auto.observe(4, GradientVariances(9.0, 1.0, n_units))
        assert auto.grouped
    auto.observe(4, GradientVariances(9.0, 1.0, 1))
    assert not auto.grouped and auto.next_probe == 4


@given(st.lists(st.floats(0.61, 0.89), min_size=1, max_size=30))
def test_between_the_thresholds_nothing_changes(ratios: list[float]) -> None:
    grouped = AutoGrouping()
    grouped.see_noise(True)
    assert all(run(grouped, list(ratios)))
    single = AutoGrouping()
    run(single, list(ratios))
    assert not single.grouped


def test_averages_are_taken_of_numerator_and_denominator() -> None:
    auto = AutoGrouping()
    assert auto.ratio is None
    auto.observe(4, GradientVariances(1.0, 2.0, 16))
    assert auto.ratio == pytest.approx(0.5)
    auto.observe(4, GradientVariances(6.0, 2.0, 16))
    assert auto.ratio == pytest.approx((0.9 * 1 + 6) / (0.9 * 2 + 2))
    auto.observe(4, None)  # not measured: nothing is learned
    assert auto.ratio == pytest.approx((0.9 * 1 + 6) / (0.9 * 2 + 2))


@pytest.mark.parametrize(
    ("ratio", "longest", "shortest", "length"),
    [(None, 512, 128, 512), (0.5, 512, 128, 256), (0.01, 512, 128, 128), (3.0, 512, 128, 512), (0.2, 64, 128, 64)],
)
def test_a_rollout_is_as_long_as_its_gradient_needs(ratio: Any, longest: int, shortest: int, length: int) -> None:
    auto = AutoGrouping(grouped=True)
    if ratio is not None:
        auto.observe(4, measured(ratio))
    assert auto.length(longest, 1, shortest) == auto.length(longest, shortest, 1) == length
    assert auto.length(longest, 1, False) == longest


@pytest.mark.parametrize(
    ("auto", "length"), [(AutoGrouping(), 512), (AutoGrouping(True), 128), (AutoGrouping(shape=(4, 64)), 128)]
)
def test_a_probe_that_looks_for_noise_has_its_full_length(auto: AutoGrouping, length: int) -> None:
    auto.observe(4, measured(0.25))
    auto.grouped = False
    assert auto.length(512, 1, True) == length


class Path(gym.Env[Any, Any]):
    """
    Follow a path that nobody sees ahead. Its steps are drawn in reset, or in every step, or there is none.

    :param drawn: "in reset", "in step" or "never"
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, drawn: str) -> None:
        self.drawn, self.t, self.ahead = drawn, 0, np.zeros(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        if self.drawn == "in reset":
            self.ahead = self.np_random.normal(size=200)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        noise = 0.0
        if self.drawn == "in reset":
            noise = float(self.ahead[self.t])
        elif self.drawn == "in step":
            noise = float(self.np_random.normal())
        self.t += 1
        reward = 20 * noise - float(action[0]) ** 2
        return np.array([self.t / 200], np.float32), reward, False, self.t >= 200, {}


class Lengths(BaseCallback):
    """Notes the members and the executed steps of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[tuple[int, int]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = self.locals["rollout_buffer"]
        self.rollouts.append((buffer.n_samples, buffer.buffer_size))


def trained(drawn: str, rollouts: int = 8, **kwargs: Any) -> tuple[HybridGRPO, list[tuple[int, int]]]:
    seen = Lengths()
    options: dict[str, Any] = {"n_steps": 256, "n_epochs": 1, "seed": 0, **kwargs}
    model = HybridGRPO("MlpPolicy", make_vec_env(lambda: Path(drawn), n_envs=2), **options)
    return model.learn(rollouts * 2 * model.n_steps, callback=seen), seen.rollouts


def test_a_path_drawn_in_reset_is_found_by_long_probes_before_rollouts_get_shorter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto_grouping, "FULL_ROLLOUT", 512)
    model, rollouts = trained("in reset", rollouts=11, adapt_rollouts=16)
    n_probes = rollouts.count((4, 64))
    assert rollouts[: n_probes + 4] == [(1, 256)] * 4 + [(4, 64)] * n_probes and set(rollouts[n_probes + 4 :]) == {(4, 16)}
    assert 1 < n_probes < 9  # together they have 16 units
    assert model.auto_grouping.ratio is not None and model.auto_grouping.ratio < 0.25


@pytest.mark.parametrize(
    ("drawn", "horizon", "centred"), [("never", "auto", True), ("in step", "auto", False), ("never", 64, False)]
)
def test_rho_is_measured_without_the_mean_where_it_looks_for_noise(
    drawn: str, horizon: Any, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(*given: Any) -> Any:
        asked.append(given[3])
        return policy_scores.measured_variances(*given)

    monkeypatch.setattr(group_rollouts, "measured_variances", measure)
    monkeypatch.setattr(auto_grouping, "FULL_ROLLOUT", 512)
    trained(drawn, rollouts=5, branch_horizon=horizon)
    assert set(asked) == {centred}


def test_what_was_measured_with_another_horizon_or_size_is_forgotten(tmp_path: Any) -> None:
    model, _ = trained("in step", rollouts=2, branch_horizon=64)
    model.save(tmp_path / "model")
    measured = model.auto_grouping
    model.learn(512, reset_num_timesteps=False)
    assert model.auto_grouping is measured and measured.shape == (4, 64)
    loaded = HybridGRPO.load(tmp_path / "model", env=model.get_env(), branch_horizon="auto")
    model.n_samples = 2
    for other, shape in ((loaded, (4, "auto")), (model, (2, 64))):
        other.learn(0, reset_num_timesteps=False)
        assert other.auto_grouping.shape == shape and other.auto_grouping.ratio is None
    assert loaded.auto_grouping.noise_seen and loaded.auto_grouping.grouped


def test_noise_in_steps_is_grouped_from_the_beginning() -> None:
    _, rollouts = trained("in step", rollouts=4)
    assert rollouts[-1][0] == 4 and sum(members == 1 for members, _ in rollouts) <= 1


@pytest.mark.parametrize("horizon", ["auto", 64])
def test_rollouts_shorten_to_what_the_gradient_needs_and_a_loaded_model_goes_on_with_that(tmp_path: Any, horizon: Any) -> None:
    model, rollouts = trained("in step", rollouts=2, n_steps=2048, branch_horizon=horizon)
    lengths = [length for _, length in rollouts]
    assert lengths[0] == 512 and lengths[-1] == 128
    assert len(lengths) > 2  # more updates for as many steps of the simulator
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=model.get_env())
    seen = Lengths()
    loaded.learn(1024, callback=seen, reset_num_timesteps=False)
    assert seen.rollouts[0] == (4, 128)


@pytest.mark.parametrize(("adapt", "shortest"), [(False, 256), (100, 100), (200, 200)])
def test_how_short_rollouts_become_can_be_chosen(adapt: Any, shortest: int) -> None:
    _, rollouts = trained("in step", 2, n_steps=1024, branch_horizon=16, adapt_rollouts=adapt)
    assert min(length for _, length in rollouts) == shortest


def test_a_rollout_has_at_least_two_minibatches() -> None:
    _, rollouts = trained("in step", 2, n_steps=1024, branch_horizon=16, adapt_rollouts=1, batch_size=512)
    assert min(length for _, length in rollouts) == 128  # of 2 envs with 4 members each


class EndGroups(Lengths):
    """Lets rollouts be single after the second."""

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        if len(self.rollouts) == 2:
            auto: AutoGrouping = self.model.auto_grouping  # type: ignore[attr-defined]
            auto.grouped, auto.next_probe = False, 100


@pytest.mark.parametrize(("adapt", "first"), [(128, 512), (248, 1056)])  # 32 samples would be less than a minibatch
def test_single_rollouts_after_shorter_groups_end_where_ppo_s_do(adapt: int, first: int) -> None:
    seen, envs = EndGroups(), make_vec_env(lambda: Path("in step"), n_envs=1)
    model = HybridGRPO("MlpPolicy", envs, n_steps=1024, n_epochs=1, seed=0, adapt_rollouts=adapt).learn(4096, callback=seen)
    assert seen.rollouts[:3] == [(4, 256), (4, adapt), (1, first)]
    assert set(seen.rollouts[3:]) == {(1, 1024)} and model.num_timesteps == 4096


@pytest.mark.parametrize("adapt", [0, -3, 1.5, "long"])
def test_other_lengths_are_refused(adapt: Any) -> None:
    with pytest.raises(ValueError, match=r"Received adapt_rollouts=.*True, False, or the least number of executed steps"):
        HybridGRPO("MlpPolicy", make_vec_env(lambda: Path("never")), adapt_rollouts=adapt)
