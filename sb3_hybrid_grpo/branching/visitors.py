"""What an env is made of: for each type of object, its cells and the objects that it refers to."""

import collections
import functools
import io
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.box2d import WorldCell, box2d_cell, box2d_names
from sb3_hybrid_grpo.branching.cells import (
    ArrayCell,
    HookCell,
    ListCell,
    MappingCell,
    ReferenceCell,
    SequenceCell,
    SlotsCell,
)
from sb3_hybrid_grpo.branching.classes import OutsideError, has_hidden_fields, package_of, slots_of
from sb3_hybrid_grpo.branching.engines import EngineCell, Registered, engine_of
from sb3_hybrid_grpo.branching.kinds import (
    CHECKERS,
    CONSTANT,
    CONSTANT_MODULES,
    CYTHON_FUNCTION,
    LIVING,
    NUMBERS_AND_TEXTS,
    RECORDS_OF_ENVS,
    saves_itself,
)
from sb3_hybrid_grpo.branching.layout import ATOMS, is_plain_array, is_plain_tuple, is_plain_vector
from sb3_hybrid_grpo.branching.objects import cell_of, has_cell
from sb3_hybrid_grpo.branching.protocol import Cell


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
    kind: Any = type(obj)  # not obj.__class__, which a proxy borrows
    engine = engine_of(kind)
    if engine is not None and not saves_itself(kind):
        return _visit_registered(obj, *engine, found)
    return _visitor_of(kind)(obj, found)


@functools.lru_cache(maxsize=4096)
def _visitor_of(kind: Any) -> "Visitor":
    if saves_itself(kind):
        return _visit_hooked
    if issubclass(kind, gym.Wrapper) and hasattr(kind, "step_siblings"):
        return _refuse_branching
    if box2d_names(kind):
        return _visit_box2d
    if has_cell(kind):
        return _visit_opaque
    if issubclass(kind, CONSTANT) or package_of(kind) in CONSTANT_MODULES or kind.__name__ == CYTHON_FUNCTION:
        return _visit_constant
    if issubclass(kind, LIVING):
        return _refuse_living
    if kind in CHECKERS:
        return _constant("env")
    for base, visitor in _VISITORS.items():
        if issubclass(kind, base):
            has_more = base in _BUILT_IN_CONTAINERS and kind is not base
            return functools.partial(_visit_with_attributes, visitor) if has_more else visitor
    return _visit_object


def _visit_hooked(obj: Any, found: Found) -> Children:
    """An env that saves itself."""
    found.cells.append(HookCell(obj))
    return _visit_generator(obj, found)


def _refuse_branching(obj: Any, found: Found) -> Children:
    raise TypeError("the env refers to the wrapper that branches it")


def _refuse_living(obj: Any, found: Found) -> Children:
    raise OutsideError(
        "which lives on outside of what can be saved or forked",
        "Hold it in a callback, or in a wrapper above make_branchable(env), which siblings never reach",
    )


def _visit_opaque(obj: Any, found: Found) -> Children:
    """An object whose state Python cannot see."""
    found.cells.append(cell_of(obj))
    return [*_visit_attributes(obj, found), *_seed_sequence(obj)]


def _visit_constant(obj: Any, found: Found) -> Children:
    if isinstance(obj, NUMBERS_AND_TEXTS) and hasattr(obj, "__dict__"):  # of a subclass, with attributes
        return _visit_attributes(obj, found)
    if not isinstance(obj, type):
        ATOMS.add(type(obj))
    return ()


def _visit_with_attributes(visitor: "Visitor", obj: Any, found: Found) -> Children:
    """An object of a subclass of a container."""
    return [*visitor(obj, found), *_visit_attributes(obj, found)]


def _seed_sequence(obj: Any) -> Children:
    """What a generator of numpy's spawns others from."""
    bits = obj.bit_generator if isinstance(obj, np.random.Generator) else obj
    return [(".seed_seq", getattr(bits, "seed_seq", None))] if isinstance(bits, np.random.BitGenerator) else ()


def _visit_object(obj: Any, found: Found) -> Children:
    """An instance of a class written in Python: its attributes and slots."""
    kind: Any = type(obj)
    if has_hidden_fields(kind, len(slots_of(kind))):
        raise TypeError(f"{kind} has fields that Python cannot see")
    return _visit_attributes(obj, found)


def _visit_attributes(obj: Any, found: Found) -> list[tuple[str, Any]]:
    """The attributes and slots of an object that has any, be it an instance of a subclass of a container."""
    kind: Any = type(obj)
    slots = slots_of(kind)
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
    found = [one for one in items if type(one[1]) not in ATOMS]
    return [one for one in found if not (is_plain_array(one[1]) or is_plain_vector(one[1]) or is_plain_tuple(one[1]))]


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
    held = [("<userData>", one) for one in cell.held] if isinstance(cell, WorldCell) else []
    return [*held, *((label, child) for label, child in _visit_attributes(obj, found) if label != ".this")]


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


def _members(values: Iterable[Any]) -> list[tuple[str, Any]]:
    """What a container without a layout refers to: arrays and vectors too, which nobody else would save."""
    return [("[]", value) for value in values if type(value) not in ATOMS and not is_plain_tuple(value)]


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
    tuple: lambda obj, found: _members(obj),
    frozenset: lambda obj, found: _members(obj),
    types.FunctionType: _visit_function,
    types.CellType: _visit_closure,
    types.MethodType: _constant("__self__", "__func__"),
    types.BuiltinFunctionType: _constant("__self__"),
    types.MethodWrapperType: _constant("__self__"),
    functools.partial: _constant("func", "args", "keywords"),
    **dict.fromkeys((io.TextIOWrapper, io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom), _visit_stream),
}
