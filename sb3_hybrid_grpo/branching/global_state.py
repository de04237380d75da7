"""
What an env shares with its process: generators of random numbers, which get streams of the env's own, and other values, which
nothing can copy and the check must see.
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
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.engines import MemberState, Shared, refusal_of
from sb3_hybrid_grpo.branching.native_types import (
    GENERATORS,
    PROCESS_WIDE_NUMPY,
    PROCESS_WIDE_PYTHON,
    set_state,
    state_of,
)

_LIBRARIES = (
    *("gymnasium.core", "gymnasium.wrappers", "gymnasium.spaces", "gymnasium.logger", "gymnasium.envs.registration"),
    *("stable_baselines3", "sb3_hybrid_grpo.branching", "Box2D", "ale_py", "cv2", "jax", "matplotlib", "mujoco", "numpy"),
    *("pandas", "pygame", "scipy", "torch", "networkx"),
)
"""Code that is not looked at: what these keep is no state of an env, the name of an object that was last printed, say."""
_MAKE_GENERATORS = frozenset({"default_rng", "Generator", "RandomState", "SeedSequence", "PCG64", "MT19937", "Random"})
_TORCH_DRAWS = frozenset({"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like"})
_CACHED: Any = type(functools.lru_cache(len))
_LARGEST, _ALL, _MOST_CODE = 2**20, 2**23, 4000
"""Bytes of a value and of all values that are looked at (larger tables hardly change), and how many functions and classes."""


class Generator(NamedTuple):
    """A generator that envs of a process share."""

    name: str
    shared: Shared
    reseed: Callable[[], Any]
    """Draws a seed from it, and goes on from there: no other stream goes on so."""


def _generator(name: str, obj: Any) -> Generator:
    def reseed() -> None:
        if isinstance(obj, np.random.Generator):
            obj.bit_generator.state = type(obj.bit_generator)(int(obj.integers(2**63))).state
        elif isinstance(obj, np.random.BitGenerator):
            obj.state = type(obj)(int(obj.random_raw())).state
        else:
            obj.seed(int(obj.randint(2**31)) if isinstance(obj, np.random.RandomState) else obj.getrandbits(64))

    return Generator(name, Shared(obj, state_of, set_state), reseed)


def process_wide_generators() -> dict[str, Generator]:
    """The generators of the whole process, by name: numpy's, Python's, and torch's where it is loaded."""
    found = {"np.random": _generator("np.random", PROCESS_WIDE_NUMPY), "random": _generator("random", PROCESS_WIDE_PYTHON)}
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "default_generator"):
        shared = Shared(torch.default_generator, lambda _: torch.get_rng_state(), lambda _, state: torch.set_rng_state(state))
        found["torch"] = Generator("torch", shared, lambda: torch.manual_seed(int(torch.randint(2**62, (1,)))))
    return found


def _of_space(name: str, space: gym.Space[Any]) -> Generator:
    """The generator of a space that is an attribute of a class: all envs of the class draw from it."""

    def restore(_: Any, state: Any) -> None:
        space.np_random.bit_generator.state = state

    shared = Shared(space, lambda _: space.np_random.bit_generator.state, restore)
    return Generator(name, shared, lambda: space.seed(int(space.np_random.integers(2**31))))


def own_streams(generators: Iterable[Generator], reseed: bool = True) -> MemberState:
    """Begin streams of an env's own in the place of generators that it shares. Each begins where its generator is."""
    generators = list(generators)
    states = [one.shared.save(one.shared.obj) for one in generators]
    for one in generators if reseed else ():
        one.reseed()
    return MemberState([one.shared for one in generators], states)


class Surroundings(NamedTuple):
    """What an env's code refers to outside of the env."""

    code: list[Any]
    """Classes and functions."""
    own: set[str]
    """The packages that are looked into."""
    copied: set[int]
    """The ids of functions of which a copy of the env has its own."""
    generators: tuple[Generator, ...]
    """Generators of random numbers that are found, and those of the process that the code draws from."""
    spaces: tuple[Generator, ...]
    """Those of spaces that are found."""
    refused: tuple[str, Any] | None
    """Something that neither copies nor forks can have."""

    def digests(self) -> dict[str, bytes]:
        """Read attributes of classes, globals of modules, and what functions keep."""
        found: dict[str, bytes] = {}
        left = _ALL
        for name, value in _named(self.code, self.own, self.copied):
            file = _Digest(min(left, _LARGEST))
            if not isinstance(value, (*GENERATORS, gym.Space, Generator)) and _digested(value, file):
                left -= file.size
                # two closures of one function share a name
                found[name if name not in found else f"{name} ({len(found)})"] = file.hash.digest()
        return found


