"""How objects of a type are copied, as far as users say so; and types of which no copy can be made."""

import mmap
import multiprocessing.connection
import multiprocessing.process
import random
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.wrapper_chain import innermost

Rule = Callable[[Any, Any], Any]
"""``rule(copier, obj)`` returns the copy, or the object itself where it is shared."""
ATOMS: set[type] = {int, float, bool, str, bytes, complex, type(None), np.float64, np.float32, np.int64, np.bool_}
"""Types whose objects never change and lead to nothing: a copy has them, too."""


class CannotCopyError(TypeError):
    """
    An object that no rule copies.

    :param reason: Why: the end of a sentence that begins with the path to it
    :param advice: What to do instead, where a forked process would share it with its parent, or lack it; empty where it can be
        forked
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice
        self.holders: list[Any] = []
        """The object, what holds it, what holds that, and so on up to the env."""


@runtime_checkable
class SupportsBranching(Protocol):
    """
    The hook of an env that knows best how to save itself. An env (or wrapper) with these two methods is shared by all members
    of a group, with everything that it holds; each member's state is put in for the length of a call. Its ``np_random`` is
    saved besides, so the hook may leave that out; any other generator of random numbers belongs to the state.

    Example::

        class MyEnv(gym.Env):
            def save_state(self):
                return self.simulator.checkpoint()

            def restore_state(self, state):
                self.simulator.load(state)
    """

    def save_state(self) -> Any:
        """Save everything that the future of the env depends on. It is restored any number of times, and not consumed."""

    def restore_state(self, state: Any) -> None:
        """Put the env back, in place, into what ``save_state`` returned."""


class Shared(NamedTuple):
    """An object that all members share, because it cannot be copied: it saves and restores itself."""

    obj: Any
    save: Callable[[Any], Any]
    """``save(obj)`` returns its state."""
    restore: Callable[[Any, Any], None]
    """``restore(obj, state)`` puts it back."""


class MemberState:
    """
    One member's state of what all members share. It is put in for the length of a ``with`` block.

    :param shared: The objects
    :param states: The member's state of each
    """

    def __init__(self, shared: list[Shared], states: list[Any]) -> None:
        self.shared, self.states = shared, states
        self._others: list[Any] = []

    def fork(self) -> "MemberState":
        """Return the same state for another member."""
        return MemberState(self.shared, list(self.states))

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
    """The name of a class's module; empty where the class does not say."""
    module: Any = getattr(kind, "__module__", None)
    return module if isinstance(module, str) else ""


_REGISTERED: dict[str, tuple[Callable[..., Any], ...]] = {}
"""By the name of a type, the function that copies it, or those that save and restore it."""
_CONSTANTS: dict[str, frozenset[str]] = {
    "gymnasium.envs.toy_text.taxi.TaxiEnv": frozenset({"P", "initial_state_distrib", "desc", "locs", "locs_colors"}),
    "gymnasium.envs.toy_text.frozen_lake.FrozenLakeEnv": frozenset({"P", "initial_state_distrib", "desc"}),
    "gymnasium.envs.toy_text.cliffwalking.CliffWalkingEnv": frozenset({"P", "initial_state_distrib"}),
}
CACHES: list[Any] = []
"""Functions with a cache of what was registered before."""


def register_copier(type_name: str, copy: Callable[[Any], Any], replace: bool = False) -> None:
    """
    Say how objects of a type are copied, wherever an env holds one. This is the fast way: each sibling has a copy of its own.

    Register before the env is handed to ``HybridGRPO``. The processes of a ``SubprocVecEnv`` know only what is registered in
    them: register where the env's class is defined, or in the function that makes the env.

    Example::

        register_copier("mysim.core.World", lambda world: world.clone())

    :param type_name: The type's full name, as in ``f"{type(obj).__module__}.{type(obj).__qualname__}"``. A name, so that the
        simulator need not be imported
    :param copy: ``copy(obj)`` returns another object in the same state, which shares nothing with it that changes
    :param replace: Whether to replace what is registered already; the same function again is no error
    :raises TypeError: for an argument of another type
    :raises ValueError: for a name that cannot be that of a simulator's type, or that is registered already
    """
    _register(type_name, {"copy(obj)": copy}, replace)


