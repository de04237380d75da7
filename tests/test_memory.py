"""What is read of CPython's memory is what its public interface says."""

import ctypes
import struct
import sys
from typing import Any

import pytest

from sb3_hybrid_grpo.branching.memory import (
    VERSION,
    addresses,
    dicts_have_versions,
    memory,
    places_of,
    places_of_dicts,
    words,
)


class Plain:
    """An object with attributes."""


class Base:
    __slots__ = ("first", "second")


class WithSlots(Base):
    """Its attributes lie behind slots."""


class Named(tuple[int, ...]):
    """Its attributes lie behind its items, elsewhere in every object."""


class Counting(dict[str, int]):
    """A dict with attributes."""


def test_words_are_read_where_they_are() -> None:
    numbers = (ctypes.c_uint64 * 3)(5, 2**63, 7)
    places = places_of(ctypes.addressof(numbers) + 8 * index for index in (2, 0, 1))
    assert words()[places].tolist() == [7, 5, 2**63]
    assert [memory()[place] for place in places.tolist()] == [7, 5, 2**63]


@pytest.mark.parametrize("known", [True, False])
def test_addresses_tell_objects_that_are_equal(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_hybrid_grpo.branching.memory.LISTS_ARE_KNOWN", known)
    one, other = [1, 2], [1, 2]
    assert addresses([one, None]) == addresses([one, None]) != addresses([other, None])
    assert addresses([]) == b""
    assert addresses([one, 1.0]) == struct.pack("2Q", *map(id, [one, 1.0]))


def test_dicts_have_versions_before_python_3_13() -> None:
    assert dicts_have_versions() == (sys.version_info < (3, 13))


@pytest.mark.skipif(not dicts_have_versions(), reason="dicts have no versions")
def test_each_write_makes_another_version_and_no_look_does() -> None:
    things: list[Any] = [Plain() for _ in range(20)]
    places = places_of(id(vars(thing)) + VERSION for thing in things)
    seen: set[int] = set()
    for step in range(200):
        for thing in things:
            thing.value = float(step)
        versions = words()[places].tolist()
        assert [thing.value for thing in things] == [float(step)] * 20
        assert words()[places].tolist() == versions
        assert len({*versions, *seen}) == len(seen) + 20
        seen.update(versions)


@pytest.mark.parametrize("kind", [Plain, WithSlots, Counting])
def test_where_objects_refer_to_their_attributes(kind: type) -> None:
    objects = [kind() for _ in range(5)]
    places = places_of_dicts(objects)
    assert places is not None
    assert words()[places].tolist() == [id(vars(obj)) for obj in objects]
    vars(objects[1])["name"] = "one"
    objects[2].__dict__ = {}
    assert words()[places].tolist() == [id(vars(obj)) for obj in objects]


def test_places_are_not_guessed() -> None:
    thing: Any = WithSlots()
    thing.first = vars(thing)  # a second reference
    assert places_of_dicts([thing]) is None
    named = [Named(range(n)) for n in (1, 9)]
    found = places_of_dicts(named)
    assert found is None or words()[found].tolist() == [id(vars(one)) for one in named]
