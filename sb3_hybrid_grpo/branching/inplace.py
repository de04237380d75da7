"""Save and restore an env in place: the contents of every mutable object reachable from it."""

import collections
import datetime
import decimal
import enum
import fractions
import functools
import io
import logging
import operator
import pathlib
import re
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

from sb3_hybrid_grpo.branching.cells import (
    ATOMS,
    ArrayCell,
    AttributesCell,
    Cell,
    HookCell,
    MappingCell,
    ObjectCell,
    ReferenceCell,
    SequenceCell,
    SlotsCell,
    StructureChanged,
)
from sb3_hybrid_grpo.branching.objects import engine_of
from sb3_hybrid_grpo.branching.protocol import SupportsBranching
from sb3_hybrid_grpo.errors import BranchingError

# Objects that never change, or whose changes are no part of a simulation. By type only: which *values* change cannot be
# learned from watching an env, rare events are missed.
_CONSTANT: tuple[type, ...] = (
    *(int, float, complex, str, bytes, type, range, slice, property, staticmethod, classmethod, enum.Enum),
    *(types.ModuleType, types.CodeType, types.BuiltinFunctionType, types.MappingProxyType, types.GenericAlias),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType, types.NotImplementedType),
    *(np.generic, np.dtype, np.ufunc, weakref.ref, re.Pattern, pathlib.PurePath, uuid.UUID, fractions.Fraction),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal),
    *(operator.itemgetter, operator.attrgetter, operator.methodcaller, functools._lru_cache_wrapper),
    *(EnvSpec, logging.Logger, logging.Handler, type(threading.Lock()), type(threading.RLock()), type(Ellipsis)),
)
_CONSTANT_MODULES = ("mujoco", "pygame", "glfw", "OpenGL", "typing")  # models, views and windows; MjData has an engine
_CONSTRUCTOR_RECORDS = frozenset(
    {"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_cached_spec", "spec", "_metadata", "metadata"}
)
# written in Python, and yet no copy of their attributes brings them back
_LIVING = (threading.Thread, threading.Event, threading.Condition, threading.Semaphore)


class InPlaceSnapshot(NamedTuple):
    """The cells of an env, and the contents of each."""

    cells: list[Cell]
    contents: list[Any]


