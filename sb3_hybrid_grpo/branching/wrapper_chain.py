"""An env's chain of wrappers, of which siblings skip some; and generators of random numbers."""

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.errors import BranchingError

RECORDERS = (Monitor, RecordEpisodeStatistics, RecordVideo)
"""Wrappers that record episodes. Siblings are made below those at the top of the chain."""
CHECKERS = (OrderEnforcing, PassiveEnvChecker)
"""Wrappers that check calls, and change nothing. Siblings skip them."""
PROCESS_WIDE_NUMPY: Any = getattr(np.random.random_sample, "__self__", None)
PROCESS_WIDE_PYTHON: Any = getattr(random.random, "__self__", None)


class SkippedBySiblings:
    """Marks a wrapper of this package that siblings skip."""


def layers_of(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """Go down an env's chain of wrappers."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def named(env: Any) -> str:
    """An env's name in messages. An env's ``spec`` may be its own, and then gymnasium's ``str`` fails."""
    try:
        return str(env)
    except Exception:
        return f"<{type(env).__name__} instance>"


def require_env(env: Any) -> None:
    """
    :raises TypeError: if ``env`` is no env, for example its id, its class or a VecEnv
    """
    if callable(getattr(env, "step", None)) and not isinstance(env, type | VecEnv):  # a copy of an env is no gym.Env
        return
    made = f"gymnasium.make({env!r})" if isinstance(env, str) else "MyEnv() or gymnasium.make(env_id)"
    hint = "Take one of its envs: env = vec_env.envs[0]" if isinstance(env, VecEnv) else f"Make it first: env = {made}"
    raise TypeError(f"env must be a gymnasium env, got {env!r}. {hint}.")


def innermost(env: gym.Env[Any, Any]) -> Any:
    """The innermost env of the chain, which may differ from the env's own ``unwrapped``."""
    return list(layers_of(env))[-1]


def is_recorder(kind: type) -> bool:
    """Whether wrappers of this class record and do nothing else."""
    if not issubclass(kind, RECORDERS):
        return False
    if kind.step not in [kind.step for kind in RECORDERS]:
        raise BranchingError(
            f"An env in a {kind.__name__} cannot be branched. {kind.__name__} records episodes, so siblings must skip it, but "
            "it has a step() of its own, which siblings may need. Move the code of this step() into a gymnasium.Wrapper below "
            f"a plain {kind.__mro__[1].__name__}, or use n_samples=1 (plain PPO)."
        )
    return True


def without_recorders(env: Any) -> Any:
    """The env below the recorders at the top of its chain. A wrapper above a recorder may read what that puts into infos."""
    while is_recorder(type(env)):
        env = env.env
    return env


def is_skipped(kind: type) -> bool:
    """Whether siblings skip wrappers of this class, wherever they are."""
    return kind in CHECKERS or issubclass(kind, SkippedBySiblings) or (issubclass(kind, RecordVideo) and is_recorder(kind))


def skip_in_chain(env: Any) -> Any:
    """Take the wrappers that siblings skip out of a chain, and write no files. Only a forked process does this."""
    while is_skipped(type(env)):
        env = env.env
    layer: Any
    for layer in layers_of(env):
        while isinstance(layer, gym.Wrapper) and is_skipped(type(layer.env)):
            layer.env = layer.env.env  # type: ignore[attr-defined]
    write_no_files(env)
    return env


def write_no_files(env: Any) -> None:
    """Take the files from the monitors of a chain. Only a forked process does this."""
    for layer in layers_of(env):
        if isinstance(layer, Monitor):
            layer.results_writer = None


def generator_of(holder: Any) -> Any:
    """
    The generator that an env or a space has, or None. Only this and :func:`set_generator` use gymnasium's private name,
    because ``np_random`` makes a generator if there is none, and a space's ``np_random`` cannot be set.
    """
    return getattr(holder, "_np_random", None)


def set_generator(holder: Any, generator: Any) -> None:
    """Give an env or a space a generator."""
    holder._np_random = generator


def make_generators(env: gym.Env[Any, Any]) -> None:
    """Make the generators that an env (after a reset) and its spaces have not made yet, so that all copies have the same."""
    for one in (innermost(env), *spaces_of(env)):
        if generator_of(one) is None:
            with contextlib.suppress(Exception):  # not every env has a generator
                _ = one.np_random


def spaces_of(env: gym.Env[Any, Any]) -> list[gym.Space[Any]]:
    """The spaces that an env's layers hold."""
    layers = [layer for layer in layers_of(env) if not is_skipped(type(layer))]
    return [value for layer in layers for value in vars(layer).values() if isinstance(value, gym.Space)]


def generators_of_spaces(env: gym.Env[Any, Any]) -> set[int]:
    """Ids of the generators of an env's spaces, which sample actions or observations and are no noise of the env."""
    made = [generator_of(one) for one in spaces_of(env)]
    return {id(its) for one in made if one is not None for its in (one, one.bit_generator)}


def torch_generator() -> Any:
    """torch's default generator; None if torch is not loaded."""
    return getattr(sys.modules.get("torch"), "default_generator", None)


def is_generator(obj: Any) -> bool:
    """Whether an object is a generator of random numbers whose state can be read."""
    known = (np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
    return isinstance(obj, known) or type(obj) is type(torch_generator() or ...)


def bits_of(generator: Any) -> Any:
    """The object that holds a generator's state: a numpy Generator's bit generator; for a space, that of its generator."""
    generator = generator.np_random if isinstance(generator, gym.Space) else generator
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


def state_of(generator: Any) -> Any:
    """A generator's state, for :func:`set_state`."""
    bits = bits_of(generator)
    if isinstance(bits, np.random.BitGenerator):
        return bits.state
    if isinstance(bits, np.random.RandomState):
        return bits.get_state(legacy=False)
    return bits.getstate() if isinstance(bits, random.Random) else bits.get_state()


def set_state(generator: Any, state: Any) -> None:
    """Put a generator, or a space's generator, into a state that :func:`state_of` returned."""
    bits = bits_of(generator)
    if isinstance(bits, np.random.BitGenerator):
        bits.state = state
    else:
        (bits.setstate if isinstance(bits, random.Random) else bits.set_state)(state)


def reseed(generator: Any, seed: int) -> None:
    """Put a generator, or a space's generator, into a new state that depends on the seed alone."""
    bits = bits_of(generator)
    if hasattr(bits, "manual_seed"):
        bits.manual_seed(seed)
    else:
        set_state(bits, state_of(type(bits)(seed)))
