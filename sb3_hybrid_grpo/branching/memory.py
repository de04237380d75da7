"""The memory of this process, word by word: what many objects hold is seen in one call."""

import ctypes
import functools
import operator
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

MEMORY_START = 4096

# CPython's list: a header of 16 bytes, its length, a pointer to its items, and for how many there is room
LISTS_ARE_KNOWN = sys.implementation.name == "cpython" and (object.__basicsize__, list.__basicsize__) == (16, 40)
LENGTH, ITEMS = 16, 24
# CPython's dict: a header of 16 bytes, its length, its version
VERSION = 24
_BEFORE_OBJECT = 4  # words before an object, where it may refer to its attributes


@functools.cache
def memory() -> memoryview:
    """
    :return: The process's memory from ``MEMORY_START`` on, word by word: the quickest way to one of them
    """
    n_words = 2**45 - MEMORY_START
    return memoryview((ctypes.c_uint64 * n_words).from_address(MEMORY_START)).cast("B").cast("Q")


@functools.cache
def words() -> np.ndarray:
    """
    :return: The process's memory from ``MEMORY_START`` on as an array of words: many are read in one call
    """
    return np.frombuffer(memory(), np.uint64)


def places_of(addresses: Iterable[int]) -> np.ndarray:
    """
    :param addresses: Addresses of words
    :return: Where they are in :func:`memory` and :func:`words`
    """
    return (np.fromiter(addresses, np.int64) - MEMORY_START) >> 3


def addresses(objects: list[Any]) -> bytes:
    """
    Say which objects they are: to compare the addresses of a thousand costs less than to look at one.

    :param objects: A list of objects; an address tells them from others only while it holds them
    :return: The address of each, in 8 bytes
    """
    if not LISTS_ARE_KNOWN:
        return struct.pack(f"{len(objects)}Q", *map(id, objects))
    return ctypes.string_at(ctypes.c_void_p.from_address(id(objects) + ITEMS), 8 * len(objects)) if objects else b""


@functools.cache
def dicts_have_versions() -> bool:
    """
    Try whether a dict keeps a number that each change makes another one, that no other dict has: PEP 509, CPython to 3.12.

    :return: Whether it does
    """
    if not LISTS_ARE_KNOWN:
        return False

    class Thing:
        value: Any

    thing, other = Thing(), dict[str, Any]()
    attributes = vars(thing)

    def set_attribute() -> None:
        thing.value = object()

    changes: list[Callable[[], Any]] = [
        *(set_attribute, set_attribute, lambda: delattr(thing, "value"), lambda: attributes.update(value=object())),
        *(attributes.popitem, lambda: attributes.setdefault("value", object()), lambda: attributes.pop("value")),
        *(lambda: operator.setitem(attributes, "other", object()), lambda: operator.delitem(attributes, "other")),
        *(set_attribute, attributes.clear),
    ]
    places, seen = places_of([id(attributes) + VERSION, id(other) + VERSION]), set[int]()
    for change in changes * 100:  # until the interpreter runs the specialised kinds of its instructions
        change()
        other["value"] = object()
        versions = set(words()[places].tolist())
        if len(versions) < 2 or versions & seen:
            return False
        seen |= versions
    return True


def places_of_dicts(objects: Sequence[Any]) -> np.ndarray | None:
    """
    Find where objects refer to their attributes.

    :param objects: Objects with a ``__dict__``
    :return: A place for each; None if one is not found
    """
    offsets: dict[type, int] = {}
    starts = places_of(map(id, objects))
    for obj, start in zip(objects, starts.tolist()):  # noqa: B905  hot
        if type(obj) not in offsets:
            near = range(-_BEFORE_OBJECT, type(obj).__basicsize__ // 8)
            found = [offset for offset in near if memory()[start + offset] == id(vars(obj))]
            offsets[type(obj)] = found[0] if len(found) == 1 else 0
    places: np.ndarray = starts + np.fromiter((offsets[type(obj)] for obj in objects), np.int64)
    held = np.fromiter((id(vars(obj)) for obj in objects), np.uint64)
    return places if bool((words()[places] == held).all()) else None