class InPlaceEngine:
    """
    Copies the contents of every mutable object that is reachable from the env, its wrappers and its generators of random
    numbers included, and writes them back into the same objects.

    The env is walked once; a save then copies everything and checks that each container still refers to the same objects.
    Where one does not, the env is walked again.

    :param env: The env, with the wrappers to be saved
    :raises BranchingError: if the env holds something that cannot be copied
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        env.unwrapped.np_random  # noqa: B018  a generator made only after a save would be made anew after each restore
        self._cells = self._walk()

    def save(self, previous: InPlaceSnapshot | None = None) -> InPlaceSnapshot:
        cells = self._cells
        old = previous.contents if previous is not None and previous.cells is cells else [None] * len(cells)
        try:
            return InPlaceSnapshot(cells, [cell.save(contents) for cell, contents in zip(cells, old, strict=True)])
        except StructureChanged:
            cells = self._cells = self._walk()
            return InPlaceSnapshot(cells, [cell.save(None) for cell in cells])

    def restore(self, snapshot: InPlaceSnapshot) -> None:
        for cell, contents in zip(snapshot.cells, snapshot.contents, strict=True):
            cell.restore(contents)

    def _walk(self) -> list[Cell]:
        """Visit every object once and collect the cells."""
        cells: list[Cell] = []
        holders: dict[int, tuple[Any, int | None, str]] = {id(self.env): (self.env, None, "")}  # also keeps them alive
        waiting: list[Any] = [self.env]
        while waiting:
            obj = waiting.pop()
            try:
                own_cells, children = _visit(obj)
            except TypeError as error:
                raise self._refusal(obj, holders) from error
            cells.extend(own_cells)
            for label, child in children:
                if type(child) not in ATOMS and id(child) not in holders:
                    holders[id(child)] = (child, id(obj), label)
                    waiting.append(child)
        return cells

    def _refusal(self, obj: Any, holders: dict[int, tuple[Any, int | None, str]]) -> BranchingError:
        path, key = "", id(obj)
        holder: Any = self.env
        while True:
            _, parent, label = holders[key]
            path = label + path
            if parent is None:
                break
            holder, key = holders[parent][0], parent
            if hasattr(holder, "__dict__") and not isinstance(holder, types.FunctionType):
                break
        kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
        return BranchingError(
            f"{self.env} cannot be branched: {type(holder).__qualname__}{path} holds a {kind}, which cannot be copied and "
            "put back. Keep the object out of the env, or give the env the two methods of "
            "sb3_hybrid_grpo.branching.SupportsBranching, save_state() and restore_state(state); "
            "n_samples=1 (plain PPO) needs no branching."
        )


Children = Iterable[tuple[str, Any]]


def _visit(obj: Any) -> tuple[list[Cell], Children]:
    """
    :param obj: An object of the env
    :return: Its cells, and the objects it refers to, each with how it is reached
    :raises TypeError: if the object has state that cannot be copied
    """
    if isinstance(obj, gym.Env) and isinstance(obj, SupportsBranching):
        return _visit_hooked(obj)
    engine = engine_of(obj)
    if engine is not None:
        return [ObjectCell(obj, engine)], ()
    if isinstance(obj, _CONSTANT) or type(obj).__module__.split(".")[0] in _CONSTANT_MODULES:
        if not isinstance(obj, type):
            ATOMS.add(type(obj))
        return [], ()
    if isinstance(obj, _LIVING):
        raise TypeError(f"{type(obj)} is alive")
    for kind, visit in _VISITORS.items():
        if isinstance(obj, kind):
            cells, children = visit(obj)
            if hasattr(obj, "__dict__") and kind in _BUILT_IN_CONTAINERS:  # an instance of a subclass
                cells, children = [*cells, AttributesCell(obj)], [*children, *_attributes(obj)]
            return cells, children
    return _visit_object(obj)


def _visit_object(obj: Any) -> tuple[list[Cell], Children]:
    """An instance of a class written in Python: its attributes and slots."""
    slots = _slot_names(type(obj))
    if _hidden_bytes(type(obj), len(slots)):
        raise TypeError(f"{type(obj)} has fields that Python cannot see")
    cells: list[Cell] = []
    children: list[tuple[str, Any]] = []
    if hasattr(obj, "__dict__"):
        cells.append(AttributesCell(obj, _CONSTRUCTOR_RECORDS))
        children += [(label, child) for label, child in _attributes(obj) if label[1:] not in _CONSTRUCTOR_RECORDS]
    if slots:
        cells.append(SlotsCell(obj, slots))
        children += [(f".{name}", getattr(obj, name)) for name in slots if hasattr(obj, name)]
    return cells, children


def _visit_hooked(env: Any) -> tuple[list[Cell], Children]:
    """An env that saves itself; its generator besides."""
    if "_np_random" not in getattr(env, "__dict__", {}):
        return [HookCell(env)], ()
    random = ReferenceCell(functools.partial(getattr, env, "_np_random"), functools.partial(setattr, env, "_np_random"))
    return [HookCell(env), random], [("._np_random", env._np_random)]


def _visit_space(space: Any) -> tuple[list[Cell], Children]:
    """A space is constant but for its generator, which some envs draw from."""
    random = ReferenceCell(functools.partial(getattr, space, "_np_random"), functools.partial(setattr, space, "_np_random"))
    inner = getattr(space, "spaces", ())
    return [random], [("._np_random", space._np_random), *_values(inner.values() if isinstance(inner, dict) else inner)]


def _visit_mapping(obj: Any) -> tuple[list[Cell], Children]:
    return [MappingCell(obj)], [*((f"[{key!r}]", value) for key, value in obj.items()), *(("(key)", key) for key in obj)]


def _visit_sequence(write: Callable[[Any, list[Any]], None]) -> Callable[[Any], tuple[list[Cell], Children]]:
    return lambda obj: ([SequenceCell(obj, write)], _values(obj))


def _visit_array(obj: Any) -> tuple[list[Cell], Children]:
    if obj.dtype.hasobject:
        return [SequenceCell(obj, _write_array)], _values(obj.flat)
    return [ArrayCell(obj)], [("", obj.base)] if isinstance(obj.base, np.ndarray) else ()


def _visit_function(obj: Any) -> tuple[list[Cell], Children]:
    closure = [(f"<closure {name}>", cell) for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True)]
    return [], [*closure, ("<defaults>", obj.__defaults__), ("<defaults>", obj.__kwdefaults__), (".__dict__", vars(obj))]


def _visit_closure(obj: types.CellType) -> tuple[list[Cell], Children]:
    try:
        contents = obj.cell_contents
    except ValueError:  # not assigned yet
        return [], ()
    return [ReferenceCell(lambda: obj.cell_contents, functools.partial(setattr, obj, "cell_contents"))], [("", contents)]


def _attributes(obj: Any) -> list[tuple[str, Any]]:
    return [(f".{name}", value) for name, value in vars(obj).items()]


def _values(values: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(f"[{position}]", value) for position, value in enumerate(values)]


def _write_list(obj: list[Any], values: list[Any]) -> None:
    list.__setitem__(obj, slice(None), values)


def _write_deque(obj: "collections.deque[Any]", values: list[Any]) -> None:
    collections.deque.clear(obj)
    collections.deque.extend(obj, values)


def _write_set(obj: set[Any], values: list[Any]) -> None:
    set.clear(obj)
    set.update(obj, values)


def _write_bytes(obj: bytearray, values: list[int]) -> None:
    obj[:] = bytes(values)


def _write_array(obj: np.ndarray, values: list[Any]) -> None:
    for position, value in enumerate(values):
        obj.flat[position] = value  # one by one: numpy would take a nested list apart


_BUILT_IN_CONTAINERS = (dict, list, collections.deque, set, bytearray, np.ndarray, tuple, frozenset)
_VISITORS: dict[type, Callable[[Any], tuple[list[Cell], Children]]] = {
    gym.Space: _visit_space,
    dict: _visit_mapping,
    list: _visit_sequence(_write_list),
    collections.deque: _visit_sequence(_write_deque),
    set: _visit_sequence(_write_set),
    bytearray: _visit_sequence(_write_bytes),
    np.ndarray: _visit_array,
    tuple: lambda obj: ([], _values(obj)),
    frozenset: lambda obj: ([], _values(obj)),
    types.FunctionType: _visit_function,
    types.CellType: _visit_closure,
    types.MethodType: lambda obj: ([], [("", obj.__self__), ("", obj.__func__)]),
    functools.partial: lambda obj: ([], [("(func)", obj.func), ("(args)", obj.args), ("(keywords)", obj.keywords)]),
    io.TextIOWrapper: lambda obj: _visit_stream(obj),
}


def _visit_stream(obj: Any) -> tuple[list[Cell], Children]:
    if obj in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) or obj.closed:
        return [], ()
    raise TypeError("an open file has a position, and what a sibling writes cannot be taken back")


def _slot_names(kind: type) -> list[str]:
    names: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _hidden_bytes(kind: type, n_slots: int) -> bool:
    """Whether instances have room for more than a header, a ``__dict__``, weak references and slots: fields in C."""
    known = object.__basicsize__ + 8 * ((kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0) + n_slots)
    return kind.__basicsize__ > known or kind.__itemsize__ > 0
