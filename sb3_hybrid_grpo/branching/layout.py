"""What a container refers to, checked and copied in a few calls into C."""

import ctypes
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.memory import addresses

ATOMS: set[type] = {int, float, bool, str, bytes, complex, type(None), np.float64, np.float32, np.int64, np.bool_}
"""Types whose objects never change. Types met on the way are added."""

MANY = 64
"""As many values are worth a look whether they are the very same as before, which makes all other looks superfluous."""

Copies = list[tuple[np.ndarray, np.ndarray]]
"""Arrays, each with a copy of its contents."""


class StructureChanged(Exception):
    """A container refers to other objects than when the env was walked: walk it again."""


def is_plain_array(value: Any) -> bool:
    """Whether a value is an array of numbers, which its holder's :class:`Layout` copies."""
    return type(value) is np.ndarray and not value.dtype.hasobject


def is_plain_vector(value: Any) -> bool:
    """Whether a value is a vector of Box2D's without Python attributes, which is replaced as often as a tuple."""
    kind = type(value)
    return kind.__name__ == "b2Vec2" and kind.__module__ == "Box2D.Box2D" and len(value.__dict__) == 1


def is_plain_tuple(value: Any) -> bool:
    """Whether a value is a tuple, perhaps a named one, in which nothing can change."""
    return isinstance(value, tuple) and not hasattr(value, "__dict__") and ATOMS.issuperset(map(type, value))


class Layout:
    """
    What a container's values were when the env was walked, so that a save sees in a few calls into C whether they still are.

    Contents are copied at every save, whether they changed before or not; only the *shape* of the graph is remembered.
    Arrays and tuples of atoms may be replaced by new ones at will, as many envs do with their state.

    :param values: The container's values
    :param skip: Values whose contents are no state
    """

    def __init__(self, values: Iterable[Any], skip: Iterable[Any] = ()) -> None:
        self.skip = {id(value): value for value in skip}
        self.types: list[type] = []
        self.arrays: list[int] = []
        self.vectors: list[int] = []
        self.children: list[tuple[int, Any]] = []
        self.tuples: list[tuple[int, Any]] = []
        """Those that were last seen to hold nothing but atoms."""
        self.seen: tuple[list[Any], bytes] = [], b""
        """The values that were last accepted, if they were many."""
        for position, value in enumerate(values):
            self.types.append(type(value))
            if type(value) in ATOMS:
                continue
            if is_plain_array(value):
                self.arrays.append(position)
            elif is_plain_tuple(value):
                self.tuples.append((position, value))
            elif is_plain_vector(value):
                self.vectors.append(position)
            elif id(value) not in self.skip:
                self.children.append((position, value))

    def save(self, values: Sequence[Any]) -> Copies:
        """
        Copy the arrays among the values.

        :param values: The container's values now
        :return: Each array that can change, and a copy
        :raises StructureChanged: if the container refers to other objects than before
        """
        if len(values) < MANY:
            self._check(values)
        else:
            held = list(values)
            if addresses(held) != self.seen[1]:
                self._check(values)
                self.seen = held, addresses(held)
        copies: Copies = []
        for position in self.arrays:
            array = values[position]
            if array.flags.writeable and not array.dtype.hasobject:
                copies.append((array, array.copy()))
            else:
                copies += array_copies(array)
        for position in self.vectors:
            copies += _vector_copies(values[position])
        return copies

    def _check(self, values: Sequence[Any]) -> None:
        """See whether the container refers to other objects than before."""
        types = list(map(type, values))
        if types != self.types:
            self._accept(values, types)
        for position, child in self.children:
            if values[position] is not child:
                raise StructureChanged
        for number, (position, seen) in enumerate(self.tuples):
            value = values[position]
            if value is not seen:
                if not ATOMS.issuperset(map(type, value)):
                    raise StructureChanged
                self.tuples[number] = (position, value)

    def _accept(self, values: Sequence[Any], types: list[type]) -> None:
        """Go on with other values if there is nothing among them that the env must be walked for."""
        if len(types) == len(self.types):
            changed = [kind for pair in zip(types, self.types) if pair[0] is not pair[1] for kind in pair]  # noqa: B905  hot
        else:
            changed = [*types, *self.types]
        if ATOMS.issuperset(changed):
            self.types = types
            return
        new = Layout(values, self.skip.values())
        if not identical([child for _, child in self.children], [child for _, child in new.children]):
            raise StructureChanged
        self.__dict__.update(new.__dict__)


def array_copies(array: np.ndarray) -> Copies:
    """
    Copy an array, or what a read-only view is a view of.

    :param array: The array
    :return: What can change and a copy of it; nothing where nothing can
    :raises StructureChanged: if the array refers to objects
    """
    if array.dtype.hasobject:
        raise StructureChanged
    while not array.flags.writeable:
        if not isinstance(array.base, np.ndarray):
            return []  # constant
        array = array.base  # a read-only view of something that may yet be written to
    return [(array, array.copy())]


def can_change(array: np.ndarray) -> bool:
    """Whether an array, or what it is a view of, can be written to."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return True
        base = base.base
    return base is not None


def _vector_copies(vector: Any) -> Copies:
    if not is_plain_vector(vector):
        raise StructureChanged
    if not vector.this.own():
        return []  # a part of a world, saved with it
    memory: Any = (ctypes.c_float * 2).from_address(int(vector.this))
    numbers: np.ndarray = np.frombuffer(memory, np.float32)
    return [(numbers, numbers.copy())]


def write_back(copies: Copies) -> None:
    """Put copies back into their arrays."""
    for array, copy in copies:
        array[...] = copy


def identical(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two sequences hold the very same objects in the same order."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
