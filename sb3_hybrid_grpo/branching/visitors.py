"""What an env is made of: for each type of object, its cells and the objects that it refers to."""

import collections
import datetime
import decimal
import enum
import fractions
import functools
import io
import logging
import multiprocessing.connection
import multiprocessing.process
import operator
import pathlib
import re
import socket
import subprocess
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from sb3_hybrid_grpo.branching.box2d import box2d_cell, box2d_names
from sb3_hybrid_grpo.branching.cells import (
    ArrayCell,
    HookCell,
    ListCell,
    MappingCell,
    ReferenceCell,
    SequenceCell,
    SlotsCell,
)
from sb3_hybrid_grpo.branching.classes import OutsideError, has_hidden_fields, slots_of
from sb3_hybrid_grpo.branching.engines import EngineCell, Registered, engine_of
from sb3_hybrid_grpo.branching.layout import ATOMS, is_plain_array, is_plain_vector
from sb3_hybrid_grpo.branching.objects import cell_of
from sb3_hybrid_grpo.branching.protocol import Cell

# Objects that never change, or whose changes are no part of a simulation. By type only: which *values* change cannot be
# learned from watching an env, rare events are missed.
CONSTANT: tuple[type, ...] = (
    *(int, float, complex, str, bytes, type, range, slice, property, staticmethod, classmethod, enum.Enum),
    *(types.ModuleType, types.CodeType, types.MappingProxyType, types.GenericAlias, types.NotImplementedType),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, weakref.ProxyType, weakref.CallableProxyType),
    *(np.generic, np.dtype, np.ufunc, weakref.ref, re.Pattern, pathlib.PurePath, uuid.UUID, fractions.Fraction),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal),
    *(operator.itemgetter, operator.attrgetter, operator.methodcaller, functools._lru_cache_wrapper),
    *(EnvSpec, logging.Logger, logging.Handler, type(threading.Lock()), type(threading.RLock()), type(Ellipsis)),
)
NUMBERS_AND_TEXTS = (int, float, complex, str, bytes)
_CONSTANT_MODULES = ("mujoco", "pygame", "glfw", "OpenGL", "typing")  # models, views and windows; MjData has an engine
_CYTHON_FUNCTION = "cython_function_or_method"  # each compiled module brings a type of this name
RECORDS_OF_ENVS = frozenset({"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_metadata", "metadata"})
CHECKERS = (OrderEnforcing, PassiveEnvChecker)
"""Wrappers that remember what they have checked, and change nothing."""

# written in Python, and yet no copy of their attributes brings them back
LIVING: tuple[type, ...] = (
    *(threading.Thread, threading.Event, threading.Condition, threading.Semaphore),
    *(multiprocessing.process.BaseProcess, multiprocessing.connection.Connection, subprocess.Popen, socket.socket),
)


Children = Iterable[tuple[str, Any]]
"""What an object refers to, and how."""


class Found(NamedTuple):
    """What the walk came across: objects with attributes, those that are no state, spaces, cells of all else, functions."""

    objects: list[Any]
    records: list[Any]
    spaces: list[Any]
    cells: list[Cell]
    functions: list[Any]


