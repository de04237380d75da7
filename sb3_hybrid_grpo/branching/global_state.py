"""
State outside of the env objects: process-wide generators of random numbers, globals, class attributes. An env gets its own
streams in place of such generators. The other values cannot be copied, so the check looks whether they change.
"""

import contextlib
import dis
import enum
import functools
import hashlib
import io
import os
import pickle
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.engines import MemberState, Shared, module_of, name_of, refusal_of
from sb3_hybrid_grpo.branching.wrapper_chain import (
    PROCESS_WIDE_NUMPY,
    PROCESS_WIDE_PYTHON,
    is_generator,
    reseed,
    set_state,
    state_of,
    torch_generator,
)

_LIBRARIES = (
    *("gymnasium.core", "gymnasium.wrappers", "gymnasium.spaces", "gymnasium.logger", "gymnasium.envs.registration"),
    *("stable_baselines3", "sb3_hybrid_grpo.branching", "Box2D", "ale_py", "cv2", "jax", "matplotlib", "mujoco", "numpy"),
    *("pandas", "pygame", "scipy", "torch", "networkx"),
)
"""Packages whose code is not searched: their globals are no state of an env."""
_MAKE_GENERATORS = frozenset({"default_rng", "Generator", "RandomState", "SeedSequence", "PCG64", "MT19937", "Random"})
_TORCH_DRAWS = frozenset({"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like"})
_INSTALLED = tuple(sysconfig.get_path(kind) + os.sep for kind in ("purelib", "platlib"))
_CACHED: Any = type(functools.lru_cache(len))
_LARGEST, _MOST_CODE = 2**20, 4000
"""The most bytes of a value that is digested (larger tables hardly change), and the most functions and classes searched."""


def process_wide_generators() -> dict[str, Any]:
    """The process-wide generators, by name: numpy's, Python's, and torch's if it is loaded."""
    found = {"np.random": PROCESS_WIDE_NUMPY, "random": PROCESS_WIDE_PYTHON, "torch": torch_generator()}
    return {name: one for name, one in found.items() if one is not None}


def own_streams(generators: Iterable[Any], begin_others: bool = True) -> MemberState:
    """
    Give an env its own streams of random numbers in place of generators that it shares with others. Each stream begins in
    the generator's present state.

    :param generators: The generators, and spaces that have one
    :param begin_others: Whether to reseed the generators afterwards, so that other envs get other streams
    """
    shared = [Shared(one, state_of, set_state) for one in generators]
    states = [state_of(one.obj) for one in shared]
    for one, state in zip(shared, states, strict=True) if begin_others else ():
        reseed(one.obj, int.from_bytes((digest(state) or b"")[:4], "big"))
    return MemberState(shared, states)


class Surroundings(NamedTuple):
    """Objects outside of an env that its code refers to."""

    code: list[Any]
    """Classes and functions of the env."""
    own: set[str]
    """The packages that are searched."""
    copied: set[int]
    """The ids of functions that are copied with the env."""
    generators: dict[str, Any]
    """Generators of random numbers among these objects, and process-wide generators that the code draws from, by name."""
    spaces: dict[str, Any]
    """Spaces among these objects: all envs of the class share them. Seeding a space replaces its generator."""
    refused: str | None
    """The name of an object among these that neither a copy nor a fork can have."""

    def digests(self) -> dict[str, bytes]:
        """Digests of class attributes, globals of modules, and values that functions keep, by name."""
        found: dict[str, bytes] = {}
        for name, value in _named(self.code, self.own, self.copied):
            seen = None if is_generator(value) or isinstance(value, gym.Space) else digest(value)
            if seen is not None:  # two closures of one function share a name
                found[name if name not in found else f"{name} ({len(found)})"] = seen
        return found


def surroundings(parts: list[Any]) -> Surroundings:
    """Find the objects outside of an env that its code refers to."""
    kinds = list(dict.fromkeys(map(type, parts)))
    code: list[Any] = [one for one in parts if isinstance(one, types.FunctionType)]
    copied = set(map(id, code))
    for one in parts:
        held = getattr(one, "__dict__", None)
        values = list(held.values()) if isinstance(held, dict) else []
        code += [value for value in values if isinstance(value, types.FunctionType | type)]
        code += [type(value) for value in values if isinstance(value, enum.Enum)]
    own = {_package(kind) for kind in kinds if issubclass(kind, gym.Env)}
    generators: dict[str, Any] = {}
    spaces: dict[str, Any] = {}
    refused = None
    for name, value in _named([*kinds, *code], own, copied):
        items = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list | tuple) else []
        for one in (value, *items[:50]):
            if is_generator(one) and all(one is not known for known in generators.values()):
                generators[name if one is value else f"{name} ({len(generators)})"] = one
            elif refused is None and (refusal_of(type(one)) or (isinstance(one, np.memmap) and one.flags.writeable)):
                refused = name
        if isinstance(value, gym.Space):
            spaces[name] = value
    return Surroundings([*kinds, *code], own, copied, dict(list(generators.items())[:8]), spaces, refused)


def digest(value: Any) -> bytes | None:
    """A digest of an object's contents; None if the object is too large or cannot be read."""
    file = _Digest()
    try:
        value = _contents(value)
        _Pickler(file, 5).dump(value)
    except OverflowError:
        return None
    except Exception:  # anything may refuse to be pickled, in any way
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return None
        try:
            file.write(repr(value).encode(errors="replace"))
        except Exception:
            return None
    return file.hash.digest()


