"""Whether an env draws random numbers while it steps: only then is there a noise that members can share."""

import pickle
from typing import Any

from sb3_hybrid_grpo.branching.cells import HookCell
from sb3_hybrid_grpo.branching.engines import EngineCell
from sb3_hybrid_grpo.branching.inplace import InPlaceEngine
from sb3_hybrid_grpo.branching.objects import GeneratorCell, PCG64Cell, PythonRandomCell, RandomStateCell
from sb3_hybrid_grpo.branching.protocol import Cell, Engine
from sb3_hybrid_grpo.errors import BranchingError

GeneratorCells = PCG64Cell | GeneratorCell | RandomStateCell | PythonRandomCell


class NoiseWatch:
    """
    Watches the generators of random numbers that are reachable from an env, from step to step. What is drawn in a reset is
    no noise that members of a group could share.

    Where a part of the env saves itself, or an engine saves it, generators may be hidden in there: such an env counts as
    noisy, and so does one that cannot be looked into (any more).

    :param engine: The env's engine
    """

    def __init__(self, engine: Engine) -> None:
        self.seen = not isinstance(engine, InPlaceEngine)
        """Whether a step has drawn random numbers."""
        self.watching = False
        self._engine = engine
        self._generators: list[GeneratorCells] | None = None
        self._states: list[Any] = []

    def before_reset(self) -> None:
        """Forget the generators: a reset may make new ones."""
        self._generators = None

    def before_step(self) -> None:
        """Look at the generators."""
        if self._generators is None:
            self._generators = self._find()
        self._states = [_state(cell) for cell in self._generators]

    def after_step(self) -> None:
        """Look at them again."""
        self.seen |= self._states != [_state(cell) for cell in self._generators or ()]
        self.watching = not self.seen

    def _find(self) -> list[GeneratorCells]:
        try:
            cells: list[Cell] = self._engine.save()[0]
        except BranchingError:
            cells, self.seen = [], True
        self.seen |= any(isinstance(cell, HookCell) or (isinstance(cell, EngineCell) and cell.may_be_noisy) for cell in cells)
        return [cell for cell in cells if isinstance(cell, GeneratorCells)]


def _state(cell: GeneratorCells) -> Any:
    """What can be compared: most states are dicts of arrays."""
    return cell.save(None) if isinstance(cell, PCG64Cell) else pickle.dumps(cell.save(None))
