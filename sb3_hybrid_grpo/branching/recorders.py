"""The wrappers that siblings pass by: those that write down what happens."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from stable_baselines3.common.monitor import Monitor

from sb3_hybrid_grpo.branching.kinds import CHECKERS
from sb3_hybrid_grpo.errors import BranchingError

RECORDERS = (Monitor, RecordEpisodeStatistics, RecordVideo)
"""Wrappers that write down what happens: siblings pass them by."""


def layers_of(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """
    Go down an env's chain of wrappers.

    :param env: The outermost layer
    :return: Each layer, outermost first, the env itself last
    """
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def shortcuts_of(env: gym.Env[Any, Any]) -> list[tuple[Any, gym.Env[Any, Any], gym.Env[Any, Any]]]:
    """
    Find where siblings pass by.

    :param env: The outermost layer
    :return: Each wrapper right above some that siblings pass by, the first of those, and what lies below the last
    """
    links: list[tuple[Any, gym.Env[Any, Any], gym.Env[Any, Any]]] = []
    for layer in layers_of(env):
        if isinstance(layer, gym.Wrapper) and not is_passed_by(layer) and is_passed_by(layer.env):
            below: Any = layer.env
            while is_passed_by(below):
                below = below.env
            links.append((layer, layer.env, below))
    return links


def is_recorder(env: gym.Env[Any, Any]) -> bool:
    """
    Whether a wrapper records and does nothing else.

    :param env: A wrapper, or an env
    :return: True for the known recorders, and for their subclasses with no ``step`` of their own
    :raises BranchingError: for a recorder with a ``step`` of its own, which may do anything
    """
    if not isinstance(env, RECORDERS):
        return False
    if type(env).step not in [kind.step for kind in RECORDERS]:
        raise BranchingError(
            f"{env} cannot be branched: {type(env).__name__} records episodes, which siblings must not do, and has a step() "
            "of its own, which they may not miss. Put what its step() does into a gymnasium.Wrapper below a plain "
            f"{type(env).__mro__[1].__name__}, or use n_samples=1 (plain PPO)."
        )
    return True


def is_passed_by(env: gym.Env[Any, Any]) -> bool:
    """
    :param env: A wrapper, or an env
    :return: Whether siblings pass it by: a recorder, or a wrapper that only checks how it is used
    """
    return is_recorder(env) or type(env) in CHECKERS
