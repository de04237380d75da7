"""Users declare here how a type is copied, or saved and restored. Also: the types that can never be copied."""

import mmap
import random
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent import futures
from multiprocessing import connection, pool, process
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.wrapper_chain import innermost

Rule = Callable[[Any, Any], Any]
"""``rule(copier, obj)`` returns the copy, or the object itself if it is shared."""
ATOMS: set[type] = {int, float, bool, str, bytes, complex, type(None)}
ATOMS |= {np.float64, np.float32, np.int64, np.bool_, np.datetime64, np.timedelta64}
"""Types whose objects never change and refer to no others: copies share them."""


class CannotCopyError(TypeError):
    """
    An object that no rule copies.

    :param reason: Why: the end of a sentence that begins with the path to the object
    :param advice: How to do without the object, if a forked process cannot have it either; empty if a fork can have it
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice
        self.holders: list[Any] = []
        """The object, its holder, the holder's holder, and so on up to the env."""


@runtime_checkable
class SupportsBranching(Protocol):
    """
    Two methods of an env (or wrapper) that saves and restores itself. All members of a group share such an env and all
    objects that it holds. Before each call of a member, that member's state is restored; after the call, member 0's.
    ``np_random`` is saved automatically. Any other generator of random numbers must be part of the state.

    Example::

        class MyEnv(gym.Env):
            def save_state(self):
                return self.simulator.checkpoint()

            def restore_state(self, state):
                self.simulator.load(state)
    """

    def save_state(self) -> Any:
        """Return all that the future of the env depends on. The returned state may be restored any number of times."""

    def restore_state(self, state: Any) -> None:
        """Put the env, in place, into a state that ``save_state`` returned. Do not change that state."""


class Shared(NamedTuple):
    """An object that all members share, because it cannot be copied: it can only be saved and restored."""

    obj: Any
    save: Callable[[Any], Any]
    """``save(obj)`` returns the object's state."""
    restore: Callable[[Any, Any], None]
    """``restore(obj, state)`` puts the object into a state."""


class MemberState:
    """
    One member's states of the shared objects. They are restored for the duration of a ``with`` block.

    :param shared: The shared objects
    :param states: The member's state of each
    """

    def __init__(self, shared: list[Shared], states: list[Any]) -> None:
        self.shared, self.states = shared, states
        self._others: list[Any] = []

    def __enter__(self) -> None:
        self._others = [one.save(one.obj) for one in self.shared]
        try:
            self._restore(self.states)
        except BaseException:
            self._put_back()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.states = [one.save(one.obj) for one in self.shared]
        finally:
            self._put_back()

    def _put_back(self) -> None:
        try:
            self._restore(self._others)
        except KeyboardInterrupt:
            self._restore(self._others)  # again, from its beginning
            raise

    def _restore(self, states: list[Any]) -> None:
        for one, state in zip(self.shared, states, strict=True):
            one.restore(one.obj, state)


def name_of(kind: type) -> str:
    """The full name of a class, ``package.module.Name``."""
    return f"{module_of(kind)}.{kind.__qualname__}".lstrip(".")


def module_of(kind: type) -> str:
    """The name of a class's module; empty if the class has none."""
    module: Any = getattr(kind, "__module__", None)
    return module if isinstance(module, str) else ""


_REGISTERED: dict[str, tuple[Callable[..., Any], ...]] = {}
"""For each name of a type, the function that copies its objects, or the two that save and restore them."""
CONSTANTS: dict[str, frozenset[str]] = {
    "gymnasium.envs.toy_text.taxi.TaxiEnv": frozenset({"P", "initial_state_distrib", "desc", "locs", "locs_colors"}),
    "gymnasium.envs.toy_text.frozen_lake.FrozenLakeEnv": frozenset({"P", "initial_state_distrib", "desc"}),
    "gymnasium.envs.toy_text.cliffwalking.CliffWalkingEnv": frozenset({"P", "initial_state_distrib"}),
}
CACHES: list[Any] = []
"""Functions whose caches are cleared when something is registered."""


def register_copier(type_name: str, copy: Callable[[Any], Any]) -> None:
    """
    Register a function that copies a type's objects wherever an env holds one. Each sibling then has its own copy. This is
    the fast way.

    Call this before you give the env to ``HybridGRPO``. Each process of a ``SubprocVecEnv`` has its own registry, so call it
    in the module that defines the env's class, or in the function that makes the env.

    Example::

        register_copier("mysim.core.World", lambda world: world.clone())

    :param type_name: The type's full name, ``f"{type(obj).__module__}.{type(obj).__qualname__}"``. It is a name, so that the
        simulator need not be imported. A later registration replaces an earlier one
    :param copy: ``copy(obj)`` returns a new object in the same state, which shares no changeable data with ``obj``
    :raises TypeError: for an argument of another type
    :raises ValueError: if the name cannot be a simulator type's name
    """
    _register(type_name, {"copy(obj)": copy})


