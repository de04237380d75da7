"""
Two plants that track a reference. The agent sees the reference, which jumps at random: noise that sets the task.

    benchmarks/references/run.sh
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Tracking(gym.Env[np.ndarray, np.ndarray]):
    """
    Keep the position at the reference for 200 steps of 0.1 s. The reward is minus the squared error, minus 0.01 times the
    squared action. The reference jumps with a probability of 0.02 in a step, to a value in [-1, 1].

    :param plant: "integrator": the action is the acceleration, and nothing bounds position and speed; "lag": position and
        actuator are first-order lags, and a random disturbance acts on the position
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, plant: str) -> None:
        self.plant = plant
        self.position = self.speed = self.reference = 0.0
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.speed, self.t = 0.0, 0.0, 0
        self.reference = self.np_random.uniform(-1, 1)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = float(np.clip(action[0], -1, 1))
        if self.plant == "integrator":
            self.speed += 0.1 * force
            self.position += 0.1 * self.speed
        else:  # here the speed is the state of the actuator
            self.speed += 0.3 * (force - self.speed)
            self.position += 0.1 * (2 * self.speed - self.position + 0.5 * self.np_random.normal())
        reward = -((self.position - self.reference) ** 2) - 0.01 * force**2
        if self.np_random.random() < 0.02:
            self.reference = self.np_random.uniform(-1, 1)
        self.t += 1
        return self._observation(), reward, False, self.t >= 200, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.position, self.speed, self.reference], dtype=np.float32)


for name in ("Integrator", "Lag"):
    gym.register(f"references/{name}-v0", entry_point=Tracking, kwargs={"plant": name.lower()})
