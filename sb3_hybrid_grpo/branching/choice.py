"""Which engine an env is branched with: the first that can, and that is shown to be exact."""

import warnings
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.check import find_difference
from sb3_hybrid_grpo.branching.forks import ForkEngine, can_fork
from sb3_hybrid_grpo.branching.inplace import InPlaceEngine, NotInPlaceError
from sb3_hybrid_grpo.branching.mujoco_state import ModelChangesError
from sb3_hybrid_grpo.branching.trial import not_exact


class Choice:
    """
    The engine of an env: in place where all that the env holds can be saved, by forks where not.

    :param env: The env
    :raises BranchingError: if there is none
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.reasons: list[str] = []
        """Why each engine was passed over."""
        self.copies_differ = False
        """Whether the check has shown that copies of the env are none."""
        self.engine: InPlaceEngine | ForkEngine
        try:
            self.engine = InPlaceEngine(env)
        except NotInPlaceError as refusal:
            if not can_fork():
                raise
            self.reasons.append(f"{InPlaceEngine.name}: {refusal.reason}")
            self.engine = ForkEngine(env)

    def check(self, resets: bool) -> None:
        """
        Keep the engine if it is exact on this env, or go on to the next.

        :param resets: Whether siblings reset by themselves
        :raises BranchingError: if no engine is exact
        """
        try:
            found = find_difference(self.env, self.engine, resets)
        except ModelChangesError:
            self.engine = InPlaceEngine(self.env, own_models=True)
            found = find_difference(self.env, self.engine, resets)
        if found.difference is not None and can_fork() and not isinstance(self.engine, ForkEngine):
            self.reasons.append(f"{self.engine.name}: {found.difference}")
            self.engine = ForkEngine(self.env)
            found = find_difference(self.env, self.engine, resets)
        if found.difference is not None:
            raise not_exact(self.env, [*self.reasons, f"{self.engine.name}: {found.difference}"])
        if found.error is not None:
            warnings.warn(
                f"Whether siblings of {self.env} are exact could not be shown before the training: it raised {found.error} "
                "when it played random actions. Where only some actions are valid, give it action_masks(), as sb3-contrib's "
                "MaskablePPO wants it.",
                stacklevel=2,
            )
        self.copies_differ = found.copies_differ

    def warn_of_costs(self) -> None:
        """Say what forks cost. To be called when the env can be stepped."""
        if not isinstance(self.engine, ForkEngine):
            return
        first, more = self.engine.costs()
        warnings.warn(
            f"Each sibling of {self.env} is a process, forked from the env's. That takes {1e6 * first:.0f} µs with a first "
            f"step, and {1e6 * more:.0f} µs for every step more. What is faster cannot be used ({'; '.join(self.reasons)}). "
            "An env that keeps all of its state in itself needs no forks, nor does one with the two methods of "
            "sb3_hybrid_grpo.branching.SupportsBranching.",
            stacklevel=2,
        )
