"""Many containers at once come back as each alone would: the same objects in the same order, in the same containers."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hybrid_grpo.branching.cells import ListCell, MappingCell, SequenceCell
from sb3_hybrid_grpo.branching.crowds import (
    ENOUGH,
    WORTH_WATCHING,
    CrowdCell,
    RestingCell,
    attributes_of,
    crowded,
    still_ones,
)
from sb3_hybrid_grpo.branching.layout import StructureChanged
from sb3_hybrid_grpo.branching.memory import dicts_have_versions

NUMBERS = st.one_of(st.integers(-2, 2), st.floats(-1, 1), st.booleans())
ATOMS = st.one_of(NUMBERS, st.none(), st.tuples(NUMBERS, NUMBERS))
VERSIONS = pytest.mark.parametrize("versions", [True, False] if dicts_have_versions() else [False])
"""With the versions of dicts, and as where they have none."""


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
        assert _exact([one[0] for one in crowd.save(None).saved]) == _exact([one[0] for one in contents.saved])


@VERSIONS
@settings(max_examples=60, deadline=None)
@given(dicts=st.lists(st.dictionaries(st.integers(0, 5), ATOMS, max_size=4), min_size=ENOUGH, max_size=12), data=st.data())
def test_dicts_come_back_in_their_order(dicts: list[dict[int, Any]], versions: bool, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_hybrid_grpo.branching.crowds.dicts_have_versions", lambda: versions)
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


def _resting(objects: list[Any], versions: bool) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_hybrid_grpo.branching.crowds.dicts_have_versions", lambda: versions)
        (cell,) = attributes_of(objects, ())
    assert isinstance(cell, RestingCell) == versions
    return cell


def _change(tile: Tile, how: str) -> None:
    if how == "set":
        tile.name = "other"  # type: ignore[attr-defined]
    elif how == "delete":
        del tile.name  # type: ignore[attr-defined]
    elif how == "add":
        tile.more = (1, 2)  # type: ignore[attr-defined]
    elif how == "dict":
        vars(tile)["name"] = None
    else:
        name = vars(tile).pop("name")  # back, at the end
        vars(tile)["name"] = name


@VERSIONS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_attributes_that_rest_come_back(versions: bool, data: st.DataObject) -> None:
    tiles = [Tile(color=(index, 0), name="tile", above=None) for index in range(WORTH_WATCHING)]
    cell = _resting(tiles, versions)
    contents: Any = cell.save(None)
    snapshots = []
    change = st.tuples(st.sampled_from(tiles), st.sampled_from(["set", "delete", "add", "dict", "order"]))
    for _ in range(4):
        contents = cell.save(contents) if data.draw(st.booleans()) else cell.resave(contents, None)
        snapshots.append((contents, [list(vars(tile).items()) for tile in tiles]))
        for tile, how in data.draw(st.lists(change, max_size=2)):
            if hasattr(tile, "name") or how in ("set", "add", "dict"):
                _change(tile, how)
    for saved, then in data.draw(st.permutations(snapshots)):
        cell.restore(saved)
        assert [list(vars(tile).items()) for tile in tiles] == then


@VERSIONS
def test_attributes_that_rest_are_not_copied(versions: bool) -> None:
    tiles = [Tile(color=(index, 0)) for index in range(WORTH_WATCHING)]
    cell = _resting(tiles, versions)
    first = cell.save(None)
    assert (cell.save(first) is first) == versions
    assert (cell.resave(first, None) is first) == versions
    vars(tiles[0]).update(color=(9, 9))
    assert cell.save(first) is not first


@VERSIONS
def test_an_array_of_an_object_that_rested_comes_back(versions: bool) -> None:
    tiles = [Tile(heat=None) for _ in range(WORTH_WATCHING)]
    cell = _resting(tiles, versions)
    cell.save(None)
    array = tiles[3].heat = np.zeros(2)  # type: ignore[attr-defined]
    contents = cell.save(None)
    array[:] = 1
    later = cell.save(None)
    members = cell.resave(contents, None)
    cell.restore(contents)
    assert array.tolist() == [0, 0]
    cell.restore(later)
    assert array.tolist() == [1, 1]
    array[:] = 2
    cell.restore(members)
    assert array.tolist() == [1, 1]


@VERSIONS
def test_an_array_that_becomes_writeable_comes_back(versions: bool) -> None:
    tiles = [Tile(heat=None) for _ in range(WORTH_WATCHING)]
    cell = _resting(tiles, versions)
    array = tiles[3].heat = np.zeros(2)  # type: ignore[attr-defined]
    array.flags.writeable = False
    cell.save(None)
    array.flags.writeable = True
    contents = cell.save(None)
    array[:] = 5
    cell.restore(contents)
    assert array.tolist() == [0, 0]


@VERSIONS
def test_another_dict_of_an_object_that_rested_is_seen(versions: bool) -> None:
    tiles = [Tile(color=(0, 0)) for _ in range(WORTH_WATCHING)]
    cell = _resting(tiles, versions)
    contents, own = cell.save(None), vars(tiles[2])
    tiles[2].__dict__ = {"color": (1, 1)}
    with pytest.raises(StructureChanged):
        cell.save(None)
    members = cell.resave(contents, None)
    cell.restore(contents)
    assert vars(tiles[2]) is own
    assert own == {"color": (0, 0)}
    cell.restore(members)
    assert own == {"color": (1, 1)}


@VERSIONS
def test_a_new_object_of_one_that_rested_asks_for_another_walk(versions: bool) -> None:
    tiles = [Tile(above=None) for _ in range(WORTH_WATCHING)]
    cell = _resting(tiles, versions)
    tiles[1].above = []  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(StructureChanged):
            cell.save(None)


def test_what_may_rest_has_a_cell_of_its_own() -> None:
    still, lively = [Tile(color=None) for _ in range(WORTH_WATCHING)], Tile(heat=1.0)
    cells = attributes_of([lively, *still], ())
    assert sorted(len(cell.objects) for cell in cells) == [1, WORTH_WATCHING]
    assert [len(cell.objects) for cell in attributes_of([lively], ())] == [1]
    assert attributes_of([], ()) == []
