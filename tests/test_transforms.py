"""Reward transforms: what they give, what they remember, and what a faulty one is turned into."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hybrid_grpo.advantages import grpo_advantage
from sb3_hybrid_grpo.transforms import (
    ADAPTIVE,
    FUNCTIONS,
    Normalize,
    Scale,
    Transform,
)

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
GAMMA = 0.9
# Three axes of up to four, numbers that a slow loop can add up without losing digits
REWARDS = hnp.arrays(np.float64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.floats(-100, 100, width=16))


def rewards_of(*numbers: float, dtype: type = np.float32) -> Floats:
    return np.array(numbers, dtype=dtype).reshape(1, 1, -1)


def resolved(spec: Any, n_samples: int = 2, statistics: Any = None) -> Transform:
    return Transform(spec, n_samples, statistics)


def applied(transform: Transform, rewards_TEN: Floats, starts_TEN: Bools | None = None, learn: bool = True) -> Floats:
    """As the rewards of a rollout; without starts, one in the middle of an episode."""
    starts_TEN = np.zeros(rewards_TEN.shape, bool) if starts_TEN is None else starts_TEN
    return transform(rewards_TEN, starts_TEN, GAMMA, learn)


def scale_of(transform: Transform) -> Scale:
    scale = transform.statistics["scale"]
    assert isinstance(scale, Scale)
    return scale


class Countdown:
    """A transform with a state of its own: divides by how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rewards_TEN: Floats) -> Floats:
        self.calls += 1
        return rewards_TEN / self.calls


def test_none_is_raw_rewards() -> None:
    rewards_TEN = rewards_of(1.0, -3.0, math.nan)
    np.testing.assert_array_equal(applied(resolved(None), rewards_TEN), rewards_TEN)


def test_tanh_literal() -> None:
    # tanh(x) = (e^2x - 1) / (e^2x + 1): for x = ln 3 / 2 that is (3 - 1) / (3 + 1), for x = ln 2 it is (4 - 1) / (4 + 1)
    rewards_TEN = rewards_of(0.0, math.log(3) / 2, -math.log(2), 1000.0)
    result_TEN = applied(resolved("tanh"), rewards_TEN)
    np.testing.assert_allclose(result_TEN, rewards_of(0.0, 0.5, -0.6, 1.0), rtol=1e-6)
    assert result_TEN.dtype == np.float32


def test_clip_literal() -> None:
    result_TEN = applied(resolved("clip"), rewards_of(-10.5, -10.0, 0.25, 9.0, 1e6))
    np.testing.assert_array_equal(result_TEN, rewards_of(-10.0, -10.0, 0.25, 9.0, 10.0))


def test_symlog_literal() -> None:
    result_TEN = applied(resolved("symlog"), rewards_of(math.e - 1, 0.0, 1 - math.e**3, 1e-6))
    np.testing.assert_allclose(result_TEN, rewards_of(1.0, 0.0, -3.0, 1e-6), rtol=1e-6)


def test_group_literal() -> None:
    # members at mean 3, deviation 2; then all equal, where nothing is left but zero
    rewards_TEN = np.array([[[1.0, 5.0, 1.0, 5.0]], [[0.1, 0.1, 0.1, 0.1]]], dtype=np.float32)
    result_TEN = applied(resolved("group", n_samples=4), rewards_TEN)
    np.testing.assert_allclose(result_TEN, np.array([[[-1.0, 1.0, -1.0, 1.0]], [[0.0] * 4]]), rtol=1e-6)


def test_normalize_literal() -> None:
    # mean 3, deviation 2; then, with 11 and 11, mean (6 * 2 + 22) / 6 = 17 / 3 of 1, 5, 1, 5, 11, 11
    transform = resolved("normalize")
    np.testing.assert_allclose(applied(transform, rewards_of(1, 5, 1, 5)), rewards_of(-1, 1, -1, 1), rtol=1e-6)
    expected = (11 - 17 / 3) / math.sqrt((2 * 1 + 2 * 25 + 2 * 121) / 6 - (17 / 3) ** 2)
    np.testing.assert_allclose(applied(transform, rewards_of(11, 11)), rewards_of(expected, expected), rtol=1e-6)


@pytest.mark.parametrize("reward", [1.0, 0.1, -123456.7])
def test_equal_rewards_are_normalized_to_zero(reward: float) -> None:
    for t_steps in range(1, 60):
        transform = resolved("normalize")
        for _ in range(2):
            assert not applied(transform, np.full((t_steps, 3, 2), reward)).any()


