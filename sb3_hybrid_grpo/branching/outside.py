"""State that an env keeps outside of itself: named where it changes, because no snapshot in place sees it."""

import pickle
import random
import sys
import types
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.recorders import layers_of

_LIBRARIES = ("gymnasium.core", "gymnasium.wrappers", "stable_baselines3", "abc", "typing", "builtins")
_CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, classmethod, staticmethod, property)


def global_generators() -> dict[str, bytes]:
    """
    :return: The states of the generators that all of a process shares, by name
    """
    states = {"np.random": pickle.dumps(np.random.get_state()), "random": pickle.dumps(random.getstate())}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch's random numbers"] = torch.get_rng_state().numpy().tobytes()
    return states


def outside_values(env: gym.Env[Any, Any]) -> dict[str, bytes]:
    """
    Look at the class attributes and module globals that belong to an env and its wrappers.

    :param env: The env
    :return: Their contents by name
    """
    found = {}
    for name, value in _named(env):
        if not isinstance(value, _CODE) and not name.rpartition(".")[2].startswith("__"):
            try:
                found[name] = pickle.dumps(value)
            except Exception:  # anything may refuse to be pickled, in any way
                found[name] = repr(value).encode()
    return found


def _named(env: gym.Env[Any, Any]) -> Iterator[tuple[str, Any]]:
    for layer in layers_of(env):
        for kind in type(layer).__mro__:
            if not kind.__module__.startswith(_LIBRARIES):
                yield from ((f"{kind.__qualname__}.{name}", value) for name, value in vars(kind).items())
                module = sys.modules.get(kind.__module__)
                yield from ((f"{kind.__module__}.{name}", value) for name, value in list(vars(module or kind).items()))


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """
    :param before: Contents by name
    :param after: Later contents by name
    :return: The names of those that differ
    """
    return [name for name in after if before.get(name) != after[name]]
