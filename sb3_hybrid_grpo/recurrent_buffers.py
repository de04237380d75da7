"""Rollout buffers for groups whose policy has a memory: sequences instead of single steps."""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import TensorDict

from sb3_hybrid_grpo.buffers import GroupStorage, HybridDictRolloutBuffer, HybridRolloutBuffer


class RecurrentHybridRolloutBufferSamples(NamedTuple):
    """
    :class:`HybridRolloutBufferSamples` in sequences. What the memory is run over is padded to ``(sequences * length, ...)``;
    all else has one row a sample, in the same order.
    """

    observations: th.Tensor | TensorDict
    """Padded."""
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor
    lstm_states: RNNStates
    """The memory that each sequence begins with, ``(layers, sequences, hidden size)``."""
    mask: th.Tensor
    """Which rows of the padded ones are samples."""


class _MemoryStorage(GroupStorage):
    """
    Adds the memory that each step begins with. Mixed in before one of the rollout buffers for groups.

    :param memory_shape: Layers and hidden size
    """

    def __init__(self, *args: Any, memory_shape: tuple[int, int], **kwargs: Any) -> None:
        self.memory_shape = memory_shape
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        # hidden and cell states, of the actor and of the critic
        self.memories = np.zeros((4, self.buffer_size, self.n_envs, *self.memory_shape), dtype=np.float32)

    def add_memory(self, states: RNNStates) -> None:
        """
        Store the memory that the step which ``add`` stores next begins with; zero where an episode does.

        :param states: Of all members, ``(layers, N * E, hidden size)`` each
        """
        for stored, state in zip(self.memories, (*states.pi, *states.vf), strict=True):
            stored[self.pos] = state.cpu().numpy().swapaxes(0, 1)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """
        Go through the rollout once, member by member, from a random place on, as sb3-contrib's RecurrentPPO does.

        :param batch_size: Samples a minibatch (None: all of them)
        :return: Minibatches
        """
        if not self.full:
            raise RuntimeError(f"The buffer has {self.pos} of {self.buffer_size} steps: collect a rollout first.")
        n_samples = self.buffer_size * self.n_envs
        indices = np.roll(np.arange(n_samples), -np.random.randint(n_samples))
        for start in range(0, n_samples, batch_size or n_samples):
            yield self._get_samples(indices[start : start + (batch_size or n_samples)])

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        observations, parts = self._gather(batch_inds)
        columns, steps = np.divmod(batch_inds, self.buffer_size)
        first = (self.episode_starts[steps, columns] > 0) | (steps == 0)
        first[0] = True
        sequences = np.cumsum(first) - 1
        begins = np.flatnonzero(first)
        places = np.arange(len(batch_inds)) - begins[sequences]
        mask = np.zeros((len(begins), places.max() + 1), dtype=bool)
        mask[sequences, places] = True
        memories = [self._to_device(one[steps[begins], columns[begins]].swapaxes(0, 1).copy()) for one in self.memories]
        flat_mask = self._to_device(mask.reshape(-1))
        actions, values, log_probs, advantages, returns, weights = (part.flatten(0, 1) for part in parts)
        return RecurrentHybridRolloutBufferSamples(
            *(padded(observations, flat_mask), actions, values, log_probs, advantages, returns, weights),
            RNNStates((memories[0], memories[1]), (memories[2], memories[3])),
            flat_mask,
        )


class RecurrentHybridRolloutBuffer(_MemoryStorage, HybridRolloutBuffer):
    __doc__ = GroupStorage.__doc__


class RecurrentHybridDictRolloutBuffer(_MemoryStorage, HybridDictRolloutBuffer):  # type: ignore[misc]
    __doc__ = GroupStorage.__doc__


def padded(rows: Any, mask: th.Tensor) -> Any:
    """
    Spread samples over padded sequences.

    :param rows: One row a sample, or a dict of such
    :param mask: Which of the padded rows are samples
    :return: The padded rows, zero where there is no sample
    """
    if isinstance(rows, dict):
        return {key: padded(value, mask) for key, value in rows.items()}
    spread = rows.new_zeros((len(mask), *rows.shape[1:]))
    spread[mask] = rows
    return spread