def test_scale_literal() -> None:
    # Returns of one member: 2, then 0.9 * 2 + 1 = 2.8. Their variance is 0.4^2; VecNormalize's first 1e-4 numbers barely count
    result_TEN = applied(resolved("scale", n_samples=1), np.array([2.0, 1.0]).reshape(2, 1, 1))
    np.testing.assert_allclose(result_TEN.ravel(), [5.0, 2.5], rtol=1e-2)


@settings(max_examples=40, deadline=None)
@given(REWARDS)
def test_elementwise_ones_equal_slow_loops(rewards_TEN: Floats) -> None:
    slow: dict[str, Callable[[float], float]] = {
        "tanh": math.tanh,
        "clip": lambda x: min(max(x, -10.0), 10.0),
        "symlog": lambda x: math.copysign(math.log(1 + abs(x)), x),
    }
    for name, function in slow.items():
        result_TEN = applied(resolved(name), rewards_TEN)
        assert result_TEN.shape == rewards_TEN.shape
        expected = [function(x) for x in rewards_TEN.ravel().tolist()]
        assert result_TEN.ravel().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(REWARDS)
def test_group_equals_slow_loop(rewards_TEN: Floats) -> None:
    result_TEN = applied(resolved("group"), rewards_TEN)
    for t, e in np.ndindex(*rewards_TEN.shape[:2]):
        members = rewards_TEN[t, e].tolist()
        mean = math.fsum(members) / len(members)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in members) / len(members))
        expected = [(x - mean) / (deviation + 1e-8) for x in members]
        assert result_TEN[t, e].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_group_is_what_grpo_makes_of_one_step() -> None:
    rewards_TEN = np.random.default_rng(0).normal(5, 3, size=(6, 2, 4)).astype(np.float32)
    expected_TEN = grpo_advantage(rewards_TEN, np.ones(rewards_TEN.shape, bool), GAMMA)
    np.testing.assert_array_equal(applied(resolved("group"), rewards_TEN), expected_TEN)


@settings(max_examples=40, deadline=None)
@given(REWARDS, st.integers(1, 3))
def test_normalize_over_rollouts_equals_one_computation_over_all_rewards(rewards_TEN: Floats, n_rollouts: int) -> None:
    transform = resolved("normalize")
    rollouts = [rewards_TEN * (rollout + 1) + rollout for rollout in range(n_rollouts)]
    for rollout in range(n_rollouts):
        result_TEN = applied(transform, rollouts[rollout])
        seen = [x for one in rollouts[: rollout + 1] for x in one.ravel().tolist()]
        mean = math.fsum(seen) / len(seen)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in seen) / len(seen))
        expected = (rollouts[rollout] - mean) / (deviation + 1e-8)
        np.testing.assert_allclose(result_TEN, expected, rtol=1e-6, atol=1e-6)
        statistics = transform.statistics["normalize"]
        assert isinstance(statistics, Normalize) and statistics.rewards.count == len(seen)


def slow_scale(rollouts: list[Floats], starts: list[Bools]) -> Floats:
    """The last rollout, scaled by the deviation of the returns of all: member by member, as the docstring says."""
    seen: list[float] = []
    of_member: dict[tuple[int, int], float] = {}
    n_members = None
    for rewards_TEN, starts_TEN in zip(rollouts, starts, strict=True):
        if rewards_TEN.shape[2] != n_members:  # all siblings are new, and fork
            n_members = rewards_TEN.shape[2]
            of_member = {(e, m): of_member.get((e, 0), 0.0) for e, m in np.ndindex(*rewards_TEN.shape[1:])}
        for t, e in np.ndindex(*rewards_TEN.shape[:2]):
            origin = 0.0 if starts_TEN[t, e, 0] else of_member[e, 0]
            for m in range(rewards_TEN.shape[2]):
                before = origin if starts_TEN[t, e, m] else of_member[e, m]
                of_member[e, m] = GAMMA * before + float(rewards_TEN[t, e, m])
                seen.append(of_member[e, m])
    # what VecNormalize begins with: mean 0 and variance 1 with the weight of 1e-4 numbers
    count = len(seen) + 1e-4
    mean = math.fsum(seen) / count
    variance = (1e-4 * (1 + mean**2) + math.fsum((x - mean) ** 2 for x in seen)) / count
    return np.asarray(rollouts[-1] / math.sqrt(variance + 1e-8))


