"""Containers get their contents back in place: values, order, identities; what is new to the walk is reported."""

import collections
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hybrid_grpo.branching.cells import (
    ArrayCell,
    AttributesCell,
    MappingCell,
    ReferenceCell,
    SequenceCell,
    SlotsCell,
)
from sb3_hybrid_grpo.branching.layout import MANY, Layout, StructureChanged, identical


class Thing:
    """An object with attributes."""


class Frozen(Thing):
    """An object that forbids new attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


def _thing(**attributes: Any) -> Thing:
    thing = Thing()
    vars(thing).update(attributes)
    return thing


def test_attributes_come_back_in_place() -> None:
    array, one = np.arange(3.0), _thing()
    vars(one).update(number=1, array=array, other=None)
    attributes = vars(one)
    cell = AttributesCell([one])
    contents = cell.save(None)
    array[:] = 9
    attributes.update(number=2, array=np.zeros(5), other=np.ones(2), new=3)
    cell.restore(contents)
    assert vars(one) is attributes
    assert one.array is array  # type: ignore[attr-defined]
    assert array.tolist() == [0.0, 1.0, 2.0]
    assert {k: v for k, v in attributes.items() if k != "array"} == {"number": 1, "other": None}
    del attributes["number"]
    cell.restore(contents)
    assert attributes["number"] == 1


def test_attributes_of_frozen_objects_and_replaced_dicts() -> None:
    frozen = Frozen()
    attributes = vars(frozen)
    attributes["x"] = 1
    cell = AttributesCell([frozen])
    contents = cell.save(None)
    object.__setattr__(frozen, "__dict__", {"x": 2})
    with pytest.raises(StructureChanged):
        cell.save(None)
    cell.restore(contents)
    assert vars(frozen) is attributes
    assert attributes == {"x": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, None),
        (None, 2.5),
        (1.0, "text"),
        (np.zeros(2), np.zeros(7)),
        (None, np.zeros(2)),
        (np.zeros(2), None),
        ((1, 2), (3, 4, 5)),
        (None, (1, 2)),
        ((1, 2), np.zeros(2)),
    ],
)
def test_atoms_and_arrays_may_take_turns(before: Any, after: Any) -> None:
    one = _thing(value=before, child=Thing())
    cell = AttributesCell([one])
    early = cell.save(None)
    vars(one)["value"] = after
    late = cell.save(None)
    if isinstance(after, np.ndarray):
        after[:] = 5
    cell.restore(late)
    assert one.value is after  # type: ignore[attr-defined]
    if isinstance(after, np.ndarray):
        assert not after.any()
    cell.restore(early)
    assert one.value is before  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [[], {}, (1, []), np.empty(1, dtype=object), Thing()])
def test_a_new_object_with_contents_of_its_own_asks_for_another_walk(value: Any) -> None:
    for before in (None, np.zeros(2), (1, 2), Thing()):
        one = _thing(value=before)
        cell = AttributesCell([one])
        cell.save(None)
        vars(one)["value"] = value
        with pytest.raises(StructureChanged):
            cell.save(None)


def test_a_record_that_is_an_empty_tuple_hides_no_state() -> None:
    one = _thing(record=(), queue=())  # one object, for Python
    cell = AttributesCell([one], skip=[()])
    cell.save(None)
    vars(one)["queue"] = ([],)
    with pytest.raises(StructureChanged):
        cell.save(None)


def test_what_is_skipped_is_not_looked_into() -> None:
    record = {"argument": [1]}
    one = _thing(record=record, child=Thing())
    assert [child for _, child in AttributesCell([one], skip=[record]).layout.children] == [one.child]  # type: ignore[attr-defined]


def test_read_only_views_are_saved_through_what_they_view() -> None:
    base = np.zeros(4)
    view = base[1:3]
    view.flags.writeable = False
    constant = np.ones(2)
    constant.flags.writeable = False
    one = _thing(view=view, constant=constant)
    cell = AttributesCell([one])
    contents = cell.save(None)
    base[:] = 3
    cell.restore(contents)
    assert view.tolist() == [0.0, 0.0]
    assert constant.tolist() == [1.0, 1.0]
    assert not view.flags.writeable


def test_slots_of_all_classes_private_ones_too() -> None:
    class Base:
        __slots__ = ("__private", "shared")

        def private(self, *value: Any) -> Any:
            if value:
                self.__private = value[0]
            return self.__private

    class Child(Base):
        __slots__ = "own"

        def __getattr__(self, name: str) -> str:
            return "an answer to everything"

    child = Child()
    child.private(1)
    child.shared = [1]  # type: ignore[attr-defined]
    slots = [Base.__dict__["_Base__private"], Base.__dict__["shared"], Child.__dict__["own"]]
    cell = SlotsCell(child, slots)
    contents = cell.save(None)
    child.private(2)
    child.own = 5  # type: ignore[attr-defined]
    late = cell.save(None)
    cell.restore(contents)
    assert child.private() == 1
    with pytest.raises(AttributeError):
        slots[2].__get__(child)
    cell.restore(late)
    assert (child.private(), child.own) == (2, 5)


class Loud(dict[Any, Any]):
    """A dict that must not be told."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise AssertionError("a restore called a method of the subclass")

    clear = update = items = values = keys = copy = __setitem__  # type: ignore[assignment]


class LoudOrdered(collections.OrderedDict[Any, Any]):
    """An OrderedDict that counts what it is told."""

    told = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        LoudOrdered.told += 1
        super().__setitem__(key, value)


