"""Siblings step beside an env, below its recorders, and leave it where it was."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from stable_baselines3.common.monitor import Monitor

from sb3_hybrid_grpo import make_branchable
from sb3_hybrid_grpo.branching import BranchingWrapper
from sb3_hybrid_grpo.branching.answers import SiblingFailure, SiblingSteps


class Walk(gym.Env[Any, Any]):
    """A random walk that ends beyond 3, breaks down at action 7, is interrupted at action 8, and returns its own buffer."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Discrete(9)
        self.buffer = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.buffer[:] = self.np_random.normal(), 0
        return self.buffer, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.buffer[1] += 1
        self.buffer[0] += 0.2 * action + self.np_random.normal()
        if action == 7:
            raise ZeroDivisionError("the action was 7")
        if action == 8:
            raise KeyboardInterrupt
        return self.buffer, float(self.buffer[0]), bool(self.buffer[0] > 3), False, {}


class Skipping(gym.Wrapper[Any, Any, Any, Any]):
    """Takes two steps for one."""

    def step(self, action: Any) -> Any:
        first = self.env.step(action)
        return first if first[2] or first[3] else self.env.step(action)


def _step(env: gym.Env[Any, Any], actions: list[int], forks: bool = True, **options: Any) -> SiblingSteps | SiblingFailure:
    result: SiblingSteps | SiblingFailure = env.get_wrapper_attr("step_siblings")(
        np.array(actions), np.full(len(actions), forks), keep=True, **options
    )
    return result


def _layers(env: gym.Env[Any, Any]) -> list[type]:
    layers = [type(env)]
    while isinstance(env, gym.Wrapper):
        env = env.env
        layers.append(type(env))
    return layers


def test_it_goes_below_recorders_and_above_all_else() -> None:
    env = make_branchable(Monitor(RecordEpisodeStatistics(TimeLimit(Walk(), 5))))
    assert _layers(env) == [Monitor, RecordEpisodeStatistics, BranchingWrapper, TimeLimit, Walk]
    assert _layers(make_branchable(Skipping(Monitor(Walk())))) == [BranchingWrapper, Skipping, Monitor, Walk]
    assert _layers(make_branchable(Walk())) == [BranchingWrapper, Walk]


def test_a_branchable_env_is_left_as_it_is() -> None:
    for env in (make_branchable(Walk()), make_branchable(Monitor(Walk())), TimeLimit(make_branchable(Walk()), 3)):
        before = _layers(env)
        assert make_branchable(env) is env
        assert _layers(env) == before


