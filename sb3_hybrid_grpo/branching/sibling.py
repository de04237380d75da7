"""Siblings that are copies of the env."""

import contextlib
import gc
import types
from typing import Any, Protocol

import gymnasium as gym

from sb3_hybrid_grpo.branching.copier import Copier
from sb3_hybrid_grpo.branching.engines import CannotCopyError, MemberState, module_of
from sb3_hybrid_grpo.branching.wrapper_chain import is_skipped, layers_of


class Sibling(Protocol):
    """An env that began in the state of another one, and is stepped beside it."""

    kind: str
    """"copied" or "forked"."""

    def step(self, action: Any) -> Any:
        """
        :param action: The action
        :return: What the env returned
        """

    def reset(self, **keywords: Any) -> Any:
        """
        :param keywords: Arguments of the env's reset
        :return: What the env returned
        """

    def get_wrapper_attr(self, name: str) -> Any:
        """
        :param name: The name of a method of the env or of one of its wrappers
        :return: The method
        """

    def close(self) -> None:
        """Throw it away."""


class CopiedEnv:
    """
    A live copy of an env with its wrappers as it is now, its generators of random numbers included. It shares with the env what
    never changes, and nothing else. Recorders are left out.

    :param env: The env
    :param previous: An earlier copy that is not needed any more: its simulators and generators are written over
    :param own_models: Whether it needs an MjModel of its own, because the env changes its one
    :param streams: The env's streams in the place of generators that it shares
    :raises CannotCopyError: if the env holds an object that no rule copies
    """

    kind = "copied"
    shared_state: Any = contextlib.nullcontext()

    def __init__(
        self, env: gym.Env[Any, Any], previous: Any = None, own_models: bool = False, streams: MemberState | None = None
    ) -> None:
        reuse = previous.natives if isinstance(previous, CopiedEnv) else None
        copier = Copier(reuse, own_models, () if streams is None else [one.obj for one in streams.shared])
        try:
            self.env: Any = copier(env)
        except RecursionError:
            raise CannotCopyError("holds objects that lead to one another in too long a chain", env) from None
        self.natives, self.alive = copier.natives, copier.alive
        if not copier.swapped and streams is None:
            self.step, self.reset = self.env.step, self.env.reset  # type: ignore[method-assign]
            return
        of_env = MemberState([], []) if streams is None else streams
        shared, states = zip(*copier.swapped, strict=True) if copier.swapped else ((), ())
        self.shared_state = MemberState([*shared, *of_env.shared], [*states, *of_env.states])

    def step(self, action: Any) -> Any:
        """
        :param action: The action
        :return: What the env returned
        """
        with self.shared_state:
            return self.env.step(action)

    def reset(self, **keywords: Any) -> Any:
        """
        :param keywords: Arguments of the env's reset
        :return: What the env returned
        """
        with self.shared_state:
            return self.env.reset(**keywords)

    def get_wrapper_attr(self, name: str) -> Any:
        """
        :param name: The name of an attribute of the env or of one of its wrappers
        :return: The attribute; a method is called in the state of this copy
        """
        found = self.env.get_wrapper_attr(name)
        if not callable(found):
            return found

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self.shared_state:
                return found(*arguments, **keywords)

        return call

    def close(self) -> None:
        """Nothing: what a copy shares with the env is the env's to close."""

    def __getattr__(self, name: str) -> Any:
        """What any env has: its spaces, its spec."""
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


def path_to(env: gym.Env[Any, Any], culprit: Any) -> str:
    """
    Say how an object is reached from an env: by the env's own attributes, without the innards of a library's objects.

    :param env: The env's outermost layer
    :param culprit: The object
    :return: A path such as ``Trade.df`` or ``Game.screens['main']``
    """
    starts = [(layer, type(layer).__name__) for layer in layers_of(env) if not is_skipped(type(layer))]
    own = {module_of(type(layer)).split(".")[0] for layer, _ in starts}
    known = {id(layer): layer for layer, _ in starts}
    waiting = [(layer, name, True) for layer, name in reversed(starts)]
    for obj, path, is_own in waiting:  # breadth first; the list grows
        if obj is culprit:
            return path
        named = _named_children(obj)
        names = {id(value): name for value, name in named}
        goes_on = is_own and (isinstance(obj, dict | list | tuple) or module_of(type(obj)).split(".")[0] in own)
        for child in [*(value for value, _ in named), *_referents(obj)]:
            if id(child) not in known and len(known) < 100_000:
                known[id(child)] = child
                waiting.append((child, path + names.get(id(child), "") if goes_on else path, goes_on))
    return starts[-1][1]


def _named_children(obj: Any) -> list[tuple[Any, str]]:
    if isinstance(obj, dict):
        return [(value, f"[{key!r}]") for key, value in list(obj.items())]
    if isinstance(obj, list | tuple):
        return [(value, f"[{place}]") for place, value in enumerate(obj)]
    held = getattr(obj, "__dict__", None)
    return [(value, f".{name}") for name, value in held.items()] if isinstance(held, dict) else []


def _referents(obj: Any) -> list[Any]:
    if isinstance(obj, type | types.ModuleType):
        return []
    if isinstance(obj, types.FunctionType):  # not its module, which leads anywhere
        return [*(obj.__closure__ or ()), obj.__defaults__, obj.__kwdefaults__, obj.__dict__]
    return gc.get_referents(obj)