def surroundings(parts: list[Any]) -> Surroundings:
    """Follow an env's code to what it refers to."""
    kinds = list(dict.fromkeys(map(type, parts)))
    code: list[Any] = [one for one in parts if isinstance(one, types.FunctionType)]
    copied = set(map(id, code))
    for one in parts:
        held = getattr(one, "__dict__", None)
        values = list(held.values()) if isinstance(held, dict) else []
        code += [value for value in values if isinstance(value, types.FunctionType | type)]
        code += [type(value) for value in values if isinstance(value, enum.Enum)]
    own = {_package(kind) for kind in kinds if issubclass(kind, gym.Env)}
    generators: dict[int, Generator] = {}
    spaces: dict[int, Generator] = {}
    refused = None
    for name, value in _named([*kinds, *code], own, copied):
        items = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list | tuple) else []
        for one in (value, *items[:50]):
            if isinstance(one, GENERATORS):
                generators.setdefault(id(one), _generator(name, one))
            elif refused is None and refusal_of(type(one)) is not None:
                refused = name, one
        if isinstance(value, Generator):
            generators.setdefault(id(value.shared.obj), value)
        elif isinstance(value, gym.Space):
            spaces.setdefault(id(value), _of_space(name, value))
    return Surroundings([*kinds, *code], own, copied, tuple(generators.values())[:8], tuple(spaces.values()), refused)


def digest(value: Any) -> bytes | None:
    """A digest of an object's contents; None where it is too large or cannot be read."""
    file = _Digest(_LARGEST)
    return file.hash.digest() if _digested(value, file) else None


def _contents(value: Any) -> Any:
    if isinstance(value, ContextVar):
        return value.get(None)
    if isinstance(value, enum.Enum):
        return {name: its for name, its in vars(value).items() if not name.startswith("_")}
    if value is os.environ:
        return dict(os.environ)
    return vars(value) if type(value).__name__ == "local" and hasattr(value, "__dict__") else value


def _digested(value: Any, file: "_Digest") -> bool:
    """Write all of a value to a file; False where it is too large, or lets nobody look."""
    value = _contents(value)
    if isinstance(value, np.ndarray) and value.nbytes > file.largest:
        return False
    try:
        _Pickler(file, 5).dump(value)
    except _TooLargeError:
        return False
    except Exception:  # anything may refuse to be pickled, in any way
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return False
        try:
            file.write(repr(value).encode(errors="replace"))
        except Exception:
            return False
    return True


class _Pickler(pickle.Pickler):
    """Leaves out envs, which are copied."""

    def persistent_id(self, obj: Any) -> str | None:
        return "env" if isinstance(obj, gym.Env) else None


class _TooLargeError(Exception):
    """A value is larger than what is looked at."""


class _Digest(io.RawIOBase):
    """A file that keeps of what is written to it a digest alone, and takes so many bytes."""

    def __init__(self, largest: int) -> None:
        self.hash, self.size, self.largest = hashlib.blake2b(digest_size=16), 0, largest

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.size += view.nbytes
        if self.size > self.largest:
            raise _TooLargeError
        self.hash.update(view)
        return view.nbytes


def _package(code: Any) -> str:
    module = getattr(code, "__module__", None)
    return module.split(".")[0] if isinstance(module, str) else "builtins"


def _is_library(code: Any, own: set[str]) -> bool:
    """Whether code is another's: that of an installed package which has no env or wrapper in the chain."""
    module = getattr(code, "__module__", None)
    module, package = module if isinstance(module, str) else "builtins", _package(code)
    if package in sys.stdlib_module_names or any(module == one or module.startswith(f"{one}.") for one in _LIBRARIES):
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    folders = [sysconfig.get_path(kind) + os.sep for kind in ("purelib", "platlib")]
    return package not in own and any(map(file.startswith, folders))


def _named(code: Iterable[Any], own: set[str], copied: set[int]) -> Iterator[tuple[str, Any]]:
    """What code refers to that is neither its own nor code, by name, and the process's generators that it draws from."""
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
    yield from (("", base) for base in kind.__mro__[1:])  # code, which needs no name
    for name, value in vars(kind).items():
        if not name.startswith("__") or isinstance(value, types.FunctionType):
            yield f"{kind.__module__}.{kind.__qualname__}.{name}", value


def _of_function(function: types.FunctionType, is_copied: bool) -> Iterator[tuple[str, Any]]:
    """A function's globals, and what it keeps from call to call, unless each copy of the env has a function of its own."""
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
    """The global that a piece of code names, and what it reads of a module: ``np.random.normal``, ``config.LEVEL``."""
    value: Any = module.get(path[0])
    name = f"{module.get('__name__')}.{path[0]}"
    for attribute in path[1:] if path[0] in module else ():
        if not isinstance(value, types.ModuleType):
            break
        if value.__name__ in ("random", "numpy.random", "torch") and attribute in _MAKE_GENERATORS:
            return
        if value.__name__ == "torch" and attribute in _TORCH_DRAWS:
            yield "torch", process_wide_generators()["torch"]
        name, value = f"{value.__name__}.{attribute}", getattr(value, attribute, None)
    owner = value.__self__ if isinstance(value, types.BuiltinFunctionType | types.MethodType) else None
    if owner is not None and (owner is PROCESS_WIDE_NUMPY or owner is PROCESS_WIDE_PYTHON):
        wide = "np.random" if owner is PROCESS_WIDE_NUMPY else "random"
        yield wide, process_wide_generators()[wide]
    elif path[0] in module and not isinstance(value, types.ModuleType):
        yield name, value


@functools.lru_cache(maxsize=8192)
def _names_in(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """The globals that code reads or writes, each with the attributes that it reads of it at once."""
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