@pytest.mark.parametrize("deep", [False, True])
def test_a_monitor_writes_down_member_0_alone(tmp_path: Path, deep: bool) -> None:
    def make(name: str) -> gym.Env[Any, Any]:
        monitor: gym.Env[Any, Any] = Monitor(TimeLimit(Walk(), 12), str(tmp_path / name))
        return Skipping(monitor) if deep else monitor

    env, twin = make_branchable(make("env")), make("twin")
    env.reset(seed=1)
    twin.reset(seed=1)
    rng = np.random.default_rng(0)
    for t in range(150):
        _step(env, rng.integers(6, size=3).tolist(), forks=t % 4 == 0, reset_ended=True)
        got, expected = env.step(1), twin.step(1)
        np.testing.assert_array_equal(got[0], expected[0])
        assert got[1:4] == expected[1:4]
        if got[2] or got[3]:
            env.reset()
            twin.reset()
    env.close()
    twin.close()
    # the last column is the time of day
    rows = [
        [line.rsplit(",", 1)[0] for line in (tmp_path / f"{n}.monitor.csv").read_text().splitlines()[1:]]
        for n in ("env", "twin")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 5


def test_a_wrapper_made_directly_around_a_monitor_passes_it_by() -> None:
    monitor = Monitor(Walk())
    env = BranchingWrapper(monitor)
    env.reset(seed=0)
    _step(env, [1, 2])
    assert monitor.rewards == []
    assert env.env is monitor
    env.step(1)
    assert len(monitor.rewards) == 1


def test_siblings_of_one_action_live_through_the_same_noise() -> None:
    env, twin = make_branchable(Walk()), Walk()
    env.reset(seed=0)
    twin.reset(seed=0)
    for t in range(5):
        steps = _step(env, [1, 1, 4], forks=t == 0)
        assert isinstance(steps, SiblingSteps)
        truth = [a.copy() if isinstance(a, np.ndarray) else a for a in twin.step(1)]
        for member in (0, 1):
            np.testing.assert_array_equal(steps.observations[member], truth[0])
        assert steps.rewards[0] == truth[1] == pytest.approx(steps.rewards[2] - 0.6 * (t + 1))
    assert env.unwrapped.buffer[1] == 0  # type: ignore[attr-defined]


def test_observations_survive_an_env_that_returns_its_buffer() -> None:
    env = make_branchable(Walk())
    env.reset(seed=0)
    steps = _step(env, [0, 5])
    assert isinstance(steps, SiblingSteps)
    assert steps.observations[1][0] - steps.observations[0][0] == pytest.approx(1.0)
    first = steps.observations[0].copy()
    env.step(3)
    np.testing.assert_array_equal(steps.observations[0], first)


def test_an_error_of_a_sibling_is_returned_with_its_member() -> None:
    env, twin = make_branchable(Skipping(Monitor(Walk()))), Skipping(Monitor(Walk()))
    env.reset(seed=0)
    twin.reset(seed=0)
    failure = _step(env, [1, 7, 1])
    assert isinstance(failure, SiblingFailure)
    assert failure.member == 2
    assert "the action was 7" in failure.error
    assert "in step" in failure.traceback
    with pytest.raises(KeyboardInterrupt):
        _step(env, [1, 8])
    np.testing.assert_array_equal(env.step(2)[0], twin.step(2)[0])
    assert _layers(env) == [BranchingWrapper, *_layers(twin)]
    assert isinstance(_step(env, [1, 1]), SiblingSteps)


def test_an_error_of_a_reset_or_a_save_is_returned_too() -> None:
    env = make_branchable(Walk())
    env.reset(seed=0)
    inner: Any = env.unwrapped
    inner.generator = (n for n in range(3))  # met by the next save
    failure = _step(env, [1])
    assert isinstance(failure, SiblingFailure)
    assert "builtins.generator" in failure.error
    assert isinstance(env.get_wrapper_attr("reset_siblings")([1, 2]), SiblingFailure)
    del inner.generator
    assert isinstance(_step(env, [1]), SiblingSteps)


def test_siblings_of_their_own_reset_with_their_own_seeds() -> None:
    env, twins = make_branchable(Walk()), [Walk(), Walk()]
    env.reset(seed=0)
    before = env.unwrapped.buffer.copy()  # type: ignore[attr-defined]
    firsts = env.get_wrapper_attr("reset_siblings")([5, 6])
    for twin, seed, first in zip(twins, (5, 6), firsts, strict=True):
        np.testing.assert_array_equal(first, twin.reset(seed=seed)[0])
    ends = 0
    for _ in range(40):
        steps = _step(env, [1, 3], forks=False, reset_ended=True)
        assert isinstance(steps, SiblingSteps)
        for member, (twin, action) in enumerate(zip(twins, (1, 3), strict=True)):
            observation, reward, terminated, _, _ = twin.step(action)
            np.testing.assert_array_equal(steps.observations[member], observation)
            assert (steps.rewards[member], steps.terminated[member]) == (reward, terminated)
            assert (member in steps.resets) == terminated
            if terminated:
                ends += 1
                np.testing.assert_array_equal(steps.resets[member], twin.reset()[0])
    assert ends > 3
    np.testing.assert_array_equal(env.unwrapped.buffer, before)  # type: ignore[attr-defined]
    again = env.get_wrapper_attr("reset_siblings")([None, None])
    for twin, first in zip(twins, again, strict=True):
        np.testing.assert_array_equal(first, twin.reset()[0])