def register_engine(type_name: str, save: Callable[[Any], Any], restore: Callable[[Any, Any], None]) -> None:
    """
    Register two functions that save and restore a type's objects, if these cannot be copied. All members of a group share
    such an object, with all objects that it refers to; each member's state is restored for the duration of its calls.

    When to register: see :func:`register_copier`.

    Example::

        register_engine(
            "mysim.core.World",
            save=lambda world: world.checkpoint(),
            restore=lambda world, state: world.load(state),
        )

    :param type_name: The type's full name, see :func:`register_copier`
    :param save: ``save(obj)`` returns all that the object's future depends on, in memory of its own
    :param restore: ``restore(obj, state)`` puts the object, in place, into the state. A state may be restored any number of
        times, so ``restore`` must not change it
    :raises TypeError: for an argument of another type
    :raises ValueError: if the name cannot be a simulator type's name
    """
    _register(type_name, {"save(obj)": save, "restore(obj, state)": restore})


def declare_constant(type_name: str, *attributes: str) -> None:
    """
    Declare that some attributes of a type's objects never change, so that siblings share them. Use it for large tables.

    Example::

        declare_constant("mygame.envs.Grid", "transitions", "distances")

    :param type_name: The type's full name, see :func:`register_copier`; subclasses are included
    :param attributes: Names of attributes
    :raises TypeError: for an argument of another type
    :raises ValueError: if the name cannot be a type's name, or no attribute is given
    """
    _check_name(type_name)
    if not attributes or not all(isinstance(one, str) for one in attributes):
        raise ValueError(f'attributes must be one or more names, such as "table", got {attributes!r}.')
    CONSTANTS[type_name] = CONSTANTS.get(type_name, frozenset()).union(attributes)
    for one in CACHES:
        one.cache_clear()


def _register(type_name: str, functions: dict[str, Any]) -> None:
    _check_name(type_name)
    for call, function in functions.items():
        if not callable(function):
            raise TypeError(f"{call.partition('(')[0]} must be a function {call}, got {function!r}.")
    _REGISTERED[type_name] = tuple(functions.values())
    for one in CACHES:
        one.cache_clear()


def _check_name(type_name: Any) -> None:
    if isinstance(type_name, type):
        raise TypeError(f"type_name must be the name of a type, got the type itself. Pass {name_of(type_name)!r}.")
    if not isinstance(type_name, str):
        raise TypeError(f'type_name must be a string, the full name of a type such as "mysim.core.World", got {type_name!r}.')
    parts = type_name.replace("<locals>", "locals").split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f'type_name must be the full name of a type, such as "mysim.core.World", got {type_name!r}. '
            'Print it with f"{type(obj).__module__}.{type(obj).__qualname__}".'
        )
    if parts[0] in ("builtins", "numpy"):
        raise ValueError(
            f"type_name must name a simulator's type, got {type_name!r}. Python's and numpy's own types are always copied in "
            "the same way; register the type of the object that holds this one."
        )


def registered_rule(kind: type) -> Rule | None:
    """The rule that a user registered for a type or one of its bases."""
    if issubclass(kind, gym.Env) and hasattr(kind, "save_state") and hasattr(kind, "restore_state"):
        return lambda copier, obj: _swap(copier, obj, _save_hook, _restore_hook)
    for base in kind.__mro__:
        name = name_of(base)
        if name not in _REGISTERED:
            continue
        if base is not kind and kind.__dictoffset__:
            return never(f"is a {name_of(kind)}, a subclass of {name}: register the subclass by its own name")
        first, *restore = _REGISTERED[name]
        return lambda copier, obj: _swap(copier, obj, first, *restore) if restore else first(obj)
    return None


def _swap(copier: Any, obj: Any, save: Callable[[Any], Any], restore: Callable[[Any, Any], None]) -> Any:
    copier.swapped.append((Shared(obj, save, restore), save(obj)))
    return copier.remember(obj, obj)


def never(reason: str, advice: str = "") -> Rule:
    """A rule that refuses to copy, see :class:`CannotCopyError`."""

    def rule(c: Any, obj: Any) -> Any:
        raise CannotCopyError(reason, advice)

    return rule


def _save_hook(env: Any) -> Any:
    generator = innermost(env).np_random
    return env.save_state(), generator, generator.bit_generator.state


def _restore_hook(env: Any, state: Any) -> None:
    its_state, generator, numbers = state
    env.restore_state(its_state)
    generator.bit_generator.state = numbers
    if innermost(env).np_random is not generator:
        innermost(env).np_random = generator


_OUTSIDE = "share it, and a sibling's actions on it cannot be undone"
_SHARED_MEMORY = "is memory that forked processes share"
_REFUSED: tuple[tuple[tuple[Any, ...], str, str], ...] = (
    (
        (threading.Thread, futures.ThreadPoolExecutor, pool.ThreadPool),
        "is or has a thread, which neither a copy nor a forked process has",
        "Compute its results in step()",
    ),
    ((mmap.mmap,), _SHARED_MEMORY, "Use an array of your own, or make a file's array read-only"),
    (
        (socket.socket, subprocess.Popen, process.BaseProcess, pool.Pool, futures.ProcessPoolExecutor, connection.Connection),
        f"leads to another process: all siblings {_OUTSIDE}",
        "Keep the simulation in this process",
    ),
    ((random.SystemRandom,), "draws the operating system's random numbers, never twice the same", "Draw from self.np_random"),
)


def refusal_of(kind: type) -> tuple[str, str] | None:
    """Why no sibling can have an object of this type, and what to do instead; None if siblings can."""
    for kinds, reason, advice in _REFUSED:
        if issubclass(kind, kinds):
            return reason, advice
    if module_of(kind).startswith("multiprocessing.") and not module_of(kind).startswith("multiprocessing.context"):
        return _SHARED_MEMORY, "Use an array or a number of your own"
    return None
