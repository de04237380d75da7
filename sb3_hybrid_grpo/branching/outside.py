"""State that an env keeps outside of itself: named where it changes, because no snapshot in place sees it."""

import contextlib
import dis
import hashlib
import pickle
import random
import sys
import time
import types
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

_LIBRARIES = (
    *("gymnasium.core", "gymnasium.wrappers", "gymnasium.spaces", "gymnasium.logger", "gymnasium.envs.registration"),
    *("stable_baselines3", "Box2D", "ale_py", "cv2", "jax", "mujoco", "numpy", "pandas", "pygame", "scipy", "torch"),
)
"""Code that is not looked at: what these keep is no state of an env, the name of an object that was last printed, say."""
_CODE = (types.ModuleType, types.BuiltinFunctionType, types.NoneType)
_CONTAINERS = (dict, list, tuple, set, frozenset)
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"})
LARGEST, ALL = 2**20, 2**23
"""Bytes of a value, and of all of them, that are looked at: tables larger than that hardly change."""
SECONDS = 0.3
"""How long to look, in CPU time: a busy machine is not to hide anything."""


def global_generators() -> dict[str, bytes]:
    """
    :return: The states of the generators that all of a process shares, by name
    """
    states = {"np.random": pickle.dumps(np.random.get_state()), "random": pickle.dumps(random.getstate())}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch's random numbers"] = torch.get_rng_state().numpy().tobytes()
    return states


def outside_values(code: Iterable[Any]) -> dict[str, bytes]:
    """
    Look at what an env's code refers to: attributes of classes, globals of modules, and what functions keep.

    :param code: Classes and functions, see :meth:`Engine.code`; what they call is followed
    :return: Digests of the contents by name
    """
    found: dict[str, bytes] = {}
    left, end = ALL, time.process_time() + SECONDS
    with contextlib.suppress(Exception):  # objects of the user's may do anything when they are looked at
        for name, value in _named(code):
            file = _Digest(min(left, LARGEST))
            if _digested(value, file):
                left -= file.size
                found[name] = file.hash.digest()
            if left <= 0 or time.process_time() > end:
                break
    return found


def _digested(value: Any, file: "_Digest") -> bool:
    """Write all of a value to a file; False where it is too large, or lets nobody look."""
    if isinstance(value, np.ndarray) and value.nbytes > file.largest:
        return False
    try:
        _Pickler(file, 5).dump(value)
    except _TooLargeError:
        return False
    except Exception:  # anything may refuse to be pickled, in any way
        try:
            file.write((repr(value) if isinstance(value, _CONTAINERS) else object.__repr__(value)).encode(errors="replace"))
        except Exception:
            return False
    return True


class _Pickler(pickle.Pickler):
    """Leaves out envs, which have a snapshot."""

    def persistent_id(self, obj: Any) -> str | None:
        return "env" if isinstance(obj, gym.Env) else None


class _TooLargeError(Exception):
    """A value is larger than what is looked at."""


class _Digest:
    """
    A file that keeps of what is written to it a digest alone.

    :param largest: Bytes that it takes
    """

    def __init__(self, largest: int) -> None:
        self.hash, self.size, self.largest = hashlib.blake2b(digest_size=16), 0, largest

    def write(self, data: Any) -> None:
        view = memoryview(data)
        self.size += view.nbytes
        if self.size > self.largest:
            raise _TooLargeError
        self.hash.update(view)


def _named(code: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """What code refers to that is neither its own nor code, by name."""
    waiting, seen = list(code), set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or _is_library(one):
            continue
        seen.add(id(one))
        for name, value in list(_of_class(one) if isinstance(one, type) else _of_function(one)):
            inner = value.__func__ if isinstance(value, classmethod | staticmethod | types.MethodType) else value
            if isinstance(inner, property):
                waiting += [part for part in (inner.fget, inner.fset) if isinstance(part, types.FunctionType)]
            elif isinstance(inner, types.FunctionType | type):
                waiting.append(inner)
            elif not isinstance(inner, _CODE):
                waiting.append(type(inner))
                yield name, inner


def _is_library(code: Any) -> bool:
    module = getattr(code, "__module__", None)
    return _is_library_name(module if isinstance(module, str) else "builtins")


def _is_library_name(module: str) -> bool:
    is_known = any(module == one or module.startswith(f"{one}.") for one in _LIBRARIES)
    return is_known or module.split(".")[0] in sys.stdlib_module_names


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    yield from (("", base) for base in kind.__mro__)  # code, which needs no name
    for name, value in vars(kind).items():
        if not name.startswith("__") or isinstance(value, types.FunctionType):
            yield f"{kind.__module__}.{kind.__qualname__}.{name}", value


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """A function's globals, and what it keeps from call to call."""
    module = function.__globals__
    name = f"{module.get('__name__')}.{function.__qualname__}"
    yield from ((f"{name}.{key}", value) for key, value in vars(function).items() if not key.startswith("__"))
    yield from ((f"{name}'s defaults", value) for value in (function.__defaults__, function.__kwdefaults__) if value)
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            yield f"{name}'s variable {variable}", cell.cell_contents
    read, parts = _names_in(function.__code__)
    for variable in read & module.keys():
        value = module[variable]
        yield f"{module.get('__name__')}.{variable}", value
        if isinstance(value, types.ModuleType) and not _is_library_name(value.__name__):
            yield from ((f"{value.__name__}.{part}", vars(value)[part]) for part in parts & vars(value).keys())


def _names_in(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The globals that code reads or writes, and all names in it, those of attributes included."""
    read, names = {one.argval for one in dis.get_instructions(code) if one.opname in _GLOBALS}, set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more_read, more_names = _names_in(inner)
            read, names = read | more_read, names | more_names
    return read, names


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """
    :param before: Contents by name
    :param after: Later contents by name
    :return: The names of those that are in both, and differ
    """
    return [name for name in after if name in before and before[name] != after[name]]
