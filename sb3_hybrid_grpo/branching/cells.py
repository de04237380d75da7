"""
Cells of the mutable objects that an env is made of: each saves its contents and writes them back in place.

Identities survive a restore, so that every alias (wrapper and env, env and simulator, two views of an array) stays one.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.layout import (
    ATOMS,
    Copies,
    Layout,
    StructureChanged,
    array_copies,
    identical,
    is_plain_tuple,
    write_back,
)
from sb3_hybrid_grpo.branching.protocol import SupportsBranching


class ContainerCell:
    """What containers have in common: contents are the values, and copies of the arrays among them."""

    layout: Layout

    def read(self) -> Any:
        """Copy the container, not what it refers to."""
        raise NotImplementedError

    def values(self, contents: Any) -> Sequence[Any]:
        """List the values in such a copy."""
        values: Sequence[Any] = contents
        return values

    def save(self, previous: Any) -> Any:
        contents = self.read()
        return contents, self.layout.save(self.values(contents))

    def resave(self, shared: Any, previous: Any) -> Any:
        return self.read(), [(array, array.copy()) for array, _ in shared[1]]


class AttributesCell(ContainerCell):
    """
    The attributes (``__dict__``) of all objects at once.

    :param objects: The objects
    :param skip: Values whose contents are no state
    """

    def __init__(self, objects: Sequence[Any], skip: Iterable[Any] = ()) -> None:
        self.objects = [(obj, vars(obj)) for obj in objects]
        self.layout = Layout([value for _, attributes in self.objects for value in attributes.values()], skip)

    def read(self) -> list[dict[str, Any]]:
        # not copy(), which shares its keys with others of the class: an empty dict takes over the table of one that does not
        return [{**obj.__dict__} for obj, _ in self.objects]

    def values(self, contents: list[dict[str, Any]]) -> list[Any]:
        for obj, attributes in self.objects:
            if obj.__dict__ is not attributes:
                raise StructureChanged
        return [value for attributes in contents for value in attributes.values()]

    def restore(self, contents: Any) -> None:
        all_attributes, copies = contents
        for (obj, attributes), saved in zip(self.objects, all_attributes):  # noqa: B905  strict costs as much as the rest
            if obj.__dict__ is not attributes:
                object.__setattr__(obj, "__dict__", attributes)
            attributes.clear()  # an update alone looks up key after key, and leaves what is new, and the order
            attributes.update(saved)
        for array, copy in copies:
            array[...] = copy


class SlotsCell(ContainerCell):
    """
    The ``__slots__`` of an object.

    :param obj: The object
    :param slots: The descriptors of its slots, over all its classes
    """

    def __init__(self, obj: Any, slots: Sequence[Any]) -> None:
        self.obj, self.slots = obj, slots
        self.layout = Layout(self.read().values())

    def read(self) -> dict[Any, Any]:
        contents = {}
        for slot in self.slots:
            try:
                contents[slot] = slot.__get__(self.obj)
            except AttributeError:
                continue
        return contents

    def values(self, contents: dict[Any, Any]) -> list[Any]:
        return list(contents.values())

    def restore(self, contents: Any) -> None:
        filled, copies = contents
        for slot in self.read().keys() - filled.keys():
            slot.__delete__(self.obj)
        for slot, value in filled.items():
            slot.__set__(self.obj, value)
        write_back(copies)


class MappingCell(ContainerCell):
    """
    A dict, or one of a subclass: the methods are those of the built-in class, so that a subclass's own see nothing.

    :param mapping: The dict
    """

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping
        self.ordered = isinstance(mapping, collections.OrderedDict)
        contents = self.read()
        self.layout = Layout(contents.values())
        self.keys = _objects(contents)

    def read(self) -> dict[Any, Any]:
        # an OrderedDict has an order of its own, which copy() of a dict does not know
        return dict(collections.OrderedDict.items(self.mapping)) if self.ordered else dict.copy(self.mapping)

    def values(self, contents: dict[Any, Any]) -> list[Any]:
        if not ATOMS.issuperset(map(type, contents)) and not identical(self.keys, _objects(contents)):
            raise StructureChanged
        return list(contents.values())

    def restore(self, contents: Any) -> None:
        items, copies = contents
        if self.ordered:
            collections.OrderedDict.clear(self.mapping)
            for key, value in items.items():  # update() would call a subclass's __setitem__
                collections.OrderedDict.__setitem__(self.mapping, key, value)
        else:
            dict.clear(self.mapping)
            dict.update(self.mapping, items)
        write_back(copies)


class SequenceCell(ContainerCell):
    """
    A list, a deque, a set or an array of objects.

    :param obj: The container
    :param values_of: Makes a list of its values
    :param write: Writes a list of values back into it
    """

    def __init__(self, obj: Any, values_of: Callable[[Any], list[Any]], write: Callable[[Any, list[Any]], None]) -> None:
        self.obj, self.values_of, self.write = obj, values_of, write
        self.layout = Layout(self.read())

    def read(self) -> list[Any]:
        return self.values_of(self.obj)

    def restore(self, contents: Any) -> None:
        values, copies = contents
        # what is as it was stays untouched: a set written anew may be run through in another order
        if not identical(values, self.read()):
            self.write(self.obj, values)
        write_back(copies)


class ListCell(SequenceCell):
    """
    A list: to write all of it costs less than to see whether something has changed.

    :param obj: The list
    """

    def __init__(self, obj: list[Any]) -> None:
        super().__init__(obj, list, _write_list)

    def restore(self, contents: Any) -> None:
        values, copies = contents
        _write_list(self.obj, values)
        for array, copy in copies:
            array[...] = copy


class ArrayCell:
    """
    An array that is held by something other than a container of values, or one of a subclass of ndarray.

    :param array: The array
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.view(np.ndarray)

    def save(self, previous: Any) -> Copies:
        return array_copies(self.array)

    def resave(self, shared: Copies, previous: Any) -> Copies:
        return [(array, array.copy()) for array, _ in shared]

    def restore(self, contents: Copies) -> None:
        write_back(contents)


