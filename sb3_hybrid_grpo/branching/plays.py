"""What an env shows when it plays some actions, and where that differs from what it showed before."""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

Play = list[dict[str, Any]]
"""What each step showed, by name."""


def played(env: Any, actions: Sequence[Any]) -> Play:
    """
    Play some actions, until an episode ends.

    :param env: The env, or what steps like one
    :param actions: The actions
    :return: What it showed
    """
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        step = {"observation": copy.deepcopy(observation), "reward": float(reward)}
        seen.append(step | {"terminated": bool(terminated), "truncated": bool(truncated)})
        if terminated or truncated:
            break
    return seen


def has_ended(play: Play) -> bool:
    """
    :param play: What an env showed
    :return: Whether its episode ended
    """
    return bool(play) and bool(play[-1]["terminated"] or play[-1]["truncated"])


class RandomActions:
    """
    Actions drawn at random, the same for every env.

    :param env: The env; the generator of its own space, which it may draw from itself, is not touched
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(0)

    def draw(self, number: int) -> list[Any]:
        """
        :param number: How many
        :return: The actions
        """
        return [self.space.sample() for _ in range(number)]


def difference(truth: Play, again: Play) -> str | None:
    """
    Compare bit for bit.

    :param truth: What an env showed
    :param again: What it showed again
    :return: The first difference: field, step, values; None without one
    """
    for number, (one, other) in enumerate(zip(truth, again, strict=False), start=1):
        if one.keys() != other.keys():
            return f"once the episode ended at step {number - 1}, and once it did not"
        for name in one:
            found = _first_difference(name, one[name], other[name])
            if found is not None:
                return f"{found} at step {number}"
    if len(truth) == len(again):
        return None
    return f"once the episode ended at step {min(len(truth), len(again))}, and once it did not"


def _first_difference(name: str, one: Any, other: Any) -> str | None:
    if pickle.dumps(one) == pickle.dumps(other):
        return None
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [(f"{name}[{key!r}]", one[key], other[key]) for key in one]
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        parts = [(f"{name}[{place}]", *both) for place, both in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape and (one != other).any():
        unequal = np.argwhere(one != other)
        place = tuple(unequal[0].tolist())
        return f"{name}{list(place) or ''}: {one[place]} became {other[place]}"
    else:
        return f"{name}: {one!r} became {other!r}"
    return next((found for part in parts if (found := _first_difference(*part)) is not None), None)
