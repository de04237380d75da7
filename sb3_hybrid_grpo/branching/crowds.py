"""Many lists or dicts as one cell: those that did not change since they were last looked at cost next to nothing."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching.cells import ListCell, MappingCell
from sb3_hybrid_grpo.branching.layout import addresses, is_plain_vector
from sb3_hybrid_grpo.branching.protocol import Cell

ENOUGH = 8
"""How many containers of a kind are a crowd."""

Streams = Sequence[list[Any]]
"""All that containers refer to, one container after another; keys apart from values, one of each for every item."""

# What changes from step to step is a number, most often. Objects that hold one are better put back than looked at.
_LIVELY = (int, float, complex, np.generic, np.ndarray)


class Contents(NamedTuple):
    """What was in the containers."""

    sizes: list[int]
    streams: Streams
    addresses: list[bytes]
    """Those of all that is in the streams. What is alive has an address of its own."""
    saved: list[Any]
    """What each one's cell saved."""
    lively: list[int]
    """Those that hold what can change in place: arrays and vectors."""


class CrowdCell:
    """
    All containers of a kind. What they refer to is compared in a few calls into C; only those where a reference is another one
    are left to their own cells, and those with contents that change in place always are.

    :param cells: Their cells
    :param containers: The containers
    :param streams: Lists what containers refer to
    """

    def __init__(
        self, cells: Sequence[ListCell | MappingCell], containers: Sequence[Any], streams: Callable[[Sequence[Any]], Streams]
    ) -> None:
        self.cells, self.containers, self.streams = cells, containers, streams
        self.known = Contents(*self._look(), [cell.save(None) for cell in cells], self._lively())

    def save(self, previous: Any) -> Contents:
        known, seen = self.known, self._look()
        unlike = self._unlike(known, *seen)
        if unlike:
            saved = known.saved.copy()
            for index in unlike:
                saved[index] = self.cells[index].save(None)
            self.known = Contents(*seen, saved, self._lively())
        return self.known

    def resave(self, shared: Contents, previous: Any) -> Contents:
        seen = self._look()
        saved = shared.saved.copy()
        for index in self._unlike(shared, *seen):
            saved[index] = self.cells[index].resave(saved[index], None)
        return Contents(*seen, saved, shared.lively)

    def restore(self, contents: Contents) -> None:
        for index in self._unlike(contents, *self._look()):
            self.cells[index].restore(contents.saved[index])

    def _look(self) -> tuple[list[int], Streams, list[bytes]]:
        streams = self.streams(self.containers)
        return list(map(len, self.containers)), streams, list(map(addresses, streams))

    def _lively(self) -> list[int]:
        return [index for index, cell in enumerate(self.cells) if cell.layout.arrays or cell.layout.vectors]

    def _unlike(self, contents: Contents, sizes: list[int], streams: Streams, now: list[bytes]) -> list[int]:
        """The containers that are not as in these contents, or may be so without a trace. The streams hold what is now."""
        then = contents.addresses
        if now == then and sizes == contents.sizes:
            return contents.lively
        unlike, start, old_start = set(contents.lively), 0, 0
        for index, (size, old_size) in enumerate(zip(sizes, contents.sizes)):  # noqa: B905  hot
            end, old_end = start + 8 * size, old_start + 8 * old_size
            for new, old in zip(now, then):  # noqa: B905  hot
                if new[start:end] != old[old_start:old_end]:
                    unlike.add(index)
            start, old_start = end, old_end
        return sorted(unlike)


def crowded(cells: Sequence[Cell]) -> list[Cell]:
    """
    Put the cells of lists together, and those of dicts.

    :param cells: The cells of an env
    :return: The same, with crowds in place of many of a kind
    """
    lists: list[Any] = [cell for cell in cells if type(cell) is ListCell and type(cell.obj) is list]
    dicts: list[Any] = [cell for cell in cells if type(cell) is MappingCell and type(cell.mapping) is dict]
    crowds: list[CrowdCell] = []
    if len(lists) >= ENOUGH:
        crowds.append(CrowdCell(lists, [cell.obj for cell in lists], _items))
    if len(dicts) >= ENOUGH:
        crowds.append(CrowdCell(dicts, [cell.mapping for cell in dicts], _keys_and_values))
    inside = {id(one) for crowd in crowds for one in crowd.cells}
    return [*crowds, *(cell for cell in cells if id(cell) not in inside)]


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


def _items(lists: Sequence[list[Any]]) -> Streams:
    return [list(itertools.chain.from_iterable(lists))]


def _keys_and_values(dicts: Sequence[dict[Any, Any]]) -> Streams:
    return [list(itertools.chain.from_iterable(dicts)), list(itertools.chain.from_iterable(map(dict.values, dicts)))]
