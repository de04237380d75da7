"""Rollout buffers for groups: SB3's, with a column for every member of every group."""

from collections.abc import Generator, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo.advantages import Baseline, gae_group, group_baseline, grpo_advantage, paper_advantage
from sb3_hybrid_grpo.transforms import Transform, apply_transform

AdvantageEstimator = Literal["hybrid", "paper", "paper_per_sample", "grpo"]
_CHUNK_STATES, _CHUNK_BYTES = 4096, 2**22
"""States reached wait until there are so many, or so large ones; then their values are computed at once."""


class HybridRolloutBufferSamples(NamedTuple):
    """SB3's :class:`RolloutBufferSamples` (its Dict form, where observations are a dict), and the samples' weights π/μ."""

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor


class GroupStorage:
    """
    What both forms of the buffer share. Mixed in before one of SB3's rollout buffers.

    SB3's arrays ``(T, columns)`` have N·E columns, member by member: column ``m * E + e`` is member m of group e, so that
    with N = 1, and for N·E independent members, everything is where SB3 would put it. Where all members of a group share
    their state (``shared_states``) an observation is stored once a state: ``observations`` has E columns.

    :param buffer_size: T, the number of steps
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: GAE's λ
    :param gamma: Discount factor
    :param n_envs: E, the number of groups
    :param n_samples: N, the number of members of a group
    :param shared_states: Whether all members of a group are in one state at every step
    :param forks: Whether siblings fork from member 0; False: all members are independent
    :param advantage_estimator: ``"hybrid"``, ``"paper"``, ``"paper_per_sample"`` or ``"grpo"``: functions of
        :mod:`sb3_hybrid_grpo.advantages`
    :param group_baseline: Share β of the other members' advantage, learned if ``"auto"``
    :param reward_transform: f(R), applied when advantages are computed; ``rewards`` stay raw
    """

    samples_class: ClassVar[Any] = HybridRolloutBufferSamples

    # SB3's, named for the type checker
    buffer_size: int
    n_envs: int
    observation_space: spaces.Space[Any]
    action_dim: int
    pos: int
    full: bool
    gamma: float
    gae_lambda: float
    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    log_probs: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray
    episode_starts: np.ndarray

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        n_samples: int = 1,
        shared_states: bool = True,
        forks: bool = True,
        advantage_estimator: AdvantageEstimator = "hybrid",
        group_baseline: float | Literal["auto"] = "auto",
        reward_transform: Transform | None = None,
    ) -> None:
        self.n_groups, self.n_samples, self.shared_states, self.forks = n_envs, n_samples, shared_states, forks
        self.advantage_estimator, self.group_baseline = advantage_estimator, group_baseline
        self.reward_transform = reward_transform
        super().__init__(  # type: ignore[call-arg]
            buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs * n_samples
        )

    @property
    def samples_per_state(self) -> int:
        """How many actions a stored observation has."""
        return self.n_samples if self.shared_states else 1

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()  # type: ignore[misc]
        columns = self.n_envs // self.samples_per_state
        self.observations = _each(
            lambda array: np.zeros((self.buffer_size, columns, *array.shape[2:]), dtype=array.dtype), self.observations
        )
        shape = (self.buffer_size, self.n_envs)
        self.weights = np.ones(shape, dtype=np.float32)
        self.next_values = np.zeros(shape, dtype=np.float32)
        self.terminated = np.zeros(shape, dtype=bool)
        self.cut = np.zeros(shape, dtype=bool)
        self.baseline = Baseline(0.0, 0.0)
        parts = self.observations.values() if isinstance(self.observations, dict) else [self.observations]
        self._chunk = max(1, min(_CHUNK_STATES, _CHUNK_BYTES // max(1, sum(part[0, 0].nbytes for part in parts))))
        self._pending: list[tuple[np.ndarray, Any, Any]] = []
        self._n_pending = 0

    def add_ends(self, terminated: np.ndarray, cut: np.ndarray, reached: Any, memory: Any = None) -> None:
        """
        Store which members do not go on after the step that ``add`` stores next.

        :param terminated: Members whose episode ended for good, ``(N, E)``
        :param cut: Members that do not go on at the next step for whatever reason, ``(N, E)``
        :param reached: The observations that the cut but not terminated members reached, in order; None if there is none
        :param memory: What else :meth:`pending` is to give back with them
        """
        self.terminated[self.pos], self.cut[self.pos] = terminated.reshape(-1), cut.reshape(-1)
        if reached is not None:
            columns = np.flatnonzero(self.cut[self.pos] & ~self.terminated[self.pos])
            self._pending.append((self.pos * self.n_envs + columns, reached, memory))
            self._n_pending += len(columns)

    def add_weights(self, weights: th.Tensor) -> None:
        """
        Store how the actions that ``add`` stores next are weighted. Without this, all weights are 1.

        :param weights: π/μ, the policy's probability of each action over that with which it was drawn, ``(N * E,)``
        """
        self.weights[self.pos] = weights.cpu().numpy()

    def pending(self, rest: bool = True) -> Iterator[tuple[np.ndarray, Any, list[Any]]]:
        """
        :param rest: Whether none is to be left; else only what makes a large batch is given
        :return: Large batches of the states reached whose values are wanted: their places, for :meth:`set_next_values`,
            their observations, and the memories that were stored with them, one a step
        """
        while self._pending and (rest or self._n_pending >= self._chunk):
            chunk, size = [], 0
            while self._pending and size < self._chunk:
                chunk.append(self._pending.pop(0))
                size += len(chunk[-1][0])
            self._n_pending -= size
            places, reached, memories = zip(*chunk, strict=True)
            yield np.concatenate(places), _each(lambda *parts: np.concatenate(parts), *reached), list(memories)

    def set_next_values(self, places: np.ndarray, values: th.Tensor) -> None:
        """
        Store values of states reached.

        :param places: As :meth:`pending` gave them
        :param values: V of those states
        """
        self.next_values.reshape(-1)[places] = values.cpu().numpy().flatten()

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """
        Store a step of all members. See SB3's :class:`RolloutBuffer`.

        :param obs: Observations, one a state
        :param action: Actions of all members, ``(N * E, ...)``
        :param reward: Raw rewards, ``(N * E,)``
        :param episode_start: Whether a member's trace starts with this step, ``(N * E,)``
        :param value: V of the states, one a state
        :param log_prob: Log-probabilities of the actions, ``(N * E,)``
        """
        # the reshape gives a discrete observation the axis that SB3 stores it with
        _each(lambda stored, new: stored.__setitem__(self.pos, new.reshape(stored.shape[1:])), self.observations, obs)
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos].reshape(self.samples_per_state, -1)[:] = value.cpu().numpy().flatten()
        self.log_probs[self.pos] = log_prob.cpu().numpy().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Apply f(R) and the estimator.

        :param last_values: V of the states that the rollout ends in, one a state
        :param dones: Whether a member does not go on there, ``(N * E,)``
        """
        last = np.tile(last_values.cpu().numpy().flatten(), self.samples_per_state)
        following = np.concatenate([self.values[1:], last[None]])
        cut = np.concatenate([self.cut[:-1], dones[None]])
        self.next_values = np.where(cut, self.next_values, following)

        starts_TEN = self._as_TEN(self.episode_starts) > 0
        raw_TEN = self._as_TEN(self.rewards)
        rewards_TEN = apply_transform(self.reward_transform, raw_TEN, starts_TEN, self.gamma, self.forks)
        values_TEN, next_values_TEN, terminated_TEN, cut_TEN = map(
            self._as_TEN, (self.values, self.next_values, self.terminated, cut)
        )
        weights_TEN = self._as_TEN(self.weights) if (self.weights != 1).any() else None
        if self.advantage_estimator == "grpo":
            advantages_TEN = grpo_advantage(rewards_TEN, cut_TEN, self.gamma)
            returns_TEN = values_TEN
        elif self.advantage_estimator in ("paper", "paper_per_sample"):
            advantages_TEN, returns_TEN = paper_advantage(
                *(rewards_TEN, values_TEN, next_values_TEN, terminated_TEN, starts_TEN, self.gamma),
                per_sample=self.advantage_estimator == "paper_per_sample",
                weights_TEN=weights_TEN,
            )
        else:
            advantages_TEN = gae_group(
                *(rewards_TEN, values_TEN, next_values_TEN, terminated_TEN, cut_TEN),
                *(self.gamma, self.gae_lambda, self.forks, weights_TEN),
            )
            returns_TEN = values_TEN + advantages_TEN
            if self.forks and self.n_samples > 1:
                advantages_TEN, self.baseline = group_baseline(advantages_TEN, self.group_baseline, weights_TEN)
        self.advantages, self.returns = self._as_columns(advantages_TEN), self._as_columns(returns_TEN)

    def _as_TEN(self, array: np.ndarray) -> np.ndarray:
        array_TEN: np.ndarray = array.reshape(self.buffer_size, self.n_samples, self.n_groups).swapaxes(1, 2)
        return array_TEN

    def _as_columns(self, array_TEN: np.ndarray) -> np.ndarray:
        columns: np.ndarray = array_TEN.swapaxes(1, 2).reshape(self.buffer_size, self.n_envs)
        return columns

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """
        Go through the rollout once, in random order. The samples of a shared state stay together.

        :param batch_size: Samples a minibatch (None: all of them)
        :return: Minibatches; their actions, and all that belongs to an action, are sample by sample
        """
        if not self.full:
            raise RuntimeError(f"The buffer has {self.pos} of {self.buffer_size} steps: collect a rollout first.")
        n_states = self.buffer_size * self.n_envs // self.samples_per_state
        step = n_states if batch_size is None else batch_size // self.samples_per_state
        # one copy of everything in the epoch's order: the minibatches are views of it
        observations, parts = self._gather(np.random.permutation(n_states))
        for start in range(0, n_states, step):
            yield self._minibatch(observations, parts, slice(start, start + step))

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        return self._minibatch(*self._gather(batch_inds), slice(None))

    def _gather(self, states: np.ndarray) -> tuple[Any, list[th.Tensor]]:
        """Observations of states, ``(S, ...)``, and what belongs to their actions, ``(S, samples_per_state, ...)``."""
        columns, steps = np.divmod(states, self.buffer_size)
        width = self.n_envs // self.samples_per_state
        where = (steps[:, None], columns[:, None] + width * np.arange(self.samples_per_state))
        stored = (self.actions, self.values, self.log_probs, self.advantages, self.returns, self.weights)
        parts = [part[where] for part in stored]
        parts[0] = parts[0].astype(np.float32, copy=False)  # as SB3 hands out actions of every kind
        observations = _each(lambda one: self._to_device(one[steps, columns]), self.observations)
        return observations, [self._to_device(part) for part in parts]

    def _to_device(self, array: np.ndarray) -> th.Tensor:
        tensor: th.Tensor = self.to_torch(array, copy=False)  # type: ignore[attr-defined]
        return tensor

    def _minibatch(self, observations: Any, parts: list[th.Tensor], rows: slice) -> Any:
        return self.samples_class(
            _each(lambda one: one[rows], observations), *(part[rows].swapaxes(0, 1).flatten(0, 1) for part in parts)
        )


class HybridRolloutBuffer(GroupStorage, RolloutBuffer):
    __doc__ = GroupStorage.__doc__


class HybridDictRolloutBuffer(GroupStorage, DictRolloutBuffer):  # type: ignore[misc]
    __doc__ = GroupStorage.__doc__


def _each(function: Any, *batches: Any) -> Any:
    """Apply a function to arrays, or key by key to dicts of arrays."""
    if isinstance(batches[0], dict):
        return {key: function(*(batch[key] for batch in batches)) for key in batches[0]}
    return function(*batches)
