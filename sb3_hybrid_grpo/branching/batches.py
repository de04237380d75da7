"""Batches of observations: arrays, or dicts of arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.fanout import Observations
from sb3_hybrid_grpo.errors import BranchingError


def is_truncated(info: dict[str, Any]) -> bool:
    """
    Whether an episode that ended was cut off.

    :param info: The info of its last step
    :return: False if it ended in a terminal state
    """
    return bool(info.get("TimeLimit.truncated", False)) and info.get("terminal_observation") is not None


def row_of(observations: Observations, row: int) -> Any:
    """
    Take one observation out of a batch.

    :param observations: The batch
    :param row: Its place
    :return: A copy of the observation
    """
    return each(lambda values: values[row].copy(), observations)


def check_numbers(observations: Observations, rewards: np.ndarray, n_envs: int, step: int) -> None:
    """
    Look for a NaN. Siblings pass by VecCheckNan, and one in them would reach the policy through the loss alone.

    :param observations: What the siblings of all envs saw, sibling by sibling
    :param rewards: The rewards that came with it
    :param n_envs: E, the number of envs
    :param step: Number of the step, for the message
    :raises BranchingError: if there is one
    """
    named = {f"observation {key!r}": its for key, its in observations.items()} if isinstance(observations, dict) else {}
    for name, values in {"reward": rewards, **(named or {"observation": observations})}.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            row = int(np.flatnonzero(np.isnan(values.reshape(len(values), -1)).any(axis=1))[0])
            raise BranchingError(
                f"The {name} of member {row // n_envs + 1} (a sibling) of env {row % n_envs} is NaN at step {step} of the "
                f"training: {values[row]}. Find out what the env does with the actions it was given; VecCheckNan finds a NaN "
                "of member 0."
            )


def each(function: Callable[..., Any], *batches: Observations) -> Observations:
    """
    Apply a function to arrays, or key by key to dicts of arrays.

    :param function: The function
    :param batches: Its arguments
    :return: What it made of them
    """
    if isinstance(batches[0], dict):
        return {key: function(*(batch[key] for batch in batches)) for key in batches[0]}
    return function(*batches)