def visit(obj: Any, found: Found) -> Children:
    """
    Who saves an object: its own hook, a registered engine, the package's cells of Box2D, generators and MuJoCo; what is
    constant or alive is sorted out; all else is saved by what it is made of.

    :param obj: An object of the env
    :param found: Its cells are added
    :return: The objects it refers to, each with how it is reached
    :raises TypeError: if the object has state that cannot be copied
    """
    kind: type = type(obj)  # not obj.__class__, which a proxy borrows
    if issubclass(kind, gym.Env) and hasattr(kind, "save_state") and hasattr(kind, "restore_state"):
        found.cells.append(HookCell(obj))
        return _visit_generator(obj, found)
    if issubclass(kind, gym.Wrapper) and hasattr(kind, "step_siblings"):
        raise TypeError("the env refers to the wrapper that branches it")
    registered = engine_of(kind)
    if registered is not None:
        return _visit_registered(obj, *registered, found)
    if box2d_names(kind):
        return _visit_box2d(obj, found)
    cell = cell_of(obj)
    if cell is not None:
        found.cells.append(cell)
        return [*_visit_attributes(obj, found), *_seed_sequence(obj)]
    if issubclass(kind, CONSTANT) or kind.__module__.split(".")[0] in _CONSTANT_MODULES or kind.__name__ == _CYTHON_FUNCTION:
        if issubclass(kind, NUMBERS_AND_TEXTS) and hasattr(obj, "__dict__"):  # of a subclass, with attributes
            return _visit_attributes(obj, found)
        if not isinstance(obj, type):
            ATOMS.add(kind)
        return ()
    if issubclass(kind, LIVING):
        raise OutsideError(
            "which lives on outside of what can be saved or forked",
            "Hold it in a callback, or in a wrapper above make_branchable(env), which siblings never reach",
        )
    if kind in CHECKERS:
        return [(".env", obj.env)]
    for base, visitor in _VISITORS.items():
        if issubclass(kind, base):
            children = visitor(obj, found)
            return [*children, *_visit_attributes(obj, found)] if base in _BUILT_IN_CONTAINERS else children
    return _visit_object(obj, found)


def _seed_sequence(obj: Any) -> Children:
    """What a generator of numpy's spawns others from."""
    bits = obj.bit_generator if isinstance(obj, np.random.Generator) else obj
    return [(".seed_seq", getattr(bits, "seed_seq", None))] if isinstance(bits, np.random.BitGenerator) else ()


def _visit_object(obj: Any, found: Found) -> Children:
    """An instance of a class written in Python: its attributes and slots."""
    if has_hidden_fields(type(obj), len(slots_of(type(obj)))):
        raise TypeError(f"{type(obj)} has fields that Python cannot see")
    return _visit_attributes(obj, found)


def _visit_attributes(obj: Any, found: Found) -> list[tuple[str, Any]]:
    """The attributes and slots of an object that has any, be it an instance of a subclass of a container."""
    slots = slots_of(type(obj))
    children = []
    if slots:
        cell = SlotsCell(obj, slots)
        found.cells.append(cell)
        children = _walked((f".{slot.__name__}", value) for slot, value in cell.read().items())
    if not hasattr(obj, "__dict__"):
        return children
    found.objects.append(obj)
    records = [name for name in RECORDS_OF_ENVS if name in vars(obj)] if isinstance(obj, gym.Env) else []
    found.records.extend(vars(obj)[name] for name in records)
    return children + _walked((f".{name}", value) for name, value in vars(obj).items() if name not in records)


def _walked(items: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The values that a container's layout leaves to the walk."""
    return [(place, value) for place, value in items if not is_plain_array(value) and not is_plain_vector(value)]


def _visit_registered(obj: Any, registered_type: type, engine: Registered, found: Found) -> Children:
    """An object that an engine saves, and what a subclass adds to a type written in C."""
    cell = EngineCell(obj, registered_type, engine)
    found.cells.append(cell)
    if cell.has_more:
        return _visit_attributes(obj, found)
    return _visit_generator(obj, found) if isinstance(obj, gym.Env) else ()


def _visit_box2d(obj: Any, found: Found) -> Children:
    """An object of Box2D's: a pointer, "this", to what its cell or that of its world saves, and Python attributes."""
    cell = box2d_cell(obj)
    if cell is not None:
        found.cells.append(cell)
    return [(label, child) for label, child in _visit_attributes(obj, found) if label != ".this"]


def _visit_generator(env: Any, found: Found) -> Children:
    """The generator of an env, or of the env in a wrapper, that saves all the rest by itself."""
    owner = env.unwrapped
    if "_np_random" not in getattr(owner, "__dict__", {}):
        return ()
    read, write = functools.partial(getattr, owner, "_np_random"), functools.partial(setattr, owner, "_np_random")
    found.cells.append(ReferenceCell(read, write))
    return [("._np_random", owner._np_random)]


def _visit_space(space: Any, found: Found) -> Children:
    """A space is constant but for its generator, which some envs draw from."""
    found.spaces.append(space)
    inner = getattr(space, "spaces", ())
    spaces = [(f".{name}", value) for name, value in vars(space).items() if isinstance(value, gym.Space)]
    return [("._np_random", space._np_random), *spaces, *_values(inner.values() if isinstance(inner, dict) else inner)]


def _visit_mapping(obj: Any, found: Found) -> Children:
    found.cells.append(MappingCell(obj))
    return [*_walked((f"[{key!r}]", value) for key, value in obj.items()), *(("(key)", key) for key in obj)]


def _visit_array(obj: Any, found: Found) -> Children:
    if obj.dtype == object:
        found.cells.append(SequenceCell(obj, lambda array: list(array.flat), _write_array))
        return _values(obj.flat)
    if obj.dtype.hasobject:
        raise TypeError("records that refer to Python objects")
    found.cells.append(ArrayCell(obj))
    return [("", obj.base)] if isinstance(obj.base, np.ndarray) else ()


def _visit_function(obj: Any, found: Found) -> Children:
    found.functions.append(obj)
    closure = [(f"<closure {name}>", cell) for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True)]
    return [*closure, ("<defaults>", obj.__defaults__), ("<defaults>", obj.__kwdefaults__), (".__dict__", vars(obj))]