def test_subclasses_of_dict_are_passed_by() -> None:
    loud = Loud({"a": 1, "b": 2})
    cell = MappingCell(loud)
    contents = cell.save(None)
    dict.__delitem__(loud, "a")
    dict.__setitem__(loud, "c", 3)
    cell.restore(contents)
    assert list(dict.items(loud)) == [("a", 1), ("b", 2)]

    ordered = LoudOrdered(a=1, b=2)
    ordered.move_to_end("a")
    LoudOrdered.told = 0
    ordered_cell = MappingCell(ordered)
    ordered_contents = ordered_cell.save(None)
    ordered.move_to_end("b")
    ordered_cell.restore(ordered_contents)
    assert list(ordered) == ["b", "a"]
    assert LoudOrdered.told == 0


def test_the_order_of_a_dict_comes_back() -> None:
    mapping = {"a": 1, "b": 2}
    cell = MappingCell(mapping)
    contents = cell.save(None)
    del mapping["a"]
    mapping["a"] = 1
    cell.restore(contents)
    assert list(mapping) == ["a", "b"]


def test_objects_used_as_keys_are_seen() -> None:
    mapping: dict[Any, int] = {}
    cell = MappingCell(mapping)
    cell.save(None)
    mapping[(1, 2)] = 3  # nothing in it can change
    cell.save(None)
    mapping[Thing()] = 4
    with pytest.raises(StructureChanged):
        cell.save(None)


def test_other_keys_for_values_of_the_same_types() -> None:
    first, second = np.zeros(1), np.ones(1)
    mapping = {"a": first, "b": 1.0}
    cell = MappingCell(mapping)
    contents = cell.save(None)
    mapping.clear()
    mapping.update(c=second, a=2.0)
    late = cell.save(None)
    first += 5
    second += 5
    cell.restore(contents)
    assert mapping == {"a": first, "b": 1.0} and first[0] == 0.0
    cell.restore(late)
    assert mapping == {"c": second, "a": 2.0} and second[0] == 1.0


def test_an_untouched_set_keeps_its_table() -> None:
    numbers = set(range(200))
    numbers.difference_update(set(range(200)) - {3, 64, 129})
    order = list(numbers)

    def write(obj: set[Any], values: list[Any]) -> None:
        raise AssertionError("written anew")

    cell = SequenceCell(numbers, list, write)
    cell.restore(cell.save(None))
    assert list(numbers) == order


def test_growing_containers_need_no_new_walk_while_they_hold_atoms_or_arrays() -> None:
    queue: collections.deque[Any] = collections.deque(maxlen=3)

    def write(obj: Any, values: list[Any]) -> None:
        obj.clear()
        obj.extend(values)

    cell = SequenceCell(queue, list, write)
    saved = []
    for t in range(5):
        queue.append(np.full(2, t))
        saved.append((cell.save(None), list(queue)))
        queue[0] += 0
    for contents, expected in reversed(saved):
        for array in queue:
            array[:] = -1
        cell.restore(contents)
        assert identical(list(queue), expected)
    assert queue[0].tolist() == [0, 0]
    assert queue.maxlen == 3


def test_a_reference_and_a_loose_array() -> None:
    holder = _thing(value=np.zeros(1))
    cell = ReferenceCell(lambda: holder.value, lambda value: setattr(holder, "value", value))  # type: ignore[attr-defined]
    contents, before = cell.save(None), holder.value  # type: ignore[attr-defined]
    before += 1
    holder.value = None  # type: ignore[attr-defined]
    cell.restore(contents)
    assert holder.value is before  # type: ignore[attr-defined]
    assert before.tolist() == [0.0]

    loose = np.arange(3)
    array_cell = ArrayCell(loose)
    saved = array_cell.save(None)
    loose += 1
    array_cell.restore(saved)
    assert loose.tolist() == [0, 1, 2]


_values = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=2), st.tuples(st.integers(), st.booleans())
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_values, max_size=5), st.lists(_values, max_size=5))
def test_any_list_of_atoms_becomes_any_other(before: list[Any], after: list[Any]) -> None:
    obj = list(before)

    def write(target: list[Any], values: list[Any]) -> None:
        target[:] = values

    cell = SequenceCell(obj, list, write)
    contents = cell.save(None)
    obj[:] = after
    late = cell.save(None)
    cell.restore(contents)
    assert identical(obj, before)
    cell.restore(late)
    assert identical(obj, after)


def test_layout_names_its_children() -> None:
    child: list[int] = []
    layout = Layout([1, child, np.zeros(2), (1, 2)])
    assert layout.children == [(1, child)]
    assert (layout.arrays, layout.tuples) == ([2], [(3, (1, 2))])


def test_many_values_that_rest_are_seen_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    check = Layout._check

    def counted(self: Layout, values: Any) -> None:
        looks.append(len(values))
        check(self, values)

    monkeypatch.setattr(Layout, "_check", counted)
    things: list[Any] = [_thing(place=(i, 2 * i), name=f"thing {i}", marks=np.zeros(2)) for i in range(MANY)]
    cell = AttributesCell(things)
    first = cell.save(None)
    again = cell.save(None)
    assert len(looks) == 1  # the second time they were the very same
    things[3].place, things[4].name, things[5].color = (9, 9), "other", (0, 0, 0)
    things[6].marks[:] = 1
    later = cell.save(None)
    for contents, name in ((first, "thing 4"), (later, "other"), (again, "thing 4")):
        cell.restore(contents)
        changed = name == "other"
        assert (things[3].place, things[4].name) == ((9, 9) if changed else (3, 6), name)
        assert hasattr(things[5], "color") is changed
        assert things[6].marks.tolist() == [float(changed)] * 2
    things[7].place = [1, 2]
    for _ in range(2):
        with pytest.raises(StructureChanged):
            cell.save(None)