class ReferenceCell(ContainerCell):
    """
    One reference, of an object that is otherwise constant: a closure's variable.

    :param read: Reads it
    :param write: Writes it
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.get, self.write = read, write
        self.layout = Layout(self.read())

    def read(self) -> tuple[Any]:
        return (self.get(),)

    def restore(self, contents: Any) -> None:
        (value,), copies = contents
        self.write(value)
        write_back(copies)


class SpacesCell:
    """
    The generators of all spaces; a space is constant otherwise.

    :param spaces: The spaces
    """

    def __init__(self, spaces: Sequence[Any]) -> None:
        self.spaces = spaces
        self.generators = [space._np_random for space in spaces]

    def save(self, previous: Any) -> list[Any]:
        for space, generator in zip(self.spaces, self.generators):  # noqa: B905  strict costs as much as the rest
            if space._np_random is not generator:
                raise StructureChanged
        return self.generators

    def resave(self, shared: list[Any], previous: Any) -> list[Any]:
        return [space._np_random for space in self.spaces]

    def restore(self, contents: list[Any]) -> None:
        for space, generator in zip(self.spaces, contents):  # noqa: B905  strict costs as much as the rest
            if space._np_random is not generator:
                space._np_random = generator


class OpaqueCell:
    """What objects have in common whose state Python cannot see: it is theirs alone, and saved whole."""

    def save(self, previous: Any) -> Any:
        raise NotImplementedError

    def resave(self, shared: Any, previous: Any) -> Any:
        return self.save(previous)


class HookCell(OpaqueCell):
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


def _write_list(obj: list[Any], values: list[Any]) -> None:
    list.__setitem__(obj, slice(None), values)


def _objects(keys: Iterable[Any]) -> list[Any]:
    """Those of a dict's keys that the env must be walked for."""
    return [key for key in keys if type(key) not in ATOMS and not is_plain_tuple(key)]
