"""HybridGRPO for policies with a memory."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from sb3_hybrid_grpo.branching import Groups, GroupStep
from sb3_hybrid_grpo.buffers import RecurrentHybridDictRolloutBuffer, RecurrentHybridRolloutBuffer
from sb3_hybrid_grpo.group_rollouts import Acted, GroupRollouts
from sb3_hybrid_grpo.member_calls import tensor_of
from sb3_hybrid_grpo.signatures import show_arguments


@show_arguments
class RecurrentHybridGRPO(GroupRollouts, RecurrentPPO):
    """
    :class:`HybridGRPO` with a memory (LSTM): sb3-contrib's :class:`RecurrentPPO` with groups. With ``n_samples=1`` it trains
    bit for bit as RecurrentPPO.

    A forked sibling starts with the memory of member 0.

    :param args: RecurrentPPO's arguments, in its order
    :param kwargs: RecurrentPPO's arguments by name, and the arguments of :class:`GroupRollouts` except ``action_selection``
    """

    _without_groups = RecurrentPPO
    _buffer_classes = None
    _last_lstm_states: Any

    def _read_arguments(self) -> None:
        if self.action_selection != "on_policy":
            raise ValueError(
                f"Received action_selection={self.action_selection!r}: with a memory, the value of a state depends on earlier "
                "observations, and actions are not compared. Use action_selection='on_policy'."
            )
        super()._read_arguments()

    def _setup_model(self) -> None:
        super()._setup_model()
        is_dict = isinstance(self.observation_space, spaces.Dict)
        self.rollout_buffer = (RecurrentHybridDictRolloutBuffer if is_dict else RecurrentHybridRolloutBuffer)(
            *(self.n_steps, self.observation_space, self.action_space, self.rollout_buffer.hidden_state_shape, self.device),
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
        )

    def _memory(self, groups: Groups, n_members: int) -> tuple[RNNStates, np.ndarray]:
        """
        LSTM states for the members' next actions, and whether an episode starts for a member.

        A forked sibling takes the states of member 0. The policy clears the states where an episode starts.
        """
        starts = np.asarray(self._last_episode_starts, dtype=np.float32)
        if n_members == 1:
            return _each(lambda state: state[:, : self.n_envs].contiguous(), self._last_lstm_states), starts
        forks_NE = np.concatenate([np.zeros((1, self.n_envs), dtype=bool), groups.starts_ME])
        columns_NE = np.arange(forks_NE.size).reshape(forks_NE.shape)
        columns = th.as_tensor(np.where(forks_NE, columns_NE[:1], columns_NE).reshape(-1), device=self.device)
        starts_NE = np.where(forks_NE, starts, 0.0).astype(np.float32)
        starts_NE[0] = starts
        return _each(lambda state: state[:, columns], self._last_lstm_states), starts_NE.reshape(-1)

    def _act(self, obs: Any, groups: Groups, n_members: int) -> Acted:
        memory, starts = self._memory(groups, n_members)
        self._starts = starts
        *acted, self._last_lstm_states = self.policy(obs, memory, th.as_tensor(starts, device=self.device))
        return *acted, {"lstm_states": memory}

    def _store_ends(self, buffer: Any, step: GroupStep) -> None:
        buffer.forks[buffer.pos - 1] = buffer.episode_starts[buffer.pos - 1] * (1 - self._starts)
        super()._store_ends(buffer, step)

    def _values_reached(self, rows: list[Any], columns: np.ndarray) -> Any:
        memory = tuple(state[:, columns].contiguous() for state in self._last_lstm_states.vf)
        no_start = th.zeros(len(columns), device=self.device)
        return self.policy.predict_values(tensor_of(rows, self.device), memory, no_start).cpu().numpy().flatten()

    def _last_values(self, obs: Any, groups: Groups, n_members: int) -> Any:
        memory, starts = self._memory(groups, n_members)
        return self.policy.predict_values(obs, memory.vf, th.as_tensor(starts, device=self.device))

    def _distribution_of(self, obs: Any, steps: slice) -> Any:
        """Each row is a sequence of one step, with the LSTM states stored for it."""
        buffer = self.rollout_buffer
        stored = (buffer.hidden_states_pi[steps], buffer.cell_states_pi[steps])  # (steps, layers, columns, size)
        memory = tuple(buffer.to_torch(one.swapaxes(0, 1).reshape(one.shape[1], -1, one.shape[3])) for one in stored)
        starts = buffer.episode_starts[steps] * (1 - buffer.forks[steps])
        return self.policy.get_distribution(obs, memory, buffer.to_torch(starts.reshape(-1)))[0]


def _each(function: Any, states: RNNStates) -> RNNStates:
    """Apply a function to hidden and cell states, of the actor and of the critic."""
    pi, vf = (tuple(map(function, part)) for part in states)
    return RNNStates(pi, vf)
