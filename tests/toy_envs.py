"""Small envs for tests, registered with gymnasium where a test needs an id."""

import multiprocessing
import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class NoisyWalk(gym.Env[Any, Any]):
    """
    A walk in the plane, pushed by the action and by random wind of the env's own generator. Ends outside of the unit square;
    an int reward on request, as some envs have.

    :param action_space: Any action space; the sum of the action pushes
    :param observation_space: Box of 2, Discrete, MultiBinary or Dict, see ``_observe``
    :param bound: The episode ends when a coordinate is larger than this
    """

    def __init__(
        self,
        action_space: spaces.Space[Any] | None = None,
        observation_space: spaces.Space[Any] | None = None,
        bound: float = 1.0,
    ) -> None:
        self.action_space = action_space or spaces.Box(-1, 1, (2,), dtype=np.float32)
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
        self.bound = bound
        self.place = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.2, 0.2, size=2)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        wind = self.np_random.normal(size=2)
        self.place = self.place + 0.05 * wind + 0.05 * np.mean(np.asarray(action, dtype=float))
        reward = float(1.0 - np.abs(self.place).sum() + 0.5 * wind[0])
        return self._observe(), reward, bool(np.abs(self.place).max() > self.bound), False, {}

    def _observe(self) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: self._as(one) for key, one in space.items()}
        return self._as(space)

    def _as(self, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Discrete):
            return int(np.clip((self.place[0] + 1) / 2 * space.n, 0, space.n - 1))
        if isinstance(space, spaces.MultiBinary):
            return (np.resize(self.place, space.n) > 0).astype(np.int8)
        if isinstance(space, spaces.MultiDiscrete):
            return (np.resize(self.place, len(space.nvec)) > 0).astype(np.int64)
        assert isinstance(space, spaces.Box)
        if space.dtype == np.uint8:
            return np.full(space.shape, int(np.clip(127 + 100 * self.place[0], 0, 255)), dtype=np.uint8)
        return np.resize(self.place, space.shape).astype(np.float32)


def walk(max_steps: int = 20, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    A :class:`NoisyWalk` with a time limit.

    :param max_steps: The limit
    :param kwargs: Arguments of :class:`NoisyWalk`
    :return: The env
    """
    return gym.wrappers.TimeLimit(NoisyWalk(**kwargs), max_steps)


class Unbranchable(NoisyWalk):
    """Holds what can be neither copied nor forked."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, _ = multiprocessing.Pipe()


class Dying(NoisyWalk):
    """Ends its process, as a crash in a simulator's C code does."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os._exit(77)


gym.register("Unbranchable-v0", "tests.toy_envs:Unbranchable", max_episode_steps=20)
gym.register("Dying-v0", "tests.toy_envs:Dying", max_episode_steps=20)


class FragileWalk(gym.Env[Any, Any]):
    """A random walk. Action 7 breaks it down, action 8 kills its process."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Discrete(9)
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["human"]}
        self.x = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = float(self.np_random.normal())
        return np.array([self.x, 0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 7:
            raise ZeroDivisionError("the action was 7")
        if action == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        self.x += 0.3 * int(action) + float(self.np_random.normal())
        return np.array([self.x, 1]), self.x / 3, self.x > 3, False, {}
