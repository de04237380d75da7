"""What happens in one step of groups."""

from typing import Any, NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching.answers import SiblingSteps
from sb3_hybrid_grpo.branching.fanout import Observations


class GroupStep(NamedTuple):
    """One step of E groups of N members. Member 0's part is what ``env.step`` returned."""

    observations: Observations
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]
    rewards_NE: np.ndarray
    terminated_NE: np.ndarray
    cut_NE: np.ndarray
    """Members that do not go on: their episode ended, or (siblings) they fork at the next step."""
    reached: Observations
    """The observations that the cut but not terminated members reached, in the order of the flat mask; None without one."""
    sibling_ends: int
    """How many siblings' episodes ended."""
    order_NE: np.ndarray | None = None
    """Which action each member took, where that was not the one of its own number."""


class MemberZero(NamedTuple):
    """A step of member 0 in all envs, as ``env.step`` returned it, and whether it ended for good."""

    observations: Observations
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]
    terminated_E: np.ndarray
    reached: list[Observations]
    """The last observations of those that were truncated, as a batch; no batch without one."""


class SiblingRows(NamedTuple):
    """What the siblings saw in a step, before any VecEnv wrapper."""

    steps: list[SiblingSteps]
    observations: Observations
    rewards: np.ndarray
    restarted: np.ndarray
    """Those that reset by themselves, places among the M·E."""
    firsts: Observations
    """Their first observations; None without any."""