def register_engine(
    type_name: str, save: Callable[[Any], Any], restore: Callable[[Any, Any], None], replace: bool = False
) -> None:
    """
    Say how objects of a simulator's type are saved and restored, where none can be copied. Such an object is shared by all
    members of a group, with everything that it refers to; each member's state is put in for the length of a call.

    When to register: see :func:`register_copier`.

    Example::

        register_engine(
            "mysim.core.World",
            save=lambda world: world.checkpoint(),
            restore=lambda world, state: world.load(state),
        )

    :param type_name: The type's full name, see :func:`register_copier`
    :param save: ``save(obj)`` returns everything that the object's future depends on, in memory of its own
    :param restore: ``restore(obj, state)`` puts the object back in place. A state is restored any number of times, and must
        not be consumed or changed by it
    :param replace: Whether to replace what is registered already; the same two functions again are no error
    :raises TypeError: for an argument of another type
    :raises ValueError: for a name that cannot be that of a simulator's type, or that is registered already
    """
    _register(type_name, {"save(obj)": save, "restore(obj, state)": restore}, replace)


def declare_constant(type_name: str, *attributes: str) -> None:
    """
    Say which attributes of a type's objects never change, so that siblings share them: large tables above all.

    Example::

        declare_constant("mygame.envs.Grid", "transitions", "distances")

    :param type_name: The type's full name, see :func:`register_copier`; its subclasses are meant, too
    :param attributes: Names of attributes
    :raises TypeError: for an argument of another type
    :raises ValueError: for a name that cannot be that of a type, or without an attribute
    """
    _check_name(type_name)
    if not attributes or not all(isinstance(one, str) for one in attributes):
        raise ValueError(f'attributes must be one or more names, such as "table", got {attributes!r}.')
    _CONSTANTS[type_name] = _CONSTANTS.get(type_name, frozenset()).union(attributes)
    for function in CACHES:
        function.cache_clear()


def _register(type_name: str, functions: dict[str, Any], replace: bool) -> None:
    _check_name(type_name)
    for call, function in functions.items():
        if not callable(function):
            raise TypeError(f"{call.partition('(')[0]} must be a function {call}, got {function!r}.")
    entry = tuple(functions.values())
    if not replace and _REGISTERED.get(type_name, entry) != entry:
        raise ValueError(
            f"{type_name!r} is registered already. Register a type once, with the same functions each time, or pass "
            "replace=True to replace them."
        )
    _REGISTERED[type_name] = entry
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
            f"type_name must be that of a simulator's type, got {type_name!r}. Python's and numpy's own types are copied in "
            "one way everywhere; register the type of the object that holds this one."
        )


def constants_of(kind: type) -> frozenset[str]:
    """The attributes that were declared constant for a class, not for its bases."""
    return _CONSTANTS.get(name_of(kind), frozenset())


def registered_rule(kind: type) -> Rule | None:
    """Find what users said about a type or one of its bases."""
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
    """The rule for what cannot be copied, see :class:`CannotCopyError`."""

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


_OUTSIDE = "share it: what a sibling does with it cannot be taken back"
_SHARED_MEMORY = "is memory that forked processes share"
_REFUSED: tuple[tuple[tuple[Any, ...], str, str], ...] = (
    ((threading.Thread,), "is a thread, which neither a copy nor a forked process has", "Compute what it does in step()"),
    ((mmap.mmap, np.memmap), _SHARED_MEMORY, "Use an array of your own, or make a file's array read-only"),
    (
        (socket.socket, subprocess.Popen, multiprocessing.process.BaseProcess, multiprocessing.connection.Connection),
        f"leads to another process: all siblings {_OUTSIDE}",
        "Keep the simulation in this process",
    ),
    ((random.SystemRandom,), "draws the operating system's random numbers, never twice the same", "Draw from self.np_random"),
)


def refusal_of(kind: type) -> tuple[str, str] | None:
    """Why no sibling can have such an object, and what to do instead; None if that is not so."""
    for kinds, reason, advice in _REFUSED:
        if issubclass(kind, kinds):
            return reason, advice
    if module_of(kind).startswith("multiprocessing.") and not module_of(kind).startswith("multiprocessing.context"):
        return _SHARED_MEMORY, "Use an array or a number of your own"
    return None