def _contents(value: Any) -> Any:
    if isinstance(value, ContextVar):
        return value.get(None)
    if isinstance(value, enum.Enum):
        return {name: its for name, its in vars(value).items() if not name.startswith("_")}
    if value is os.environ:
        return dict(os.environ)
    if name_of(type(value)) == "torch.Tensor":
        return value.detach().numpy()
    return vars(value) if type(value).__name__ == "local" and hasattr(value, "__dict__") else value


class _Pickler(pickle.Pickler):
    """A pickler that leaves out envs, because envs are copied."""

    def persistent_id(self, obj: Any) -> str | None:
        return "env" if isinstance(obj, gym.Env) else None


class _Digest(io.RawIOBase):
    """A file that keeps only a digest of the bytes written to it, and takes at most ``_LARGEST`` bytes."""

    def __init__(self) -> None:
        self.hash, self.left = hashlib.blake2b(digest_size=16), _LARGEST

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.left -= view.nbytes
        if self.left < 0:
            raise OverflowError
        self.hash.update(view)
        return view.nbytes


def _package(code: Any) -> str:
    return (module_of(code) or "builtins").split(".")[0]


def _is_library(code: Any, own: set[str]) -> bool:
    """Whether code belongs to an installed package that has no env or wrapper in the chain."""
    module, package = module_of(code) or "builtins", _package(code)
    if package in sys.stdlib_module_names or any(module == one or module.startswith(f"{one}.") for one in _LIBRARIES):
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return package not in own and file.startswith(_INSTALLED)


def _named(code: Iterable[Any], own: set[str], copied: set[int]) -> Iterator[tuple[str, Any]]:
    """Values that code refers to, by name, and the process-wide generators that it draws from. Classes and functions are
    followed instead of returned."""
    waiting, seen = list(code), dict[int, Any]()
    for one in waiting:  # breadth first; the list grows
        if len(seen) == _MOST_CODE:
            return
        if id(one) in seen or _is_library(one, own):
            continue
        seen[id(one)] = one
        for name, value in list(_of_class(one) if isinstance(one, type) else _of_function(one, id(one) in copied)):
            inner: Any = value.__func__ if isinstance(value, classmethod | staticmethod | types.MethodType) else value
            inner = inner.__wrapped__ if isinstance(inner, _CACHED) else inner
            if isinstance(inner, property):
                waiting += [part for part in (inner.fget, inner.fset) if isinstance(part, types.FunctionType)]
            elif isinstance(inner, types.FunctionType | type):
                waiting.append(inner)
            elif not isinstance(inner, types.ModuleType | types.BuiltinFunctionType | types.NoneType):
                waiting.append(type(inner))
                yield name, inner


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    yield from (("", base) for base in kind.__mro__[1:])  # classes need no name
    for name, value in vars(kind).items():
        if not name.startswith("__") or isinstance(value, types.FunctionType):
            yield f"{kind.__module__}.{kind.__qualname__}.{name}", value


def _of_function(function: types.FunctionType, is_copied: bool) -> Iterator[tuple[str, Any]]:
    """A function's globals, and the values it keeps between calls unless the function is copied with the env."""
    module = function.__globals__
    for path in _names_in(function.__code__):
        yield from _resolved(path, module)
    if is_copied:
        return
    name = f"{module.get('__name__')}.{function.__qualname__}"
    yield from ((f"{name}.{key}", value) for key, value in vars(function).items() if not key.startswith("__"))
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield from ((f"{name}'s default {place}", value) for place, value in enumerate(defaults))
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            yield f"{name}'s variable {variable}", cell.cell_contents


def _resolved(path: tuple[str, ...], module: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The value of a global or of a module's attribute that code reads: ``np.random.normal``, ``config.LEVEL``."""
    value: Any = module.get(path[0])
    name = f"{module.get('__name__')}.{path[0]}"
    for attribute in path[1:] if path[0] in module else ():
        if not isinstance(value, types.ModuleType):
            break
        if value.__name__ in ("random", "numpy.random", "torch") and attribute in _MAKE_GENERATORS:
            return
        if value.__name__ == "torch" and attribute in _TORCH_DRAWS:
            yield "torch", torch_generator()
        name, value = f"{value.__name__}.{attribute}", getattr(value, attribute, None)
    owner = value.__self__ if isinstance(value, types.BuiltinFunctionType | types.MethodType) else None
    if owner is not None and (owner is PROCESS_WIDE_NUMPY or owner is PROCESS_WIDE_PYTHON):
        yield "np.random" if owner is PROCESS_WIDE_NUMPY else "random", owner
    elif path[0] in module and not isinstance(value, types.ModuleType):
        yield name, owner if is_generator(owner) else value  # the owner: draw = generator.normal


@functools.lru_cache(maxsize=8192)
def _names_in(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """The globals that code reads or writes, each with the chain of attributes read right after it."""
    paths: list[list[str]] = []
    follows = False
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME"):
            paths.append([str(one.argval)])
            follows = True
        elif follows and one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            paths[-1].append(str(one.argval))
        elif one.opname not in ("CACHE", "PUSH_NULL", "PRECALL", "EXTENDED_ARG"):
            follows = False
    found = [tuple(path) for path in paths]
    for inner in code.co_consts:
        found += _names_in(inner) if isinstance(inner, types.CodeType) else ()
    return tuple(dict.fromkeys(found))
