"""Pictures of observations, for envs without graphics of their own."""

from typing import Any, Generic, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

HEIGHT, BAR, GAP = 200, 40, 10
ActionType = TypeVar("ActionType")


class PicturedEnv(gym.Env[npt.NDArray[Any], ActionType], Generic[ActionType]):
    """An env that shows its observation with ``render_mode="rgb_array"``: a bar for each number, up or down by its tanh."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as gymnasium's)

    def _observe(self) -> npt.NDArray[Any]:
        """The observation."""
        raise NotImplementedError

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the observation: a picture of shape (height, width, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        observation = np.atleast_1d(self._observe())
        picture = np.full((HEIGHT, GAP + (BAR + GAP) * len(observation), 3), 255, dtype=np.uint8)
        middle = HEIGHT // 2
        for number, height in enumerate(np.rint(np.tanh(observation) * (middle - GAP)).astype(int).tolist()):
            left = GAP + (BAR + GAP) * number
            picture[middle - max(height, 0) : middle - min(height, 0) + 1, left : left + BAR] = (0, 114, 178)
        picture[middle] = 0
        return picture
