"""What an env shows when it plays some actions, and where that differs from what it showed before."""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Play = list[dict[str, Any]]
"""What each step showed, by name."""


def played(env: Any, actions: Sequence[Any]) -> Play:
    """
    Play some actions, until an episode ends.

    :param env: The env, or what steps like one
    :param actions: The actions, as :class:`RandomActions` draws them
    :return: What it showed
    """
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(chosen(env, action))
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


class ValidAction:
    """
    An action that is drawn when the env stands where it is to be taken: one of those that ``action_masks()`` allows there.

    :param space: The action space
    :param seed: What it is drawn by, the same one whenever the mask is the same
    """

    def __init__(self, space: gym.Space[Any], seed: int) -> None:
        self.space, self.seed = space, seed

    def __call__(self, env: Any) -> Any:
        return _counted_from_0(self.space, self._sample(np.asarray(env.get_wrapper_attr("action_masks")()).astype(np.int8)))

    def _sample(self, mask: np.ndarray) -> Any:
        self.space.seed(self.seed)
        if isinstance(self.space, spaces.MultiDiscrete):
            parts = np.split(mask.reshape(-1), np.cumsum(self.space.nvec.reshape(-1))[:-1])
            return self.space.sample(mask=tuple(parts))
        if isinstance(self.space, spaces.MultiBinary):
            zero, one = mask.reshape(-1, 2).T
            return self.space.sample(mask=np.where(zero & one, 2, one).astype(np.int8).reshape(self.space.shape))
        return self.space.sample(mask=mask)


def _counted_from_0(space: gym.Space[Any], action: Any) -> Any:
    """As a policy counts them, whatever the ``start`` of a space."""
    return action - space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else action


def chosen(env: Any, action: Any) -> Any:
    """
    :param env: The env, where it stands
    :param action: An action, as :class:`RandomActions` draws them
    :return: The action to take, one of its own: an env may change it in place
    """
    return action(env) if isinstance(action, ValidAction) else copy.copy(action)


class RandomActions:
    """
    Actions drawn at random, the same for every env; valid ones, where the env has ``action_masks()``.

    :param env: The env; the generator of its own space, which it may draw from itself, is not touched
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(0)
        self.masked = is_masked(env)
        self.drawn = 0

    def draw(self, number: int) -> list[Any]:
        """
        :param number: How many
        :return: The actions
        """
        if not self.masked:
            return [_counted_from_0(self.space, self.space.sample()) for _ in range(number)]
        self.drawn += number
        return [ValidAction(self.space, seed) for seed in range(self.drawn - number, self.drawn)]


def is_masked(env: gym.Env[Any, Any]) -> bool:
    """
    :param env: An env
    :return: Whether it says which actions are valid
    """
    try:
        env.get_wrapper_attr("action_masks")
    except AttributeError:
        return False
    return True


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
