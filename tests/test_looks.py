"""Looks tell which containers are others than before, as a loop over all they refer to would."""

from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hybrid_grpo.branching.looks import DictLook, ListLook, VersionLook
from sb3_hybrid_grpo.branching.memory import dicts_have_versions

OBJECTS = [object() for _ in range(4)]
LISTS = st.lists(st.sampled_from(OBJECTS), max_size=6)
DICTS = st.dictionaries(st.integers(0, 3), st.sampled_from(OBJECTS), max_size=4)


def _unlike(before: list[list[Any]], after: list[list[Any]]) -> list[int]:
    """By a loop: which are not the very same objects in the same order."""
    return [
        index
        for index, (one, other) in enumerate(zip(before, after, strict=True))
        if len(one) != len(other) or any(x is not y for x, y in zip(one, other, strict=True))
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LISTS, LISTS, st.booleans()), min_size=1, max_size=8))
def test_lists_are_told_apart(changes: list[tuple[list[Any], list[Any], bool]]) -> None:
    lists = [list(before) for before, _, _ in changes]
    look = ListLook(lists)
    first = look()
    assert look() == first
    for one, (_, after, grows) in zip(lists, changes, strict=True):
        if grows:  # to another place, most likely
            one.extend(OBJECTS * 40)
        one[:] = after
    second = look()
    expected = _unlike([before for before, _, _ in changes], lists)
    assert second.unlike(first) == first.unlike(second) == expected
    for one, (before, _, _) in zip(lists, changes, strict=True):
        one[:] = before
    assert look() == first
    assert look().unlike(first) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(DICTS, DICTS), min_size=1, max_size=6))
def test_dicts_are_told_apart(changes: list[tuple[dict[int, Any], dict[int, Any]]]) -> None:
    dicts = [dict(before) for before, _ in changes]
    look = DictLook(dicts)
    first = look()
    for one, (_, after) in zip(dicts, changes, strict=True):
        one.clear()
        one.update(after)
    flat = [[[x for item in one.items() for x in item] for one in pair] for pair in zip(*changes, strict=True)]
    assert look().unlike(first) == _unlike(flat[0], flat[1])


@pytest.mark.skipif(not dicts_have_versions(), reason="dicts have no versions")
def test_dicts_are_told_apart_by_their_versions() -> None:
    dicts: list[dict[str, Any]] = [{"a": 1}, {"a": 1}, {}]
    look = VersionLook(dicts)
    first = look()
    assert look() == first
    dicts[1]["a"] = 2
    dicts[2]["b"] = 3
    assert look().unlike(first) == [1, 2]


def test_an_order_of_keys_is_told() -> None:
    one = {1: None, 2: None}
    look = DictLook([one])
    first = look()
    one[1] = one.pop(1)
    assert look().unlike(first) == [0]


def test_a_look_that_is_broken_off_is_begun_anew() -> None:
    one: list[Any] = [1, 2]
    look = ListLook([one])
    first = look()
    one.append(3)
    with (
        mock.patch("numpy.repeat", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        look()
    look.items = look.items[:1]  # as if some of it had been stored
    one.pop()
    assert look() == first
