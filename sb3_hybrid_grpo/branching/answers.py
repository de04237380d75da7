"""What an env answers for its siblings."""

import traceback
from typing import Any, NamedTuple

from sb3_hybrid_grpo.errors import BranchingError


class SiblingSteps(NamedTuple):
    """One step of each of an env's M siblings; a list of M entries each."""

    observations: list[Any]
    """Observations reached, before any reset."""
    rewards: list[float]
    terminated: list[bool]
    truncated: list[bool]
    infos: list[dict[str, Any]]


class SiblingFailure(NamedTuple):
    """A sibling's step or reset raised. Returned, not raised: an exception would end the worker of a SubprocVecEnv."""

    member: int
    error: str
    traceback: str
    refused: bool
    """Whether it is this package that cannot go on, with a message of its own."""

    @classmethod
    def of(cls, member: int, error: Exception) -> "SiblingFailure":
        """
        Describe a failure, to be called where the error is handled.

        :param member: The member
        :param error: What was raised
        :return: The failure
        """
        refused = isinstance(error, BranchingError)
        return cls(member, str(error) if refused else repr(error), traceback.format_exc(), refused)
