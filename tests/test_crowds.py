"""Many containers at once come back as each alone would: the same objects in the same order, in the same containers."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hybrid_grpo.branching.cells import ListCell, MappingCell, SequenceCell
from sb3_hybrid_grpo.branching.crowds import ENOUGH, CrowdCell, crowded, still_ones
from sb3_hybrid_grpo.branching.layout import StructureChanged

NUMBERS = st.one_of(st.integers(-2, 2), st.floats(-1, 1), st.booleans())
ATOMS = st.one_of(NUMBERS, st.none(), st.tuples(NUMBERS, NUMBERS))


def _crowd(containers: list[Any]) -> CrowdCell:
    cells: list[Any] = [ListCell(one) if isinstance(one, list) else MappingCell(one) for one in containers]
    (crowd,) = crowded(cells)
    assert isinstance(crowd, CrowdCell)
    return crowd


def _exact(value: Any) -> Any:
    """Tells 1 from 1.0 and True, and 0.0 from -0.0."""
    return repr(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ATOMS, max_size=4), min_size=ENOUGH, max_size=12), st.data())
def test_lists_come_back(lists: list[list[Any]], data: st.DataObject) -> None:
    crowd = _crowd(lists)
    snapshots = []
    for _ in range(3):
        before = copy.deepcopy(lists)
        snapshots.append((crowd.save(None), _exact(before)))
        for index in data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=3)):
            lists[index][:] = data.draw(st.lists(ATOMS, max_size=5))
    for contents, before_them in data.draw(st.permutations(snapshots)):
        crowd.restore(contents)
        assert _exact(lists) == before_them
        assert _exact(crowd.save(None).streams) == _exact(contents.streams)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 5), ATOMS, max_size=4), min_size=ENOUGH, max_size=12), st.data())
def test_dicts_come_back_in_their_order(dicts: list[dict[int, Any]], data: st.DataObject) -> None:
    crowd = _crowd(dicts)
    contents, before = crowd.save(None), _exact(dicts)
    for index in data.draw(st.lists(st.integers(0, len(dicts) - 1), max_size=4)):
        for key in list(dicts[index])[:1]:
            del dicts[index][key]
        dicts[index].update(data.draw(st.dictionaries(st.integers(0, 7), ATOMS, max_size=3)))
    crowd.restore(contents)
    assert _exact(dicts) == before


def test_what_equals_is_not_the_same() -> None:
    lists = [[0.0, 1, (1, 0.0)] for _ in range(ENOUGH)]
    crowd = _crowd(lists)
    contents = crowd.save(None)
    lists[3][:] = [-0.0, True, (True, -0.0)]
    later = crowd.save(None)
    crowd.restore(contents)
    assert _exact(lists[3]) == "[0.0, 1, (1, 0.0)]"
    crowd.restore(later)
    assert _exact(lists[3]) == "[-0.0, True, (True, -0.0)]"


def test_arrays_in_lists_come_back_though_no_reference_changes() -> None:
    arrays = [np.full(2, float(index)) for index in range(ENOUGH)]
    crowd = _crowd([[one] for one in arrays])
    contents = crowd.save(None)
    arrays[5][:] = 9
    later = crowd.save(None)
    crowd.restore(contents)
    assert arrays[5].tolist() == [5.0, 5.0]
    crowd.restore(later)
    assert arrays[5].tolist() == [9.0, 9.0]


def test_arrays_that_come_later_come_back_too() -> None:
    lists: list[list[Any]] = [[None] for _ in range(ENOUGH)]
    crowd = _crowd(lists)
    crowd.save(None)
    array = np.zeros(2)
    lists[0][0] = array
    contents = crowd.save(None)
    array[:] = 7
    crowd.restore(contents)
    assert lists[0][0] is array
    assert array.tolist() == [0.0, 0.0]


def test_a_new_object_asks_for_another_walk() -> None:
    lists: list[list[Any]] = [[index] for index in range(ENOUGH)]
    crowd = _crowd(lists)
    lists[2].append([])
    for _ in range(2):
        with pytest.raises(StructureChanged):
            crowd.save(None)


def test_what_a_member_made_is_not_taken_for_known() -> None:
    """A member that goes on may hold new objects; a whole save right after that must still ask for another walk."""
    lists: list[list[Any]] = [[index] for index in range(ENOUGH)]
    crowd = _crowd(lists)
    start = crowd.save(None)
    lists[1].append([])
    members = crowd.resave(start, None)
    with pytest.raises(StructureChanged):
        crowd.save(None)
    crowd.restore(start)
    assert lists[1] == [1]
    crowd.restore(members)
    assert lists[1] == [1, []]


def test_a_member_keeps_arrays_that_it_shares() -> None:
    array = np.zeros(2)
    lists: list[list[Any]] = [[array], *([index] for index in range(ENOUGH))]
    crowd = _crowd(lists)
    start = crowd.save(None)
    array[:] = 1
    members = crowd.resave(start, None)
    crowd.restore(start)
    assert array.tolist() == [0.0, 0.0]
    crowd.restore(members)
    assert array.tolist() == [1.0, 1.0]


def test_only_many_of_a_kind_are_put_together() -> None:
    few: list[Any] = [ListCell([index]) for index in range(ENOUGH - 1)]
    many: list[Any] = [MappingCell({index: index}) for index in range(ENOUGH)]
    other = SequenceCell({1}, list, lambda obj, values: None)
    cells = crowded([few[0], *many, other, *few[1:]])
    assert isinstance(cells[0], CrowdCell)
    assert cells[0].cells == many
    assert cells[1:] == [few[0], other, *few[1:]]


class Tile:
    """Rests, if it has no number."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Wall(Tile):
    """Another class."""


def test_many_objects_without_numbers_are_put_apart() -> None:
    still = [Tile(color=(index, 0), name="tile", above=None) for index in range(ENOUGH)]
    lively = [Tile(color=(0, 0), heat=value) for value in (0, 0.5, True, np.float32(1), np.zeros(2))]
    assert still_ones([*lively[:2], *still, *lively[2:], Wall(color=(0, 0))]) == still
    assert still_ones([Wall(color=(0, 0))] * (ENOUGH - 1)) == []
