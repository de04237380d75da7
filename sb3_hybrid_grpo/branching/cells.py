"""
Cells of the mutable objects that an env is made of: each saves its contents and writes them back in place.

Identities survive a restore, so that every alias (wrapper and env, env and simulator, two views of an array) stays one.
"""

import collections
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.protocol import SupportsBranching

ATOMS: set[type] = {int, float, bool, str, bytes, complex, type(None), np.float64, np.float32, np.int64, np.bool_}
"""Types whose objects never change. Types met on the way are added."""

Copies = list[tuple[np.ndarray, np.ndarray]]
"""Arrays, each with a copy of its contents."""


class StructureChanged(Exception):
    """A container refers to other objects than when the env was walked: walk it again."""


def is_plain_array(value: Any) -> bool:
    """Whether a value is an array of numbers, which its holder's :class:`Layout` copies."""
    return type(value) is np.ndarray and not value.dtype.hasobject


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
        self._classify(values)

    def _classify(self, values: Iterable[Any]) -> None:
        self.types: list[type] = []
        self.arrays: list[int] = []
        self.tuples: list[int] = []
        self.children: list[tuple[int, Any]] = []
        for position, value in enumerate(values):
            self.types.append(type(value))
            if type(value) in ATOMS:
                continue
            if is_plain_array(value):
                self.arrays.append(position)
            elif is_plain_tuple(value):
                self.tuples.append(position)
            elif id(value) not in self.skip:
                self.children.append((position, value))

    def save(self, values: Sequence[Any]) -> Copies:
        """
        Copy the arrays among the values.

        :param values: The container's values now
        :return: Each array that can change, and a copy
        :raises StructureChanged: if the container refers to other objects than before
        """
        types = [type(value) for value in values]
        if types != self.types:
            self._accept(values, types)
        for position, child in self.children:
            if values[position] is not child:
                raise StructureChanged
        for position in self.tuples:
            if not ATOMS.issuperset(map(type, values[position])):
                raise StructureChanged
        return [copy for position in self.arrays for copy in _array_copies(values[position])]

    def _accept(self, values: Sequence[Any], types: list[type]) -> None:
        """Go on with other values if there is nothing among them that the env must be walked for."""
        if len(types) == len(self.types):
            changed = [kind for pair in zip(types, self.types) if pair[0] is not pair[1] for kind in pair]  # noqa: B905  hot
        else:
            changed = [*types, *self.types]
        if ATOMS.issuperset(changed):
            self.types = types
            return
        children = self.children
        self._classify(values)
        if not identical([child for _, child in children], [child for _, child in self.children]):
            raise StructureChanged


def _array_copies(array: np.ndarray) -> Copies:
    if array.dtype.hasobject:
        raise StructureChanged
    while not array.flags.writeable:
        if not isinstance(array.base, np.ndarray):
            return []  # constant
        array = array.base  # a read-only view of something that may yet be written to
    return [(array, array.copy())]


def _write_back(copies: Copies) -> None:
    for array, copy in copies:
        array[...] = copy


class AttributesCell:
    """
    The attributes (``__dict__``) of all objects at once.

    :param objects: The objects
    :param skip: Values whose contents are no state
    """

    def __init__(self, objects: Sequence[Any], skip: Iterable[Any] = ()) -> None:
        self.objects = [(obj, vars(obj)) for obj in objects]
        self.layout = Layout([value for _, attributes in self.objects for value in attributes.values()], skip)

    def save(self, previous: Any) -> Any:
        contents: list[dict[str, Any]] = []
        values: list[Any] = []
        for obj, attributes in self.objects:
            if obj.__dict__ is not attributes:
                raise StructureChanged
            contents.append(attributes.copy())
            values += attributes.values()
        return contents, self.layout.save(values)

    def restore(self, contents: Any) -> None:
        all_attributes, copies = contents
        for (obj, attributes), saved in zip(self.objects, all_attributes):  # noqa: B905  strict costs as much as the rest
            if obj.__dict__ is not attributes:
                object.__setattr__(obj, "__dict__", attributes)
            attributes.clear()  # for what is new, and for the order
            attributes.update(saved)
        for array, copy in copies:
            array[...] = copy


