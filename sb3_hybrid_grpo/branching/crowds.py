"""Many objects, lists or dicts as one cell: those that did not change since they were last looked at cost next to nothing."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching.cells import AttributesCell, ListCell, MappingCell
from sb3_hybrid_grpo.branching.layout import is_plain_vector
from sb3_hybrid_grpo.branching.looks import DictLook, ListLook, Look, Seen, VersionLook
from sb3_hybrid_grpo.branching.memory import LISTS_ARE_KNOWN, VERSION, dicts_have_versions, places_of, places_of_dicts, words
from sb3_hybrid_grpo.branching.protocol import Cell

ENOUGH = 8
"""How many of a kind are a crowd."""
WORTH_WATCHING = 50
"""How many objects it takes for looks at their versions to save more than it costs to find these at every walk."""

# What changes from step to step is a number, most often. Objects that hold one are better put back than looked at.
_LIVELY = (int, float, complex, np.generic, np.ndarray)


class Contents(NamedTuple):
    """What was in the containers."""

    seen: Seen
    saved: list[Any]
    """What each one's cell saved. It keeps alive what was seen."""
    lively: list[int]
    """Those that hold what can change in place: arrays and vectors."""


class CrowdCell:
    """
    All containers of a kind. What they refer to is compared in a few calls into C; only those where a reference is another one
    are left to their own cells, and those with contents that change in place always are.

    :param cells: Their cells
    :param look: Sees what the containers refer to
    """

    def __init__(self, cells: Sequence[ListCell | MappingCell], look: Look) -> None:
        self.cells, self.look = cells, look
        self.known = Contents(look(), [cell.save(None) for cell in cells], self._lively())

    def save(self, previous: Any) -> Contents:
        seen, known = self.look(), self.known
        unlike = self._unlike(known, seen)
        if unlike:
            saved = known.saved.copy()
            for index in unlike:
                saved[index] = self.cells[index].save(None)
            self.known = Contents(seen, saved, self._lively())
        return self.known

    def resave(self, shared: Contents, previous: Any) -> Contents:
        seen, saved = self.look(), shared.saved.copy()
        for index in self._unlike(shared, seen):
            saved[index] = self.cells[index].resave(saved[index], None)
        return Contents(seen, saved, shared.lively)

    def restore(self, contents: Contents) -> None:
        for index in self._unlike(contents, self.look()):
            self.cells[index].restore(contents.saved[index])

    def _lively(self) -> list[int]:
        return [index for index, cell in enumerate(self.cells) if cell.layout.arrays or cell.layout.vectors]

    def _unlike(self, contents: Contents, now: Seen) -> list[int]:
        """The containers that are not as in these contents, or may be so without a trace."""
        if now == contents.seen:
            return contents.lively
        return sorted({*contents.lively, *now.unlike(contents.seen)})


class Attributes(NamedTuple):
    """What objects had."""

    seen: bytes
    contents: Any
    """What an :class:`AttributesCell` saved."""
    lively: bool
    """Whether there is something that can change in place: it does so without a trace."""

    def are_seen(self, now: bytes) -> bool:
        """Whether the objects still have it."""
        return self.seen == now and not self.lively


class RestingCell(AttributesCell):
    """
    The attributes of objects that may rest for long: as long as no ``__dict__`` is written to, nothing is to be copied.

    :param objects: The objects
    :param skip: Values whose contents are no state
    :param holders: Where each object refers to its ``__dict__``
    """

    def __init__(self, objects: Sequence[Any], skip: Iterable[Any], holders: np.ndarray) -> None:
        super().__init__(objects, skip)
        self.places = np.concatenate([holders, places_of(id(attributes) + VERSION for _, attributes in self.objects)])
        self.known = self._saved(self._look())

    def save(self, previous: Any) -> Attributes:
        seen = self._look()
        if not self.known.are_seen(seen):
            self.known = self._saved(seen)
        return self.known

    def resave(self, shared: Attributes, previous: Any) -> Attributes:
        seen = self._look()
        return shared if shared.are_seen(seen) else Attributes(seen, super().resave(shared.contents, None), shared.lively)

    def restore(self, contents: Attributes) -> None:
        if not contents.are_seen(self._look()):
            super().restore(contents.contents)

    def _saved(self, seen: bytes) -> Attributes:
        contents = super().save(None)
        return Attributes(seen, contents, bool(self.layout.arrays or self.layout.vectors))

    def _look(self) -> bytes:
        seen: bytes = words()[self.places].tobytes()
        return seen


def crowded(cells: Sequence[Cell]) -> list[Cell]:
    """
    Put the cells of lists together, and those of dicts.

    :param cells: The cells of an env
    :return: The same, with crowds in place of many of a kind
    """
    lists: list[Any] = [cell for cell in cells if type(cell) is ListCell and type(cell.obj) is list]
    dicts: list[Any] = [cell for cell in cells if type(cell) is MappingCell and type(cell.mapping) is dict]
    crowds: list[CrowdCell] = []
    if len(lists) >= ENOUGH and LISTS_ARE_KNOWN:
        crowds.append(CrowdCell(lists, ListLook([cell.obj for cell in lists])))
    if len(dicts) >= ENOUGH:
        look = VersionLook if dicts_have_versions() else DictLook
        crowds.append(CrowdCell(dicts, look([cell.mapping for cell in dicts])))
    inside = {id(one) for crowd in crowds for one in crowd.cells}
    return [*crowds, *(cell for cell in cells if id(cell) not in inside)]


def attributes_of(objects: Sequence[Any], skip: Iterable[Any]) -> list[AttributesCell]:
    """
    Put the attributes of objects into cells, those apart that may rest.

    :param objects: The objects
    :param skip: Values whose contents are no state
    :return: A cell or two
    """
    still = still_ones(objects)
    resting = set(map(id, still))
    others = [obj for obj in objects if id(obj) not in resting]
    holders = places_of_dicts(still) if len(still) >= WORTH_WATCHING and dicts_have_versions() else None
    cells = [AttributesCell(some, skip) for some in (others, still if holders is None else ()) if some]
    return cells if holders is None else [RestingCell(still, skip, holders), *cells]


def still_ones(objects: Sequence[Any]) -> list[Any]:
    """
    Find objects that may rest for long: many of one class, without numbers. Apart from others, they are seen to do so.

    :param objects: Objects with attributes
    :return: Some of them
    """
    many = {kind for kind, count in Counter(map(type, objects)).items() if count >= ENOUGH}
    return [obj for obj in objects if type(obj) in many and not any(map(_is_lively, vars(obj).values()))]


def _is_lively(value: Any) -> bool:
    return isinstance(value, _LIVELY) or is_plain_vector(value)
