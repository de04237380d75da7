"""Member 0 lives the life of an env that has no siblings, to the last bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_hybrid_grpo import make_branchable
from sb3_hybrid_grpo.branching import BranchHorizon, Groups


class Windy(gym.Env[Any, Any]):
    """Random wind from three sources, memory in a list, a dict and an array that it gives away."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Box(-1, 1, (1,))
        self.gusts = np.random.RandomState(0)
        self.place = np.zeros(3)
        self.memory: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.gusts.seed(seed)
            self.action_space.seed(seed)
        self.memory.clear()
        self.place[:] = self.np_random.normal(size=3)
        return self.place, {}

    def step(self, action: Any) -> Any:
        self.memory.append({"action": action.copy()})
        self.place += float(action[0]) + 0.3 * self.gusts.randn(3) + 0.1 * self.action_space.sample()
        self.place[2] = len(self.memory)
        info = {"memory": self.memory[-3:], "wind": self.np_random.random()}
        return self.place, float(self.place[0] + sum(m["action"][0] for m in self.memory)), abs(self.place[1]) > 3, False, info


def _windy() -> gym.Env[Any, Any]:
    return make_branchable(Monitor(TimeLimit(Windy(), 9)))


def _cheetah() -> gym.Env[Any, Any]:
    return make_branchable(Monitor(TimeLimit(gym.make("HalfCheetah-v5"), 9)))


def _frozen_lake() -> gym.Env[Any, Any]:
    return make_branchable(Monitor(gym.make("FrozenLake-v1")))


@contextmanager
def _made(make: Any, many: bool, normalized: bool) -> Iterator[VecEnv]:
    env: VecEnv = SubprocVecEnv([make] * 2, start_method="fork") if many else DummyVecEnv([make] * 2)
    env.seed(5)
    try:
        yield VecNormalize(env) if normalized else env
    finally:
        env.close()


def _without_times(infos: Any) -> Any:
    for info in infos:
        info.get("episode", {}).pop("t", None)
    return infos


def _check(make: Any, many: bool, horizon: BranchHorizon, normalized: bool, n_steps: int) -> None:
    with _made(make, many, normalized) as env, _made(make, many, normalized) as twin:
        rng = np.random.default_rng(0)
        groups = Groups(env, 4, horizon)
        last, expected = env.reset(), twin.reset()
        groups.start(True)
        ends = 0
        space: Any = env.action_space
        for _ in range(n_steps):
            np.testing.assert_array_equal(last, expected)
            groups.observations(last)
            size = (4, 2, *space.shape)
            discrete = isinstance(space, spaces.Discrete)
            actions = rng.integers(space.n, size=size) if discrete else rng.uniform(-1, 1, size=size).astype(np.float32)
            step = groups.step(actions)
            expected, rewards, dones, infos = twin.step(actions[0])
            np.testing.assert_array_equal(step.rewards[0], rewards)
            np.testing.assert_array_equal(step.dones_NE[0], dones)
            np.testing.assert_equal(_without_times(step.infos[0]), _without_times(infos))
            last = step.new_obs[:2]
            ends += dones.sum()
        assert ends > 1


@pytest.mark.parametrize("many", [False, True], ids=["one process", "processes"])
@pytest.mark.parametrize("horizon", [1, 3, 64, "episode"])
def test_random_dynamics(horizon: BranchHorizon, many: bool) -> None:
    _check(_windy, many, horizon, normalized=horizon == 3, n_steps=40)


@pytest.mark.parametrize("horizon", [1, 3])
def test_frozen_lake(horizon: BranchHorizon) -> None:
    _check(_frozen_lake, False, horizon, normalized=False, n_steps=60)


@pytest.mark.parametrize("horizon", [1, 3, 64])
def test_mujoco_under_normalisation(horizon: BranchHorizon) -> None:
    pytest.importorskip("mujoco")
    _check(_cheetah, False, horizon, normalized=True, n_steps=25)
