"""State that an env keeps outside of itself: named where it changes, because no snapshot in place sees it."""

import contextlib
import hashlib
import pickle
import random
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_LIBRARIES = (
    *("gymnasium.core", "gymnasium.wrappers", "gymnasium.spaces", "gymnasium.logger", "gymnasium.envs.registration"),
    *("stable_baselines3", "Box2D", "ale_py", "cv2", "jax", "mujoco", "numpy", "pandas", "pygame", "scipy", "torch"),
)
"""Code that is not looked at: what these keep is no state of an env, the name of an object that was last printed, say."""
_CODE = (types.ModuleType, types.BuiltinFunctionType, types.NoneType)
LARGEST, ALL = 2**20, 2**23
"""Bytes of a value, and of all of them, that are looked at: tables larger than that hardly change."""


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
    found = {}
    left = ALL
    for name, value in _named(code):
        file = _Digest(min(left, LARGEST))
        try:
            pickle.Pickler(file, 5).dump(value)
        except _TooLargeError:
            continue
        except Exception:  # anything may refuse to be pickled, in any way
            file.write(repr(value).encode()[:LARGEST])
        left -= file.size
        found[name] = file.hash.digest()
        if left <= 0:
            break
    return found


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
            value = getattr(value, "__func__", value)  # of a class method, a static one, a bound one
            if isinstance(value, property):
                waiting += [part for part in (value.fget, value.fset) if isinstance(part, types.FunctionType)]
            elif isinstance(value, types.FunctionType | type):
                waiting.append(value)
            elif not isinstance(value, _CODE):
                waiting.append(type(value))
                yield name, value


def _is_library(code: Any) -> bool:
    module = getattr(code, "__module__", None) or "builtins"
    return module.startswith(_LIBRARIES) or module.split(".")[0] in sys.stdlib_module_names


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    yield from (("", base) for base in kind.__mro__)
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
    used = _names_in(function.__code__)
    for name in used & module.keys():
        value = module[name]
        yield f"{module.get('__name__')}.{name}", value
        if isinstance(value, types.ModuleType) and not value.__name__.startswith(_LIBRARIES):
            yield from ((f"{value.__name__}.{part}", vars(value)[part]) for part in used & vars(value).keys())


def _names_in(code: types.CodeType) -> set[str]:
    inner = [_names_in(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inner)


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """
    :param before: Contents by name
    :param after: Later contents by name
    :return: The names of those that differ
    """
    return [name for name in after if before.get(name) != after[name]]