class SlotsCell:
    """
    The ``__slots__`` of an object.

    :param obj: The object
    :param slots: The descriptors of its slots, over all its classes
    """

    def __init__(self, obj: Any, slots: Sequence[Any]) -> None:
        self.obj, self.slots = obj, slots
        self.layout = Layout(self.read().values())

    def read(self) -> dict[Any, Any]:
        """Read the slots that are filled."""
        contents = {}
        for slot in self.slots:
            try:
                contents[slot] = slot.__get__(self.obj)
            except AttributeError:
                continue
        return contents

    def save(self, previous: Any) -> Any:
        contents = self.read()
        return contents, self.layout.save(list(contents.values()))

    def restore(self, contents: Any) -> None:
        filled, copies = contents
        for slot in self.read().keys() - filled.keys():
            slot.__delete__(self.obj)
        for slot, value in filled.items():
            slot.__set__(self.obj, value)
        _write_back(copies)


class MappingCell:
    """
    A dict, or one of a subclass: the methods are those of the built-in class, so that a subclass's own see nothing.

    :param mapping: The dict
    """

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping
        self.ordered = isinstance(mapping, collections.OrderedDict)
        contents = self._read()
        self.layout = Layout(contents.values())
        self.keys = _objects(contents)

    def _read(self) -> dict[Any, Any]:
        # an OrderedDict has an order of its own, which copy() of a dict does not know
        return dict(collections.OrderedDict.items(self.mapping)) if self.ordered else dict.copy(self.mapping)

    def save(self, previous: Any) -> Any:
        contents = self._read()
        if not ATOMS.issuperset(map(type, contents)) and not identical(self.keys, _objects(contents)):
            raise StructureChanged
        return contents, self.layout.save(list(contents.values()))

    def restore(self, contents: Any) -> None:
        items, copies = contents
        if self.ordered:
            collections.OrderedDict.clear(self.mapping)
            for key, value in items.items():  # update() would call a subclass's __setitem__
                collections.OrderedDict.__setitem__(self.mapping, key, value)
        else:
            dict.clear(self.mapping)
            dict.update(self.mapping, items)
        _write_back(copies)


class SequenceCell:
    """
    A list, a deque, a set or an array of objects.

    :param obj: The container
    :param read: Makes a list of its values
    :param write: Writes a list of values back into it
    """

    def __init__(self, obj: Any, read: Callable[[Any], list[Any]], write: Callable[[Any, list[Any]], None]) -> None:
        self.obj, self.read, self.write = obj, read, write
        self.layout = Layout(read(obj))

    def save(self, previous: Any) -> Any:
        contents = self.read(self.obj)
        return contents, self.layout.save(contents)

    def restore(self, contents: Any) -> None:
        values, copies = contents
        # what is as it was stays untouched: a set written anew may be run through in another order
        if not identical(values, self.read(self.obj)):
            self.write(self.obj, values)
        _write_back(copies)


class ArrayCell:
    """
    An array that is held by something other than a container of values, or one of a subclass of ndarray.

    :param array: The array
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.view(np.ndarray)

    def save(self, previous: Any) -> Copies:
        return _array_copies(self.array)

    def restore(self, contents: Copies) -> None:
        _write_back(contents)


class ReferenceCell:
    """
    One reference, of an object that is otherwise constant: a closure's variable.

    :param read: Reads it
    :param write: Writes it
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.read, self.write = read, write
        self.layout = Layout([read()])

    def save(self, previous: Any) -> Any:
        contents = (self.read(),)
        return contents, self.layout.save(contents)

    def restore(self, contents: Any) -> None:
        (value,), copies = contents
        self.write(value)
        _write_back(copies)


class SpacesCell:
    """
    The generators of all spaces; a space is constant otherwise.

    :param spaces: The spaces
    """

    def __init__(self, spaces: Sequence[Any]) -> None:
        self.spaces = spaces
        self.generators = [space._np_random for space in spaces]

    def save(self, previous: Any) -> None:
        if [space._np_random for space in self.spaces] != self.generators:
            raise StructureChanged

    def restore(self, contents: None) -> None:
        for space, generator in zip(self.spaces, self.generators):  # noqa: B905  strict costs as much as the rest
            space._np_random = generator


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


def _objects(keys: Iterable[Any]) -> list[Any]:
    """Those of a dict's keys that the env must be walked for."""
    return [key for key in keys if type(key) not in ATOMS and not is_plain_tuple(key)]


def identical(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two sequences hold the very same objects in the same order."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
