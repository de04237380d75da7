"""How an env is branched, whether that is exact, and what it costs."""

import warnings
from statistics import median
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.costs import measure_costs
from sb3_hybrid_grpo.branching.recorders import is_recorder
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper
from sb3_hybrid_grpo.errors import BranchingError


class BranchingReport(NamedTuple):
    """What :func:`check_branching` found. Times are in microseconds; ``str()`` of it is for people."""

    env: str
    engine: str
    """"in place", "copied" (siblings that live on are copies of the env), "forked", or "none"."""
    refusal: str
    """Why the env cannot be branched; empty if it can."""
    reasons: tuple[str, ...]
    """Why a faster engine cannot be used."""
    step: float
    save: float
    restore: float
    n_samples: int
    branch_horizon: int
    group_step: float
    """A step of all members, with all that branching costs."""
    slow_down: float
    """What a step of the group costs, over as many plain steps: the median of ratios measured in turn."""

    @property
    def is_exact(self) -> bool:
        """Whether the env can be branched: only what was shown to be exact is."""
        return not self.refusal

    @property
    def hint(self) -> str:
        """What would make it faster; empty if little would."""
        if self.engine == "forked":
            return (
                "forks cost milliseconds. Keep all state in self, draw random numbers from self.np_random, register the "
                "simulator with register_engine, or give the env save_state() and restore_state(state)"
            )
        if self.is_exact and self.engine == "in place" and self.save + self.restore > self.step:
            return (
                "saving is slow beside a step. Say which large arrays never change (table.flags.writeable = False), or give "
                "the env save_state() and restore_state(state), which save what matters"
            )
        return ""

    def __str__(self) -> str:
        if not self.is_exact:
            return self.refusal
        siblings = {"in place": "snapshots, stepped in the env's own simulator", "copied": "copies of the env"}
        lines = [
            f"{self.env} is branched exactly",
            f"  siblings   {siblings.get(self.engine, 'processes forked from the env')}",
            f"  step       {self.step:.1f} µs",
            *([f"  save       {self.save:.1f} µs", f"  restore    {self.restore:.1f} µs"] if self.engine != "forked" else []),
            f"  slow-down  {self.slow_down:.2f}: {self.n_samples} members, branch_horizon={self.branch_horizon}, take "
            f"{self.group_step:.1f} µs a step, {self.n_samples} plain steps {self.n_samples * self.step:.1f} µs",
            *(f"  passed by  {reason}" for reason in self.reasons),
            *([f"  hint       {self.hint}"] if self.hint else []),
        ]
        return "\n".join(lines)


def check_branching(env: gym.Env[Any, Any], n_samples: int = 4, branch_horizon: int = 64) -> BranchingReport:
    """
    Find out how an env is branched, whether that is exact, and what it costs. The env is reset and played; its recorders
    (``Monitor`` and its like) see nothing of it.

    :param env: The env
    :param n_samples: N, the members of a group
    :param branch_horizon: K, the steps between two forks
    :return: The report
    :raises ValueError: if one of them is no whole number of at least 1
    """
    for name, value in (("n_samples", n_samples), ("branch_horizon", branch_horizon)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"Received {name}={value!r}: what is measured is a group that forks every so many steps, so it must be a "
                "whole number of at least 1. branch_horizon=64 is what 'auto' does where groups pay."
            )
    layer: Any = env
    try:
        while is_recorder(layer):
            layer = layer.env
        branching = layer if isinstance(layer, BranchingWrapper) else BranchingWrapper(layer)
        branching.reset(seed=0)
        failure = branching.check_siblings()
        if failure is not None:
            raise BranchingError(failure.error)
    except BranchingError as error:
        return BranchingReport(str(env), "none", str(error), (), *(0.0,) * 3, n_samples, branch_horizon, 0.0, 0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Each sibling of")  # the report says it too
        costs = measure_costs(branching, n_samples, branch_horizon)
    engine = "copied" if branching.siblings_are_copied and branch_horizon > 1 else branching.branching_engine.name
    pairs = zip(costs.group_steps, costs.steps, strict=True)
    return BranchingReport(
        *(str(env), engine, "", tuple(branching.branching_choice.reasons), median(costs.steps), costs.save, costs.restore),
        *(n_samples, branch_horizon, median(costs.group_steps)),
        median(group_step / (n_samples * step) for group_step, step in pairs),
    )