def _visit_closure(obj: types.CellType, found: Found) -> Children:
    found.cells.append(ReferenceCell(functools.partial(_read_closure, obj), functools.partial(_write_closure, obj)))
    return _walked([("", _read_closure(obj))])


_UNASSIGNED = object()


def _read_closure(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNASSIGNED


def _write_closure(cell: types.CellType, value: Any) -> None:
    if value is not _UNASSIGNED:
        cell.cell_contents = value
    elif _read_closure(cell) is not _UNASSIGNED:
        del cell.cell_contents


def _visit_stream(obj: Any, found: Found) -> Children:
    if obj in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) or obj.closed:
        return ()
    raise OutsideError(
        "an open file: all siblings would share its position, and what one writes cannot be taken back",
        "Read what the env needs of it before the training, and close it; write from a callback, or with SB3's Monitor, which "
        "siblings never reach",
    )


def _values(values: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(f"[{position}]", value) for position, value in _walked(enumerate(values))]


def _sequence(write: Callable[[Any, list[Any]], None]) -> "Visitor":
    """A visitor of containers with an order."""

    def visit(obj: Any, found: Found) -> Children:
        found.cells.append(SequenceCell(obj, list, write))
        return _values(obj)

    return visit


def _constant(*references: str) -> "Visitor":
    """A visitor of what refers to the same objects for ever, by these attributes."""
    return lambda obj, found: [(f".{name}", getattr(obj, name)) for name in references]


def _visit_list(obj: list[Any], found: Found) -> Children:
    found.cells.append(ListCell(obj))
    return _values(obj)


def _write_deque(obj: "collections.deque[Any]", values: list[Any]) -> None:
    collections.deque.clear(obj)
    collections.deque.extend(obj, values)


def _write_set(obj: set[Any], values: list[Any]) -> None:
    set.clear(obj)
    set.update(obj, values)


def _write_array(obj: np.ndarray, values: list[Any]) -> None:
    for position, value in enumerate(values):
        obj.flat[position] = value  # one by one: numpy would take a nested list apart


_BUILT_IN_CONTAINERS = (dict, list, collections.deque, set, np.ndarray, tuple, frozenset)
Visitor = Callable[[Any, Found], Children]
_VISITORS: dict[type, Visitor] = {
    gym.Space: _visit_space,
    dict: _visit_mapping,
    list: _visit_list,
    collections.deque: _sequence(_write_deque),
    set: _sequence(_write_set),
    np.ndarray: _visit_array,
    tuple: lambda obj, found: [("[]", value) for value in obj],
    frozenset: lambda obj, found: [("[]", value) for value in obj],
    types.FunctionType: _visit_function,
    types.CellType: _visit_closure,
    types.MethodType: _constant("__self__", "__func__"),
    types.BuiltinFunctionType: _constant("__self__"),
    types.MethodWrapperType: _constant("__self__"),
    functools.partial: _constant("func", "args", "keywords"),
    **dict.fromkeys((io.TextIOWrapper, io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom), _visit_stream),
}
