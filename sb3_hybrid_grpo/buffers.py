"""Rollout buffers of SB3 and sb3-contrib, with a column for every member of every group."""

from collections.abc import Generator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch as th
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_hybrid_grpo.advantages import Baseline, gae_group, group_baseline, grpo_advantage, paper_advantage
from sb3_hybrid_grpo.transforms import Transform

_BLOCK = 2**24
"""Bytes of observations that are permuted at once: many small minibatches, or one of images."""
AdvantageEstimator = Literal["hybrid", "paper", "paper_per_sample", "grpo"]


class Estimation(NamedTuple):
    """
    How advantages are estimated, see :mod:`sb3_hybrid_grpo.advantages`.

    :param estimator: ``"hybrid"``, ``"paper"``, ``"paper_per_sample"`` or ``"grpo"``
    :param group_baseline: Share β of the other members' mean advantage to subtract; ``"auto"``: estimated from the rollout
    :param reward_transform: f(R), applied when advantages are computed; ``rewards`` stay raw
    """

    estimator: AdvantageEstimator = "hybrid"
    group_baseline: float | Literal["auto"] = "auto"
    reward_transform: Transform = Transform(None, 1)


class HybridRolloutBuffer(RolloutBuffer):
    """
    Adds groups to one of SB3's rollout buffers, and takes that buffer's arguments.

    A rollout of N members in each of E envs has N·E columns, member by member: column ``m * E + e`` is member m of env e.
    With N = 1 the layout is SB3's. ``episode_starts`` marks the steps at which an episode starts or a sibling forks.
    """

    plain_TEN: np.ndarray
    """Advantages of the estimator "hybrid" before the group baseline is subtracted."""
    estimation = Estimation()
    n_samples = 1

    def begin(self, n_steps: int, n_groups: int, n_samples: int) -> None:
        """
        Make room for a rollout.

        :param n_steps: T, the number of executed steps
        :param n_groups: E, the number of envs
        :param n_samples: N, the members of a group; 1 for a rollout without siblings
        """
        self.buffer_size, self.n_envs, self.n_samples = n_steps, n_groups * n_samples, n_samples
        self.reset()

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        shape = (self.buffer_size, self.n_envs)
        self.next_values = np.zeros(shape, dtype=np.float32)
        self.terminated = np.zeros(shape, dtype=bool)
        self.cut = np.zeros(shape, dtype=bool)
        self.baseline = Baseline(0.0, 0.0)
        self._learned = False

    def add_ends(self, terminated: np.ndarray, cut: np.ndarray, values: np.ndarray) -> None:
        """
        Store which members are terminated or cut at the step that was added last.

        :param terminated: Whether the member's episode ended in a terminal state, ``(N * E,)``
        :param cut: Whether the member does not go on at the next step, for any reason, ``(N * E,)``
        :param values: V of the next state for each member that is cut but not terminated, in order
        """
        step = self.pos - 1
        self.terminated[step], self.cut[step] = terminated, cut
        self.next_values[step, cut & ~terminated] = values

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Apply f(R) and the estimator. Can be called again, for example after a callback has changed ``rewards``.

        :param last_values: V of the states in which the members act after the rollout, ``(N * E,)``
        :param dones: Whether a member is cut at the rollout's last step, ``(N * E,)``
        """
        following = np.concatenate([self.values[1:], last_values.cpu().numpy().reshape(1, -1)])
        cut = np.concatenate([self.cut[:-1], dones[None]]).astype(bool)
        columns = (self.rewards, self.values, np.where(cut, self.next_values, following), self.terminated, cut)
        raw_TEN, values_TEN, next_values_TEN, terminated_TEN, cut_TEN = map(self.as_TEN, columns)
        starts_TEN = self.as_TEN(self.episode_starts) > 0
        estimator, beta, transform = self.estimation
        rewards_TEN = transform(raw_TEN, starts_TEN, self.gamma, learn=not self._learned)
        self._learned = True
        if estimator == "grpo":
            advantages_TEN, returns_TEN = grpo_advantage(rewards_TEN, cut_TEN, self.gamma), values_TEN
        elif estimator != "hybrid":
            advantages_TEN, returns_TEN = paper_advantage(
                *(rewards_TEN, values_TEN, next_values_TEN, terminated_TEN, starts_TEN, self.gamma),
                per_sample=estimator == "paper_per_sample",
            )
        else:
            advantages_TEN = gae_group(
                *(rewards_TEN, values_TEN, next_values_TEN, terminated_TEN, cut_TEN, self.gamma, self.gae_lambda)
            )
            returns_TEN, self.plain_TEN = values_TEN + advantages_TEN, advantages_TEN
            if self.n_samples > 1:
                advantages_TEN, self.baseline = group_baseline(advantages_TEN, beta)
        both = (advantages_TEN, returns_TEN)
        self.advantages, self.returns = (one.swapaxes(1, 2).reshape(self.values.shape) for one in both)

    def as_TEN(self, array: np.ndarray) -> np.ndarray:
        """
        Give each axis its own dimension.

        :param array: One of the buffer's arrays, before :meth:`get` flattens it, ``(T, N * E, ...)``
        :return: A view, ``(T, E, N, ...)``
        """
        array_TEN: np.ndarray = array.reshape(len(array), self.n_samples, -1, *array.shape[2:]).swapaxes(1, 2)
        return array_TEN

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """
        Go through the rollout once, in random order.

        :param batch_size: Samples in a minibatch (None: all of them)
        :return: The minibatches that SB3's buffer gives, as views of permuted copies of parts of the rollout
        """
        n_samples, observations = self.buffer_size * self.n_envs, self.observations
        arrays = observations.values() if isinstance(observations, dict) else [observations]
        size = batch_size or n_samples
        block = size * max(1, _BLOCK * n_samples // (size * (1 + sum(one.nbytes for one in arrays))))
        for samples in super().get(block):
            for start in range(0, len(samples.actions), size):
                yield type(samples)(*(_rows(part, slice(start, start + size)) for part in samples))


class _MemoryStorage(HybridRolloutBuffer):
    """Adds forks to one of sb3-contrib's recurrent rollout buffers: a forked sibling starts with the memory of member 0."""

    hidden_state_shape: tuple[int, int, int, int]

    def reset(self) -> None:
        """Forget the rollout."""
        self.hidden_state_shape = (self.buffer_size, self.hidden_state_shape[1], self.n_envs, self.hidden_state_shape[3])
        super().reset()
        # siblings that are forked in mid-episode, and start with the memory of member 0
        self.forks = np.zeros((self.buffer_size, self.n_envs), dtype=np.float32)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """
        Go through the rollout once, column by column, as sb3-contrib's buffer does.

        :param batch_size: Samples in a minibatch (None: all of them)
        :return: Minibatches of sequences
        """
        self._forks = self.swap_and_flatten(self.forks)
        yield from super(HybridRolloutBuffer, self).get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, env_change: np.ndarray, env: Any = None) -> Any:  # type: ignore[override]
        """A fork starts a sequence but no episode: at an episode's start the policy would clear the memory."""
        theirs: Any = super()
        samples = theirs._get_samples(batch_inds, env_change, env)
        episode_starts = self.episode_starts[batch_inds] * (1 - self._forks[batch_inds])
        return samples._replace(episode_starts=self.pad_and_flatten(episode_starts))  # type: ignore[attr-defined]


class HybridDictRolloutBuffer(HybridRolloutBuffer, DictRolloutBuffer):
    __doc__ = HybridRolloutBuffer.__doc__


class MaskableHybridRolloutBuffer(HybridRolloutBuffer, MaskableRolloutBuffer):
    __doc__ = HybridRolloutBuffer.__doc__


class MaskableHybridDictRolloutBuffer(HybridRolloutBuffer, MaskableDictRolloutBuffer):
    __doc__ = HybridRolloutBuffer.__doc__


class RecurrentHybridRolloutBuffer(_MemoryStorage, RecurrentRolloutBuffer):
    __doc__ = HybridRolloutBuffer.__doc__


class RecurrentHybridDictRolloutBuffer(_MemoryStorage, RecurrentDictRolloutBuffer):  # type: ignore[misc]
    __doc__ = HybridRolloutBuffer.__doc__


def _rows(part: Any, rows: slice) -> Any:
    """Rows of a tensor, or of each tensor of a dict."""
    return {key: value[rows] for key, value in part.items()} if isinstance(part, dict) else part[rows]
