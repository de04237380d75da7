"""Actions from a policy's forward pass, replayed where that gives the same, and brought within the action space."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_hybrid_grpo.errors import DIVERGED
from sb3_hybrid_grpo.graph_replay import GraphReplay, can_be_replayed


class Sampling:
    """
    A policy's forward pass.

    :param policy: The policy
    :param observation_space: Its observation space
    """

    def __init__(self, policy: Any, observation_space: spaces.Space[Any]) -> None:
        self.policy = policy
        self._reads = _reads(policy, observation_space)
        self._replay = None if self._reads is None else GraphReplay(policy)

    def fits(self, policy: Any, observation_space: spaces.Space[Any]) -> bool:
        """
        :param policy: A policy
        :param observation_space: Its observation space
        :return: Whether this is its forward pass as it is now
        """
        return self.policy is policy and self._reads == _reads(policy, observation_space)

    def __call__(self, obs: Any) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: Observations
        :return: Actions, values, log-probabilities
        :raises ValueError: if the policy gives NaN
        """
        if self._replay is None or not isinstance(obs, th.Tensor):
            actions, values, log_probs = self.policy(obs)
            return actions, values, log_probs
        actions, values, log_probs = self._replay(obs)
        if th.isnan(log_probs).any():
            raise ValueError(DIVERGED)
        return actions, values, log_probs


def _reads(policy: Any, observation_space: spaces.Space[Any]) -> tuple[Any, ...] | None:
    """Everything that makes the forward pass another function if it changes; None where it is not replayed."""
    known = can_be_replayed(policy, observation_space)
    return (*policy.modules(), *map(id, policy.parameters())) if known else None


def within_space(policy: Any, action_space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """
    Bring a policy's actions into the form that the env wants, as PPO does.

    :param policy: The policy
    :param action_space: The env's action space
    :param actions: Actions
    :return: The actions, unscaled if they are squashed, else clipped
    """
    if not isinstance(action_space, spaces.Box):
        return actions
    if getattr(policy, "squash_output", False):
        unscaled: np.ndarray = policy.unscale_action(actions)
        return unscaled
    clipped: np.ndarray = np.clip(actions, action_space.low, action_space.high)
    return clipped
