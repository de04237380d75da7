"""
Cells: the mutable objects that an env is made of, each able to save its contents and to write them back in place.

Identities survive a restore, so that every alias (wrapper and env, env and simulator, two views of an array) stays one.
"""

import collections
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from sb3_hybrid_grpo.branching.protocol import ObjectEngine, SupportsBranching

ATOMS: set[type] = {int, float, bool, str, bytes, complex, type(None), np.float64, np.float32, np.int64, np.bool_}
"""Types whose objects never change. Types met on the way are added."""


class StructureChanged(Exception):
    """A container refers to other objects than when the env was walked: walk it again."""


class Cell(Protocol):
    """One mutable object."""

    def save(self, previous: Any) -> Any: ...

    def restore(self, contents: Any) -> None: ...


class Layout:
    """
    What a container's values were when the env was walked, so that a save sees in a few calls into C whether they still are.

    Contents are copied at every save, whether they changed before or not; only the *shape* of the graph is remembered.
    Arrays and tuples of atoms may be replaced by new ones at will, as many envs do with their state.

    :param values: The container's values
    :param skip: Positions of values that are no state (records of the constructor's arguments)
    """

    def __init__(self, values: Sequence[Any], skip: Iterable[int] = ()) -> None:
        self.types = list(map(type, values))
        skipped = set(skip)
        self.arrays: list[int] = []
        self.tuples: list[int] = []
        self.children: list[tuple[int, Any]] = []
        for position, value in enumerate(values):
            if type(value) in ATOMS or position in skipped:
                continue
            if type(value) is np.ndarray and not value.dtype.hasobject:
                self.arrays.append(position)
            elif type(value) is tuple and ATOMS.issuperset(map(type, value)):
                self.tuples.append(position)
            else:
                self.children.append((position, value))

    def save(self, values: list[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        """
        Copy the arrays among the values.

        :param values: The container's values now
        :return: Each array that can change, and a copy
        :raises StructureChanged: if the container refers to other objects than before
        """
        types = list(map(type, values))
        if types != self.types:
            self._accept(types)
        for position, child in self.children:
            if values[position] is not child:
                raise StructureChanged
        for position in self.tuples:
            if not ATOMS.issuperset(map(type, values[position])):
                raise StructureChanged
        copies = []
        for position in self.arrays:
            array = values[position]
            if array.dtype.hasobject:
                raise StructureChanged
            while not array.flags.writeable and isinstance(array.base, np.ndarray):
                array = array.base  # a read-only view of something that may yet be written to
            if array.flags.writeable:
                copies.append((array, array.copy()))
        return copies

    def _accept(self, types: list[type]) -> None:
        """Go on with other types if all that changed is one atom for another (None for a number, a longer list)."""
        if len(types) == len(self.types):
            same = all(new is old or (new in ATOMS and old in ATOMS) for new, old in zip(types, self.types, strict=True))
        else:
            same = ATOMS.issuperset(types) and ATOMS.issuperset(self.types)
        if not same:
            raise StructureChanged
        self.types = types


class AttributesCell:
    """
    The attributes of an object (its ``__dict__``).

    :param obj: The object
    :param skip: Names of attributes whose contents are no state
    """

    def __init__(self, obj: Any, skip: frozenset[str] = frozenset()) -> None:
        self.obj, self.attributes = obj, obj.__dict__
        positions = [position for position, name in enumerate(self.attributes) if name in skip]
        self.layout = Layout(list(self.attributes.values()), positions)

    def save(self, previous: Any) -> Any:
        if self.obj.__dict__ is not self.attributes:
            raise StructureChanged
        contents = self.attributes.copy()
        return contents, self.layout.save(list(contents.values()))

    def restore(self, contents: Any) -> None:
        attributes, arrays = contents
        self.attributes.update(attributes)
        if len(self.attributes) != len(attributes):
            self.attributes.clear()
            self.attributes.update(attributes)
        for array, copy in arrays:
            array[...] = copy


class SlotsCell:
    """
    The ``__slots__`` of an object.

    :param obj: The object
    :param names: The names of its slots, over all its classes
    """

    def __init__(self, obj: Any, names: Sequence[str]) -> None:
        self.obj, self.names = obj, names
        self.layout = Layout(list(self._read().values()))

    def _read(self) -> dict[str, Any]:
        return {name: getattr(self.obj, name) for name in self.names if hasattr(self.obj, name)}

    def save(self, previous: Any) -> Any:
        contents = self._read()
        return contents, self.layout.save(list(contents.values()))

    def restore(self, contents: Any) -> None:
        slots, arrays = contents
        for name in self.names:
            if name in slots:
                object.__setattr__(self.obj, name, slots[name])
            elif hasattr(self.obj, name):
                object.__delattr__(self.obj, name)
        for array, copy in arrays:
            array[...] = copy


class MappingCell:
    """
    A dict, or one of a subclass: the methods are those of the built-in class, so that a subclass's own see nothing.

    :param mapping: The dict
    """

    def __init__(self, mapping: dict[Any, Any]) -> None:
        self.mapping = mapping
        self.kind = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict
        self.layout = Layout(list(mapping.values()))
        # keys are compared only where they can be more than names or numbers
        self.keys = None if ATOMS.issuperset(map(type, mapping)) else list(mapping)

    def save(self, previous: Any) -> Any:
        contents = list(self.kind.items(self.mapping))
        if self.keys is not None and not _identical(self.keys, [key for key, _ in contents]):
            raise StructureChanged
        return contents, self.layout.save([value for _, value in contents])

    def restore(self, contents: Any) -> None:
        items, arrays = contents
        self.kind.clear(self.mapping)
        for key, value in items:  # update() of an OrderedDict would call a subclass's __setitem__
            self.kind.__setitem__(self.mapping, key, value)
        for array, copy in arrays:
            array[...] = copy


class SequenceCell:
    """
    A list, a deque, a set or an array of objects.

    :param obj: The container
    :param write: Writes a list of values back into it
    """

    def __init__(self, obj: Any, write: Callable[[Any, list[Any]], None]) -> None:
        self.obj, self.write = obj, write
        self.layout = Layout(self._read())

    def _read(self) -> list[Any]:
        return list(self.obj.flat) if isinstance(self.obj, np.ndarray) else list(self.obj)

    def save(self, previous: Any) -> Any:
        contents = self._read()
        return contents, self.layout.save(contents)

    def restore(self, contents: Any) -> None:
        values, arrays = contents
        self.write(self.obj, values)
        for array, copy in arrays:
            array[...] = copy


class ArrayCell:
    """
    An array that is held by something other than a container of values, or one of a subclass of ndarray.

    :param array: The array
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.view(np.ndarray)

    def save(self, previous: Any) -> np.ndarray:
        contents: np.ndarray = self.array.copy()
        return contents

    def restore(self, contents: np.ndarray) -> None:
        if self.array.flags.writeable:
            self.array[...] = contents


class ReferenceCell:
    """
    One reference, of an object that is otherwise constant: a space's generator, a closure's variable.

    :param read: Reads it
    :param write: Writes it
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.read, self.write = read, write
        self.layout = Layout([read()])

    def save(self, previous: Any) -> Any:
        value = self.read()
        return value, self.layout.save([value])

    def restore(self, contents: Any) -> None:
        value, arrays = contents
        self.write(value)
        for array, copy in arrays:
            array[...] = copy


class ObjectCell:
    """
    An object whose state Python cannot see, through its engine.

    :param obj: The object
    :param engine: Its engine
    """

    def __init__(self, obj: Any, engine: ObjectEngine) -> None:
        self.obj, self.engine = obj, engine

    def save(self, previous: Any) -> Any:
        return self.engine.save(self.obj, previous)

    def restore(self, contents: Any) -> None:
        self.engine.restore(self.obj, contents)


class HookCell:
    """
    An env that saves itself.

    :param env: The env
    """

    def __init__(self, env: SupportsBranching) -> None:
        self.env = env

    def save(self, previous: Any) -> Any:
        return self.env.save_state()

    def restore(self, contents: Any) -> None:
        self.env.restore_state(contents)


def _identical(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))