@settings(max_examples=60, deadline=None)
@given(REWARDS, st.integers(0, 10_000), st.lists(st.booleans(), min_size=1, max_size=4))
def test_scale_over_rollouts_equals_slow_loop(rewards_TEN: Floats, seed: int, grouped: list[bool]) -> None:
    """Rollouts of all members, and single ones of member 0 alone."""
    rng = np.random.default_rng(seed)
    transform = resolved("scale")
    rollouts, starts = [], []
    for number, with_siblings in enumerate(grouped):
        members = slice(None) if with_siblings else slice(1)
        starts_TEN = rng.random(rewards_TEN.shape) < 0.3
        starts_TEN |= starts_TEN[:, :, :1]  # where member 0 starts an episode, siblings fork
        rollouts.append(rewards_TEN[:, :, members] + number)
        starts.append(starts_TEN[:, :, members])
        result_TEN = applied(transform, rollouts[-1], starts[-1])
        np.testing.assert_allclose(result_TEN, slow_scale(rollouts, starts), rtol=1e-6, atol=1e-6)


def test_a_sibling_that_forks_takes_over_the_return_of_member_0() -> None:
    rewards_TEN = np.array([[[8.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    starts_TEN = np.array([[[True, True]], [[False, True]], [[True, True]]])
    for steps, returns in ((1, [8.0, 1.0]), (2, [7.2, 7.2]), (3, [0.0, 0.0])):
        transform = resolved("scale")
        applied(transform, rewards_TEN[:steps], starts_TEN[:steps])
        assert scale_of(transform).returns_EN.tolist() == [pytest.approx(returns)]


def test_siblings_of_a_grouped_rollout_take_over_what_single_ones_left() -> None:
    transform = resolved("scale")
    applied(transform, np.array([[[4.0]]]))
    applied(transform, np.zeros((1, 1, 3)))
    assert scale_of(transform).returns_EN.tolist() == [pytest.approx([3.6, 3.6, 3.6])]
    applied(transform, np.zeros((1, 1, 1)))
    assert scale_of(transform).returns_EN.tolist() == [pytest.approx([3.24])]


class Script(gym.Env[Any, Any]):
    """An env whose rewards and endings are those of a list."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, rewards: list[float], ends: list[bool]) -> None:
        self.script = list(zip(rewards, ends, strict=True))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        reward, end = self.script.pop(0)
        return np.zeros(1, np.float32), reward, end, False, {}


def test_scale_with_one_member_has_the_statistics_of_vecnormalize() -> None:
    rng = np.random.default_rng(0)
    n_rollouts, n_steps, n_envs = 3, 20, 3
    rewards_TE = rng.normal(-3, 5, size=(n_rollouts * n_steps, n_envs)).astype(np.float32)
    ends_TE = rng.random(rewards_TE.shape) < 0.1
    envs: list[Any] = [lambda e=e: Script(rewards_TE[:, e].tolist(), ends_TE[:, e].tolist()) for e in range(n_envs)]
    reference = VecNormalize(DummyVecEnv(envs), norm_obs=False, clip_reward=math.inf, gamma=GAMMA)
    reference.reset()
    transform = resolved("scale", n_samples=1)
    starts_TE = np.concatenate([np.ones((1, n_envs), bool), ends_TE[:-1]])
    for rollout in range(n_rollouts):
        steps = slice(rollout * n_steps, (rollout + 1) * n_steps)
        for _ in range(n_steps):
            scaled_E = reference.step(np.zeros(n_envs, int))[1]
        result_TEN = applied(transform, rewards_TE[steps, :, None], starts_TE[steps, :, None])
        ours, theirs = scale_of(transform).returns, reference.ret_rms
        assert (ours.mean, ours.variance, ours.count) == pytest.approx((theirs.mean, theirs.var, theirs.count), rel=1e-12)
        # At its last step, VecNormalize has the statistics of the whole rollout
        np.testing.assert_allclose(result_TEN[-1, :, 0], scaled_E, rtol=1e-6)
        np.testing.assert_allclose(result_TEN[:, :, 0], reference.normalize_reward(rewards_TE[steps]), rtol=1e-6)


def test_scale_in_another_number_of_envs_keeps_its_statistics_and_begins_new_returns() -> None:
    transform = resolved("scale")
    applied(transform, np.full((3, 2, 2), 7.0))
    applied(transform, np.full((1, 3, 2), 5.0))
    assert scale_of(transform).returns_EN.tolist() == np.full((3, 2), 5.0).tolist()
    assert scale_of(transform).returns.count == pytest.approx(12 + 6, abs=1e-3)


@pytest.mark.parametrize("name", ["normalize", "scale"])
def test_two_transforms_of_one_name_share_nothing(name: str) -> None:
    used, fresh = resolved(name), resolved(name)
    first_TEN = applied(used, rewards_of(1.0, 2.0))
    applied(used, rewards_of(100.0, 200.0))
    np.testing.assert_array_equal(applied(fresh, rewards_of(1.0, 2.0)), first_TEN)


@pytest.mark.parametrize("name", ["normalize", "scale"])
def test_what_is_not_to_be_learned_sees_the_statistics_so_far_and_does_not_change_them(name: str) -> None:
    def only_applied(rewards_TEN: Floats) -> Floats:
        return applied(transform, rewards_TEN, np.ones(rewards_TEN.shape, bool), learn=False)

    transform, twin = resolved(name), resolved(name)
    rewards_TEN = rewards_of(-2.0, 8.0)
    np.testing.assert_allclose(only_applied(rewards_TEN), rewards_TEN)  # nothing learned so far
    for _ in range(2):
        learned_TEN = applied(transform, rewards_TEN)
        np.testing.assert_array_equal(only_applied(rewards_TEN), learned_TEN)
        only_applied(rewards_of(3.0, 100.0))
        np.testing.assert_array_equal(learned_TEN, applied(twin, rewards_TEN))


@pytest.mark.parametrize("spec", ["normalize", "scale", ["symlog", "scale"], ["scale", Countdown(), "normalize", "tanh"]])
def test_statistics_that_were_saved_go_on_as_they_would_have(spec: Any) -> None:
    rng = np.random.default_rng(0)
    rollouts = rng.normal(2, 30, size=(4, 8, 2, 3)).astype(np.float32)
    starts = rng.random(rollouts.shape) < 0.2
    transform = resolved(spec)
    for one, starts_TEN in zip(rollouts[:2], starts[:2], strict=True):
        applied(transform, one, starts_TEN)
    # as a model saves them: what the user gave, and the statistics apart from it
    loaded = resolved(pickle.loads(pickle.dumps(spec)), statistics=pickle.loads(pickle.dumps(transform.statistics)))
    whole = pickle.loads(pickle.dumps(transform))
    for one, starts_TEN in zip(rollouts[2:], starts[2:], strict=True):
        expected_TEN = applied(transform, one, starts_TEN)
        np.testing.assert_array_equal(applied(loaded, one, starts_TEN), expected_TEN)
        np.testing.assert_array_equal(applied(whole, one, starts_TEN), expected_TEN)


def test_statistics_go_on_only_after_the_same_parts() -> None:
    transform = resolved(["normalize", "tanh"])
    applied(transform, rewards_of(1.0, 2.0))
    for spec, goes_on in (
        ("normalize", True),
        (["normalize", "clip"], True),
        (["clip", "normalize"], False),
        ("scale", False),
    ):
        functions = resolved(spec, statistics=transform.statistics).functions
        assert any(function is transform.functions[0] for function in functions) == goes_on


def test_only_parts_with_a_name_and_a_state_have_statistics() -> None:
    assert resolved(["tanh", Countdown(), np.abs]).statistics == {}
    assert list(resolved(["clip", "normalize", np.sign, "scale"]).statistics) == [
        "clip, normalize",
        "clip, normalize, sign, scale",
    ]


def test_parts_are_applied_in_order() -> None:
    rewards_TEN = rewards_of(20.0, -1.0)
    np.testing.assert_allclose(applied(resolved(["clip", np.square]), rewards_TEN), rewards_of(100.0, 1.0))
    np.testing.assert_allclose(applied(resolved((np.square, "clip")), rewards_TEN), rewards_of(10.0, 1.0))
    expected = math.tanh((20.0 - 9.5) / 10.5)
    np.testing.assert_allclose(
        applied(resolved(["normalize", "tanh"]), rewards_TEN), rewards_of(expected, -expected), rtol=1e-6
    )


def test_an_object_with_a_state_is_used_as_it_is_and_not_tried() -> None:
    countdown = Countdown()
    transform = resolved(["clip", countdown])
    assert countdown.calls == 0
    for calls in (1, 2, 3):
        np.testing.assert_allclose(applied(transform, rewards_of(6.0, 12.0)), rewards_of(6.0 / calls, 10.0 / calls), rtol=1e-6)
        assert countdown.calls == calls


def test_a_function_sees_the_rewards() -> None:
    def halve(rewards_TEN: Floats) -> Floats:
        return rewards_TEN / 2

    np.testing.assert_array_equal(applied(resolved(halve), rewards_of(2.0, -6.0)), rewards_of(1.0, -3.0))


@pytest.mark.parametrize("function", [np.log, np.sqrt, np.reciprocal], ids=["log", "sqrt", "reciprocal"])
def test_functions_for_positive_rewards_are_accepted(function: Any) -> None:
    assert resolved(function).names == (function.__name__,)


def test_every_name_is_accepted_and_keeps_dtype_and_shape() -> None:
    names = {"tanh", "clip", "symlog", "normalize", "scale", "group"}
    assert {*FUNCTIONS, *ADAPTIVE} == names
    for name in names:
        result_TEN = applied(resolved(name), rewards_of(-2.0, 0.0, 3.0))
        assert result_TEN.dtype == np.float32 and result_TEN.shape == (1, 1, 3)
        assert applied(resolved([name, "tanh"]), rewards_of(-2.0, 0.0, 3.0)).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_whatever_the_function_returns(dtype: type) -> None:
    for function in (lambda r: r.astype(np.float64), lambda r: r > 0, lambda r: r.tolist()):
        result_TEN = applied(resolved(function), rewards_of(1.0, -1.0, dtype=dtype))
        assert isinstance(result_TEN, np.ndarray) and result_TEN.dtype == dtype


def test_stored_rewards_stay_raw_when_the_function_works_in_place() -> None:
    def clip_in_place(rewards_TEN: Floats) -> Floats:
        return np.clip(rewards_TEN, -1, 1, out=rewards_TEN)

    rewards_TEN = rewards_of(5.0, -0.5)
    np.testing.assert_array_equal(applied(resolved(clip_in_place), rewards_TEN), rewards_of(1.0, -0.5))
    np.testing.assert_array_equal(rewards_TEN, rewards_of(5.0, -0.5))


@pytest.mark.parametrize("spec", ["tahn", "", 3, ["tahn"], ["tanh", None], ["tanh", ["clip"]], {"tanh": 1}])
def test_unknown_transform_is_named_along_with_what_exists(spec: Any) -> None:
    with pytest.raises(ValueError) as error:
        Transform(spec, 2)
    assert f"reward_transform={spec!r}" in str(error.value)
    assert "None" in str(error.value) and "'tanh'" in str(error.value) and "'group'" in str(error.value)
    if isinstance(spec, list):
        assert f"where {spec[-1]!r} is unknown" in str(error.value)


@pytest.mark.parametrize("spec", [[], ()])
def test_an_empty_list_is_no_transform(spec: Any) -> None:
    with pytest.raises(ValueError, match=r"has no transform in it\. Use None"):
        Transform(spec, 2)


def test_changed_shape_is_found_before_training() -> None:
    with pytest.raises(ValueError, match=r"<lambda> turned shape \(2, 1, 2\) into \(2, 1\).*one number per reward"):
        Transform(lambda rewards_TEN: rewards_TEN.mean(axis=2), 2)


def test_changed_shape_is_found_in_training() -> None:
    class Flatten:
        def __call__(self, rewards_TEN: Floats) -> Floats:
            return rewards_TEN.ravel()

    with pytest.raises(ValueError, match=r"Flatten turned shape \(1, 1, 2\) into \(2,\)"):
        applied(resolved(Flatten()), rewards_of(1.0, 2.0))


def test_nan_is_found_before_training() -> None:
    with pytest.raises(ValueError, match=r"NaN or infinity for 4 of 4 rewards"):
        Transform(lambda rewards_TEN: np.sqrt(-rewards_TEN), 2)


@pytest.mark.filterwarnings("error")
def test_nan_in_training_is_counted_with_an_example_and_the_fix() -> None:
    with pytest.raises(ValueError, match=r"sqrt gave NaN or infinity for 2 of 3 rewards, for example for -4\.0: .*clip"):
        applied(resolved(np.sqrt), rewards_of(9.0, -4.0, -1.0))


@pytest.mark.filterwarnings("error")
def test_too_large_for_the_dtype_is_infinity() -> None:
    with pytest.raises(ValueError, match="infinity for 1 of 2 rewards"):
        applied(resolved(lambda rewards_TEN: rewards_TEN.astype(np.float64) * 1e30), rewards_of(1.0, 1e20))


def test_the_part_that_failed_is_named() -> None:
    transform = resolved(["normalize", np.sqrt, "tanh"])
    with pytest.raises(ValueError, match=r"sqrt \(number 2 of 3\) gave NaN"):
        applied(transform, rewards_of(1.0, 2.0))


def test_nan_that_was_there_before_is_not_the_functions_fault() -> None:
    result_TEN = applied(resolved(np.sqrt), rewards_of(9.0, math.nan))
    np.testing.assert_array_equal(result_TEN, rewards_of(3.0, math.nan))
