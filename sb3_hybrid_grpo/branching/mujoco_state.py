"""Cells of MuJoCo's objects: its state (``MjData``), and the model that it belongs to where an env changes that too."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.cells import OpaqueCell
from sb3_hybrid_grpo.branching.protocol import Cell
from sb3_hybrid_grpo.errors import BranchingError

# Shapes, pictures and names: megabytes that no simulation changes. An env that does is refused.
_SHAPES = ("mesh_", "tex_", "bvh_", "oct_", "skin_", "text_", "names", "paths")
_PARTS = ("opt", "stat")


class ModelChangesError(BranchingError):
    """An env changes its MjModel, which its members share. Raised where each can have a model of its own."""


class MujocoCell(OpaqueCell):
    """
    MuJoCo's ``MjData``, all of it: observations and rewards read derived arrays (``xpos``, ``cinert``, …) that lag behind
    ``qpos``, so that none of MuJoCo's own state signatures (``mjSTATE_*``) is exact for every env.

    :param data: The MjData
    """

    def __init__(self, data: Any) -> None:
        import mujoco

        self.data, self.model = data, data.model
        self.make, self.copy = mujoco.MjData, mujoco.mj_copyData

    def save(self, previous: Any) -> Any:
        contents = self.make(self.model) if previous is None else previous
        self.copy(contents, self.model, self.data)
        return contents

    def restore(self, contents: Any) -> None:
        self.copy(self.data, self.model, contents)


class OldMujocoCell(OpaqueCell):
    """
    ``MjData`` before mujoco 3.5 gave Python ``mj_copyData``: the integration state and every array of fixed size.

    :param data: The MjData
    """

    def __init__(self, data: Any) -> None:
        import mujoco

        self.data, self.model, self.mujoco = data, data.model, mujoco
        self.signature = mujoco.mjtState.mjSTATE_INTEGRATION
        # what changes its size with every step (contacts, constraints, islands) lives in an arena, empty in a new MjData
        new = mujoco.MjData(self.model)
        arrays = {name: getattr(new, name, None) for name in dir(new) if not name.startswith("_")}
        self.names = [name for name, one in arrays.items() if isinstance(one, np.ndarray) and one.size]

    def save(self, previous: Any) -> Any:
        integration = np.empty(self.mujoco.mj_stateSize(self.model, self.signature))
        self.mujoco.mj_getState(self.model, self.data, integration, self.signature)
        return integration, {name: getattr(self.data, name).copy() for name in self.names}

    def restore(self, contents: Any) -> None:
        integration, arrays = contents
        self.mujoco.mj_setState(self.model, self.data, integration, self.signature)
        for name, array_contents in arrays.items():
            getattr(self.data, name)[...] = array_contents


class ModelCell(OpaqueCell):
    """
    An ``MjModel`` without its shapes: every array, and the numbers among its options and statistics.

    :param model: The MjModel
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        values = {name: value for name, value in _values(model).items() if not name.startswith(_SHAPES)}
        self.arrays = [value for value in values.values() if isinstance(value, np.ndarray)]
        self.numbers = [tuple(name.split(".")) for name, value in values.items() if "." in name and np.isscalar(value)]

    def save(self, previous: Any) -> Any:
        numbers = [getattr(getattr(self.model, part), name) for part, name in self.numbers]
        return [array.copy() for array in self.arrays], numbers

    def restore(self, contents: Any) -> None:
        arrays, numbers = contents
        for array, saved in zip(self.arrays, arrays):  # noqa: B905  hot
            array[...] = saved
        for (part, name), number in zip(self.numbers, numbers):  # noqa: B905  hot
            setattr(getattr(self.model, part), name, number)


def is_mujoco(kind: type, name: str) -> bool:
    """
    :param kind: A type
    :param name: The name of one of MuJoCo's types
    :return: Whether it is that one
    """
    return kind.__name__ == name and kind.__module__.startswith("mujoco")


def mujoco_cell(data: Any) -> Cell:
    """
    Make the cell of a simulation's state.

    :param data: The MjData
    :return: Its cell
    """
    import mujoco

    return MujocoCell(data) if hasattr(mujoco, "mj_copyData") else OldMujocoCell(data)


def models_of(cells: Sequence[Cell]) -> list[Any]:
    """
    Find the models that simulations belong to.

    :param cells: The cells of an env
    :return: Each MjModel once
    """
    return list({id(cell.model): cell.model for cell in cells if isinstance(cell, MujocoCell | OldMujocoCell)}.values())


def shared_contents(models: Sequence[Any], are_own: bool) -> dict[str, bytes]:
    """
    Read what members share of their models.

    :param models: The models
    :param are_own: Whether each member has a model of its own, so that it shares shapes alone
    :return: The contents of arrays and numbers by name
    """
    return {
        f"{index}.{name}": np.asarray(value).tobytes()
        for index, model in enumerate(models)
        for name, value in _values(model).items()
        if not are_own or name.startswith(_SHAPES)
    }


def refuse_changes(env: Any, before: dict[str, bytes], after: dict[str, bytes], when: str) -> None:
    """
    Refuse an env that changes of its MjModel what other members would feel.

    :param env: The env
    :param before: What :func:`shared_contents` was
    :param after: What it is now
    :param when: The name of the method that was called in between
    :raises ModelChangesError: if it has changed what a member can have of its own
    :raises BranchingError: if it has changed something else
    """
    changed = [name.partition(".")[2] for name in before if after.get(name) != before[name]]
    if not changed:
        return
    shape = next((name for name in changed if name.startswith(_SHAPES)), None)
    message = f"{env} cannot be branched: its {when}() changes MjModel.{shape or changed[0]}, which all members share. "
    if shape is None:
        raise ModelChangesError(
            f"{message}The check before the training, branching_check=True, has not seen it or was switched off: where it "
            "sees that, each member has a model of its own. Change the model in every step() or reset(), or use n_samples=1 "
            "(plain PPO)."
        )
    raise BranchingError(
        f"{message}Change what is not a shape or a picture, apply forces through MjData (xfrc_applied, qfrc_applied), or use "
        "n_samples=1 (plain PPO)."
    )


def _values(model: Any) -> dict[str, Any]:
    """Arrays and numbers of a model by name."""
    values = {}
    for prefix, part in (("", model), *((f"{name}.", getattr(model, name)) for name in _PARTS)):
        for name in dir(part):
            value = None if name.startswith("_") else getattr(part, name, None)
            if isinstance(value, np.ndarray | int | float):
                values[prefix + name] = value
    return values
