"""Many lists or dicts as one cell: those that did not change since they were last looked at cost next to nothing."""

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sb3_hybrid_grpo.branching.cells import ListCell, MappingCell
from sb3_hybrid_grpo.branching.protocol import Cell

ENOUGH = 8
"""How many containers of a kind are a crowd."""


class Contents(NamedTuple):
    """What was in the containers."""

    sizes: list[int]
    references: list[Any]
    """All that they refer to, one container after another."""
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
    :param references: Lists what containers refer to, one after another
    :param per_item: How many references an item of a container has
    """

    def __init__(
        self,
        cells: Sequence[ListCell | MappingCell],
        containers: Sequence[Any],
        references: Callable[[Sequence[Any]], list[Any]],
        per_item: int,
    ) -> None:
        self.cells, self.containers, self.references, self.per_item = cells, containers, references, per_item
        self.known = Contents(*self._read(), [cell.save(None) for cell in cells], self._lively())

    def save(self, previous: Any) -> Contents:
        known, (sizes, references) = self.known, self._read()
        unlike = self._unlike(known, sizes, references)
        if unlike:
            saved = known.saved.copy()
            for index in unlike:
                saved[index] = self.cells[index].save(None)
            self.known = Contents(sizes, references, saved, self._lively())
        return self.known

    def resave(self, shared: Contents, previous: Any) -> Contents:
        sizes, references = self._read()
        saved = shared.saved.copy()
        for index in self._unlike(shared, sizes, references):
            saved[index] = self.cells[index].resave(saved[index], None)
        return Contents(sizes, references, saved, shared.lively)

    def restore(self, contents: Contents) -> None:
        for index in self._unlike(contents, *self._read()):
            self.cells[index].restore(contents.saved[index])

    def _read(self) -> tuple[list[int], list[Any]]:
        return list(map(len, self.containers)), self.references(self.containers)

    def _lively(self) -> list[int]:
        return [index for index, cell in enumerate(self.cells) if cell.layout.arrays or cell.layout.vectors]

    def _unlike(self, contents: Contents, sizes: list[int], references: list[Any]) -> list[int]:
        """The containers that are not as in these contents, or may be so without a trace."""
        if sizes == contents.sizes and all(map(operator.is_, references, contents.references)):
            return contents.lively
        unlike, now, then = set(contents.lively), 0, 0
        for index, (size, old_size) in enumerate(zip(sizes, contents.sizes)):  # noqa: B905  hot
            end, old_end = now + size * self.per_item, then + old_size * self.per_item
            if size != old_size or not all(map(operator.is_, references[now:end], contents.references[then:old_end])):
                unlike.add(index)
            now, then = end, old_end
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
        crowds.append(CrowdCell(lists, [cell.obj for cell in lists], _items, per_item=1))
    if len(dicts) >= ENOUGH:
        crowds.append(CrowdCell(dicts, [cell.mapping for cell in dicts], _keys_and_values, per_item=2))
    inside = {id(one) for crowd in crowds for one in crowd.cells}
    return [*crowds, *(cell for cell in cells if id(cell) not in inside)]


def _items(lists: Sequence[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def _keys_and_values(dicts: Sequence[dict[Any, Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(itertools.chain.from_iterable(map(dict.items, dicts))))
