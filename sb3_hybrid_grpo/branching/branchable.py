"""Where the branching wrapper belongs in an env's chain of wrappers."""

import itertools
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.recorders import is_recorder, layers_of
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper


def make_branchable(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    Put a :class:`BranchingWrapper` into an env's chain of wrappers: below the recorders at its top, above all the others, so
    that siblings never write an episode to a log and never escape a time limit.

    ``HybridGRPO`` does it by itself for env ids, envs and ``DummyVecEnv``. For a ``SubprocVecEnv``::

        make_vec_env("CartPole-v1", n_envs=4, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)

    :param env: The env; its recorders are kept, and changed to hold the new wrapper
    :return: The env, branchable
    :raises BranchingError: if the env cannot be branched
    """
    if any(isinstance(layer, BranchingWrapper) for layer in layers_of(env)):
        return env
    lowest: Any = None
    layer = env
    while is_recorder(layer):
        lowest, layer = layer, layer.env  # type: ignore[attr-defined]
    branchable = BranchingWrapper(layer)
    if lowest is None:
        return branchable
    lowest.env = branchable
    return env


def layers_above(env: gym.Env[Any, Any]) -> list[str]:
    """
    Name the wrappers above the :class:`BranchingWrapper` of an env that siblings would escape.

    :param env: The env's outermost layer
    :return: The names of their classes, outermost first
    """
    above = itertools.takewhile(lambda layer: not isinstance(layer, BranchingWrapper), layers_of(env))
    return [type(layer).__name__ for layer in above if not is_recorder(layer)]
