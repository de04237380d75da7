"""An env's chain of wrappers, and those in it that siblings skip."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo
from stable_baselines3.common.monitor import Monitor

from sb3_hybrid_grpo.errors import BranchingError

RECORDERS = (Monitor, RecordEpisodeStatistics, RecordVideo)
"""Wrappers that write down what happens. Siblings skip them."""
CHECKERS = (OrderEnforcing, PassiveEnvChecker)
"""Wrappers that remember what they have checked, and change nothing."""


class SkippedBySiblings:
    """Marks a wrapper of this package that a copy of an env does without."""


def layers_of(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """Go down an env's chain of wrappers."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def require_env(env: Any) -> None:
    """
    :raises TypeError: for something else than an env, an env's id above all
    """
    if not callable(getattr(env, "step", None)):
        raise TypeError(f"env must be a gymnasium env, got {env!r}. Make it first: env = gymnasium.make({str(env)!r}).")


def innermost(env: gym.Env[Any, Any]) -> Any:
    """The innermost layer that is a gymnasium env, whatever its ``unwrapped`` says."""
    return list(layers_of(env))[-1]


def is_recorder(env: gym.Env[Any, Any]) -> bool:
    """Whether a wrapper records and does nothing else."""
    return _is_recorder(type(env))


def _is_recorder(kind: type) -> bool:
    if not issubclass(kind, RECORDERS):
        return False
    if kind.step not in [kind.step for kind in RECORDERS]:
        raise BranchingError(
            f"An env in a {kind.__name__} cannot be branched. {kind.__name__} records episodes, which siblings must not do, "
            "and has a step() of its own, which they may not miss. Put what its step() does into a gymnasium.Wrapper below a "
            f"plain {kind.__mro__[1].__name__}, or use n_samples=1 (plain PPO)."
        )
    return True


def is_skipped(kind: type) -> bool:
    """Whether siblings skip it."""
    return kind in CHECKERS or issubclass(kind, SkippedBySiblings) or _is_recorder(kind)


def skip_in_chain(env: Any) -> Any:
    """Take the wrappers that siblings skip out of a chain, for good: in a forked process."""
    while is_skipped(type(env)):
        env = env.env
    layer: Any
    for layer in layers_of(env):
        while isinstance(layer, gym.Wrapper) and is_skipped(type(layer.env)):
            layer.env = layer.env.env  # type: ignore[attr-defined]
    return env


def generator_of(holder: Any) -> Any:
    """
    The generator that an env or a space has, or None. This and :func:`set_generator` alone use gymnasium's private name:
    ``np_random`` makes a generator where there is none, and a space's cannot be set.
    """
    return getattr(holder, "_np_random", None)


def set_generator(holder: Any, generator: Any) -> None:
    """Give an env or a space a generator."""
    holder._np_random = generator


def lazy_holders(env: gym.Env[Any, Any]) -> list[Any]:
    """The innermost env and spaces of its layers that have no generator of random numbers yet, in a fixed order."""
    holders = [one for one in [innermost(env), *spaces_of(env)] if generator_of(one) is None]
    return list({id(one): one for one in holders}.values())


def spaces_of(env: gym.Env[Any, Any]) -> list[gym.Space[Any]]:
    """The spaces that an env's layers hold."""
    layers = [layer for layer in layers_of(env) if not is_skipped(type(layer))]
    return [value for layer in layers for value in vars(layer).values() if isinstance(value, gym.Space)]


def generators_of_spaces(env: gym.Env[Any, Any]) -> set[int]:
    """Ids of the generators of those spaces. Draws from them sample actions or observations: no noise of the env."""
    made = [generator_of(one) for one in spaces_of(env)]
    return {id(its) for one in made if one is not None for its in (one, one.bit_generator)}
