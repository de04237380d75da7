"""Save and restore an env in place: the contents of every mutable object reachable from it."""

import types
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.cells import SpacesCell
from sb3_hybrid_grpo.branching.classes import OutsideError, name_of
from sb3_hybrid_grpo.branching.crowds import attributes_of, crowded
from sb3_hybrid_grpo.branching.engines import EngineRefusal, is_built_in
from sb3_hybrid_grpo.branching.layout import ATOMS, StructureChanged
from sb3_hybrid_grpo.branching.mujoco_state import ModelCell, models_of, shared_contents
from sb3_hybrid_grpo.branching.protocol import Cell
from sb3_hybrid_grpo.branching.recorders import layers_of
from sb3_hybrid_grpo.branching.visitors import Found, visit
from sb3_hybrid_grpo.errors import BranchingError


class NotInPlaceError(BranchingError):
    """
    An env holds something that cannot be copied and put back.

    :param message: All about it
    :param reason: In short
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["NotInPlaceError"], tuple[str, str]]:
        return type(self), (str(self), self.reason)


InPlaceSnapshot = tuple[list[Cell], list[Any]]
"""The cells of an env, and the contents of each."""


class InPlaceEngine:
    """
    Copies the contents of every mutable object that is reachable from the env, its wrappers and its generators of random
    numbers included, and writes them back into the same objects.

    The env is walked once; a save then copies everything and checks that each container still refers to the same objects.
    Where one does not, the env is walked again.

    :param env: The env, with the wrappers to be saved
    :param own_models: Whether the env changes its MjModel, so that each member needs one of its own
    :raises BranchingError: if the env holds something that cannot be copied
    """

    name = "in place"

    def __init__(self, env: gym.Env[Any, Any], own_models: bool = False) -> None:
        self.env, self.own_models = env, own_models
        env.unwrapped.np_random  # noqa: B018  a generator made only after a save would be made anew after each restore
        self._cells = self._walk()

    def save(self, previous: InPlaceSnapshot | None = None) -> InPlaceSnapshot:
        cells = self._cells
        try:
            if previous is None or previous[0] is not cells:
                return cells, [cell.save(None) for cell in cells]
            return cells, [cell.save(old) for cell, old in zip(cells, previous[1])]  # noqa: B905  hot
        except StructureChanged:
            cells = self._cells = self._walk()
            return cells, [cell.save(None) for cell in cells]

    def resave(self, start: InPlaceSnapshot, previous: InPlaceSnapshot | None = None) -> InPlaceSnapshot:
        cells, all_shared = start
        old = previous[1] if previous is not None and previous[0] is cells else [None] * len(cells)
        return cells, [cell.resave(shared, one) for cell, shared, one in zip(cells, all_shared, old)]  # noqa: B905  hot

    def restore(self, snapshot: InPlaceSnapshot) -> None:
        cells, all_contents = snapshot
        for cell, contents in zip(cells, all_contents):  # noqa: B905  hot
            cell.restore(contents)

    def shared_contents(self) -> dict[str, bytes]:
        """See :func:`shared_contents`."""
        return shared_contents(models_of(self._cells), self.own_models)

    def code(self) -> list[Any]:
        """See :meth:`Engine.code`."""
        return [*map(type, layers_of(self.env)), *self._code]

    def _walk(self) -> list[Cell]:
        """Visit every object once and collect the cells."""
        found = Found([], [], [], [], [])
        holders: dict[int, tuple[Any, int | None, str]] = {id(self.env): (self.env, None, "")}  # also keeps them alive
        waiting: list[Any] = [self.env]
        refused: list[tuple[Any, TypeError]] = []
        while waiting:
            obj = waiting.pop()
            try:
                children = visit(obj, found)
            except TypeError as error:
                refused.append((obj, error))
                continue
            for label, child in children:
                if type(child) not in ATOMS and id(child) not in holders:
                    holders[id(child)] = (child, id(obj), label)
                    waiting.append(child)
        if refused:  # what no other engine can save either is named first
            obj, why = next((one for one in refused if getattr(one[1], "is_final", False)), refused[0])
            raise self._refusal(obj, holders, why) from why
        self._code = [*map(type, found.objects), *found.functions]
        # attributes first: the hash of what is in a set may depend on them
        models = [ModelCell(model) for model in models_of(found.cells)] if self.own_models else []
        attributes = attributes_of(found.objects, found.records)
        return [*attributes, SpacesCell(found.spaces), *models, *crowded(found.cells)]

    def _refusal(self, obj: Any, holders: dict[int, tuple[Any, int | None, str]], error: TypeError) -> BranchingError:
        path, key = "", id(obj)
        holder: Any = self.env
        while True:
            _, parent, label = holders[key]
            path = label + path
            if parent is None:
                break
            holder, key = holders[parent][0], parent
            if hasattr(holder, "__dict__") and not isinstance(holder, types.FunctionType):
                break
        place, kind = type(holder).__qualname__ + path, name_of(type(obj))
        if isinstance(error, EngineRefusal):
            message = f"{self.env} cannot be branched: {place}: {error}. n_samples=1 (plain PPO) needs no branching."
            return BranchingError(message) if error.is_final else NotInPlaceError(message, f"{place}: {error}")
        if isinstance(error, OutsideError):
            return BranchingError(
                f"{self.env} cannot be branched: {place} holds a {kind}, {error}. {error.advice}. Or give the env the two "
                "methods of sb3_hybrid_grpo.branching.SupportsBranching, save_state() and restore_state(state), if it knows a "
                "way; n_samples=1 (plain PPO) needs no branching."
            )
        reason = f"{place} holds a {kind}, which cannot be copied and put back"
        saved = name_of(type(holder)) if is_built_in(kind) else kind
        message = (
            f"{self.env} cannot be branched: {reason}. Keep the object out "
            "of the env, say with sb3_hybrid_grpo.branching."
            f'register_engine("{saved}", save, restore) how it is saved, or give the env the two methods of '
            "sb3_hybrid_grpo.branching.SupportsBranching, save_state() and restore_state(state); "
            "n_samples=1 (plain PPO) needs no branching."
        )
        return NotInPlaceError(message, reason)
