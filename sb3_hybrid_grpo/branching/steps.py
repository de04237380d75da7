"""What happens in one step of groups."""

from typing import Any, NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching.fanout import Observations


class GroupStep(NamedTuple):
    """One step of E groups of N members, member by member. Member 0's part is what ``env.step`` returned."""

    new_obs: Observations
    """What each member acts on next, ``(N * E, ...)``. A sibling that forks although its episode goes on: what it reached."""
    rewards: list[np.ndarray]
    """Rewards of each member, ``(E,)``."""
    dones_NE: np.ndarray
    """Members whose own episode ended."""
    infos: list[list[dict[str, Any]]]
    """Infos of each member, E of them."""
    terminated_NE: np.ndarray
    """Members whose own episode ended in a terminal state."""
    cut_NE: np.ndarray
    """Members that do not go on: their episode ended, or (siblings) they fork at the next step."""
    order_NE: np.ndarray | None = None
    """Which action each member took, where that was not the one of its own number."""


class MemberZero(NamedTuple):
    """A step of member 0 in all envs, as ``env.step`` returned it, and whether its episode ended for good."""

    new_obs: Observations
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]
    terminated_E: np.ndarray


class SiblingRows(NamedTuple):
    """What the siblings saw in a step, sibling by sibling, before any VecEnv wrapper."""

    observations: Observations
    rewards: np.ndarray
    terminated_ME: np.ndarray
    ended_ME: np.ndarray
    infos: list[list[dict[str, Any]]]
