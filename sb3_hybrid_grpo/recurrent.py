"""HybridGRPO for policies with a memory."""

from typing import Any, ClassVar, cast

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_hybrid_grpo.branching import Groups, GroupStep
from sb3_hybrid_grpo.buffers import HybridRolloutBuffer
from sb3_hybrid_grpo.hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.recurrent_buffers import RecurrentHybridDictRolloutBuffer, RecurrentHybridRolloutBuffer, padded


class RecurrentHybridGRPO(HybridGRPO):
    """
    :class:`HybridGRPO` with a memory (LSTM), as sb3-contrib's :class:`RecurrentPPO` is PPO with one: the policies are
    sb3-contrib's. With ``n_samples=1`` it is RecurrentPPO, to the last parameter.

    A sibling that forks begins with the memory of member 0, one that resets with none.

    :param policy: "MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy", or a class
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: Number of steps to run for each environment per update, RecurrentPPO's default
    :param batch_size: Samples a minibatch, RecurrentPPO's default
    :param args: All further arguments are those of :class:`HybridGRPO`, in its order. ``action_selection`` and
        ``sampling_temperature`` are refused
    :param kwargs: As above
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": RecurrentActorCriticPolicy,
        "CnnLstmPolicy": RecurrentActorCriticCnnPolicy,
        "MultiInputLstmPolicy": RecurrentMultiInputActorCriticPolicy,
    }
    _without_groups = RecurrentPPO
    _buffer_classes = (RecurrentHybridRolloutBuffer, RecurrentHybridDictRolloutBuffer)
    _shares_states = False
    policy: RecurrentActorCriticPolicy

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int = 128,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self._memory: RNNStates | None = None
        self._memory_aside: RNNStates | None = None
        super().__init__(policy, env, learning_rate, n_steps, batch_size, *args, **kwargs)

    def _setup_model(self) -> None:
        if self.action_selection != "on_policy":
            raise ValueError(
                f"Received action_selection={self.action_selection!r}: with a memory, what a state is worth depends on what "
                "was seen before it, and actions are not compared. Use action_selection='on_policy'."
            )
        super()._setup_model()

    def _check_policy(self) -> None:
        if not issubclass(self.policy_class, RecurrentActorCriticPolicy):
            raise ValueError(
                f'Received the policy {self.policy_class.__name__}, which has no memory. Use "MlpLstmPolicy", '
                '"CnnLstmPolicy" or "MultiInputLstmPolicy", or a subclass of '
                "sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy."
            )

    def _buffer_kwargs(self) -> dict[str, Any]:
        lstm = self.policy.lstm_actor
        return {"memory_shape": (lstm.num_layers, lstm.hidden_size)}

    def _regroup(self) -> bool:
        """Free siblings that are put aside for a rollout keep their memory, as they keep their simulators."""
        groups = self._the_groups()
        was_free = groups.free
        forks = super()._regroup()
        if was_free and not groups.free:
            self._memory_aside = self._memory
        elif groups.free and not was_free and self._memory_aside is not None:
            own, theirs = cast(RNNStates, self._memory), self._memory_aside
            self._memory = _each(lambda now, then: th.cat([now[:, : self.n_envs], then[:, self.n_envs :]], dim=1), own, theirs)
        return forks

    def _memory_now(self, groups: Groups) -> RNNStates:
        """What members remember where they act next: a fork, all that member 0 does; where an episode starts, nothing."""
        lstm = self.policy.lstm_actor
        shape = (lstm.num_layers, self.n_envs * self.n_samples, lstm.hidden_size)
        if self._memory is None or self._memory.pi[0].shape != shape:
            zeros = th.zeros(shape, device=self.device)
            self._memory = RNNStates((zeros, zeros), (zeros, zeros))
        starts_NE = np.tile(cast(np.ndarray, self._last_episode_starts), (self.n_samples, 1))
        columns_NE = np.arange(starts_NE.size).reshape(starts_NE.shape)
        if self.n_samples > 1:
            forks_ME = groups.forks_ME
            starts_NE[1:] = np.where(forks_ME, starts_NE[1:], groups.starts_ME)
            columns_NE[1:] = np.where(forks_ME, columns_NE[:1], columns_NE[1:])
        columns = th.as_tensor(columns_NE.reshape(-1), device=self.device)
        goes_on = th.as_tensor(~starts_NE.astype(bool).reshape(-1), device=self.device)[None, :, None]
        return _each(lambda state: state[:, columns] * goes_on, self._memory)

    def _act(self, obs: Any, groups: Groups, buffer: HybridRolloutBuffer) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        memory = self._memory_now(groups)
        cast(RecurrentHybridRolloutBuffer, buffer).add_memory(memory)
        actions, values, log_probs, self._memory = self.policy(obs, memory, self._nobody_starts(memory))
        return actions, values, log_probs

    def _nobody_starts(self, memory: RNNStates) -> th.Tensor:
        """Memories are cleared here, not by the policy."""
        return th.zeros(memory.pi[0].shape[1], device=self.device)

    def _memory_of(self, step: GroupStep) -> Any:
        columns = np.flatnonzero((step.cut_NE & ~step.terminated_NE).reshape(-1))
        return [state[:, columns] for state in cast(RNNStates, self._memory).vf] if len(columns) else None

    def _values(self, obs: Any, memories: list[Any]) -> th.Tensor:
        hidden, cell = th.cat([one[0] for one in memories], dim=1), th.cat([one[1] for one in memories], dim=1)
        return self.policy.predict_values(obs, (hidden, cell), th.zeros(hidden.shape[1], device=self.device))

    def _last_values(self, obs: Any, groups: Groups) -> th.Tensor:
        memory = self._memory_now(groups)
        return self.policy.predict_values(obs, cast(Any, memory.vf), self._nobody_starts(memory))

    def _evaluate(self, batch: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        nobody_starts = th.zeros(len(batch.mask), device=self.device)
        values, log_prob, entropy = self.policy.evaluate_actions(
            batch.observations, padded(actions, batch.mask), batch.lstm_states, nobody_starts
        )
        return values.flatten()[batch.mask], log_prob[batch.mask], None if entropy is None else entropy[batch.mask]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_memory", "_memory_aside"]


def _each(function: Any, *states: RNNStates) -> RNNStates:
    """Apply a function to hidden and cell states, of the actor and of the critic."""
    pi, vf = (tuple(map(function, *parts)) for parts in ([one.pi for one in states], [one.vf for one in states]))
    return RNNStates(cast(Any, pi), cast(Any, vf))
