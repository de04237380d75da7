"""Rollout buffers for groups whose members may not take every action in every state."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TensorDict

from sb3_hybrid_grpo.buffers import GroupStorage, HybridDictRolloutBuffer, HybridRolloutBuffer


class MaskableHybridRolloutBufferSamples(NamedTuple):
    """:class:`HybridRolloutBufferSamples`, and which actions were valid where each of these was taken."""

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor
    action_masks: th.Tensor


class _MaskStorage(GroupStorage):
    """Adds masks, one a state. Mixed in before one of the rollout buffers for groups."""

    samples_class = MaskableHybridRolloutBufferSamples
    action_space: spaces.Space[Any]

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        columns = self.n_envs // self.samples_per_state
        self.action_masks: np.ndarray = np.ones((self.buffer_size, columns, mask_size(self.action_space)), dtype=bool)

    def add_masks(self, action_masks: np.ndarray) -> None:
        """
        Store which actions are valid in the states of the step that ``add`` stores next. Without this, all are.

        :param action_masks: One mask a state, ``(columns, ...)``
        """
        self.action_masks[self.pos] = action_masks.reshape(self.action_masks.shape[1:])

    def _gather(self, states: np.ndarray) -> tuple[Any, list[th.Tensor]]:
        observations, parts = super()._gather(states)
        columns, steps = np.divmod(states, self.buffer_size)
        masks = np.repeat(self.action_masks[steps, columns][:, None], self.samples_per_state, axis=1)
        return observations, [*parts, self._to_device(masks)]


class MaskableHybridRolloutBuffer(_MaskStorage, HybridRolloutBuffer):
    __doc__ = GroupStorage.__doc__


class MaskableHybridDictRolloutBuffer(_MaskStorage, HybridDictRolloutBuffer):  # type: ignore[misc]
    __doc__ = GroupStorage.__doc__


def mask_size(action_space: spaces.Space[Any]) -> int:
    """
    Count the numbers in the mask of a state, as sb3-contrib lays it out.

    :param action_space: The action space
    :return: One for each action, for each choice of each of several actions, or two for each binary action
    """
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(action_space.nvec.sum())
    if isinstance(action_space, spaces.MultiBinary):
        return 2 * int(np.prod(action_space.shape))
    raise ValueError(f"Received the action space {action_space}: only Discrete, MultiDiscrete and MultiBinary have masks.")
