"""
Envs of this package whose noise is drawn in ``reset``, for the whole episode, and not in ``step``: as if it were recorded.

    benchmarks/drawn_ahead/run.sh
"""

from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.envs import GustyCartPoleSwingUp, Inventory

N_NUMBERS = 512  # more than the steps of an episode


class Numbers:
    """
    Takes the place of an env's generator, and hands out numbers that were drawn before.

    :param numbers: Standard normal numbers, in the order of their use
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers, self.n_used = numbers, 0

    def standard_normal(self) -> float:
        self.n_used += 1
        return float(self.numbers[self.n_used - 1])


class DrawnAhead(gym.Wrapper[Any, Any, Any, Any]):
    """
    Draws the noise of an episode in ``reset``.

    :param env: An env whose steps draw standard normal numbers alone, one at a time
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._generator = env.unwrapped.np_random

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.unwrapped.np_random = self._generator
        result = self.env.reset(**kwargs)
        self._generator = self.unwrapped.np_random
        self.unwrapped.np_random = Numbers(self._generator.standard_normal(N_NUMBERS))  # type: ignore[assignment]
        return result


for cls, steps in ((Inventory, 100), (GustyCartPoleSwingUp, 250)):
    gym.register(f"drawn_ahead/{cls.__name__}-v0", lambda cls=cls: DrawnAhead(cls()), max_episode_steps=steps)
