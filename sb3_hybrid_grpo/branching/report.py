"""How an env is branched, whether that is exact, and what it costs."""

import time
import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.answers import SiblingFailure
from sb3_hybrid_grpo.branching.plays import RandomActions, chosen
from sb3_hybrid_grpo.branching.recorders import is_recorder
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper
from sb3_hybrid_grpo.errors import BranchingError

SECONDS = 0.3
"""How long each figure is measured."""


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

    @property
    def is_exact(self) -> bool:
        """Whether the env can be branched: only what was shown to be exact is."""
        return not self.refusal

    @property
    def slow_down(self) -> float:
        """What a step of the group costs, over as many plain steps."""
        return self.group_step / (self.n_samples * self.step)

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
    """
    layer: Any = env
    try:
        while is_recorder(layer):
            layer = layer.env
        branching = layer if isinstance(layer, BranchingWrapper) else BranchingWrapper(layer)
        branching.reset(seed=0)
        failure = branching.check_siblings(resets=branch_horizon > 1)
        if failure is not None:
            raise BranchingError(failure.error)
    except BranchingError as error:
        return BranchingReport(str(env), "none", str(error), (), *(0.0,) * 3, n_samples, branch_horizon, 0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Each sibling of")  # the report says it too
        group_step = _group_step(branching, n_samples, branch_horizon)
    step, (save, restore) = _plain_step(branching), _engine_times(branching)
    engine = "copied" if branching._copyable and not branching._forks and branch_horizon > 1 else branching._engine.name
    found = (step, save, restore, n_samples, branch_horizon, group_step)
    return BranchingReport(str(env), engine, "", tuple(branching._choice.reasons), *found)


def _plain_step(env: gym.Env[Any, Any]) -> float:
    """Microseconds of a step of the env alone."""
    actions = RandomActions(env)
    env.reset(seed=0)
    n_steps, seconds = 0, 0.0
    while seconds < SECONDS:
        action = chosen(env, actions.draw(1)[0])
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        seconds += time.perf_counter() - start
        n_steps += 1
        if terminated or truncated:
            env.reset()
    return 1e6 * seconds / n_steps


def _group_step(branching: BranchingWrapper, n_samples: int, branch_horizon: int) -> float:
    """Microseconds of a step of all members; siblings fork when they are to, and when the env's episode ends."""
    actions = RandomActions(branching)
    branching.reset(seed=0)
    n_siblings, age, n_steps, seconds = n_samples - 1, 0, 0, 0.0
    starts = ended = np.ones(n_siblings, bool)
    while seconds < SECONDS or n_steps % branch_horizon > 0:
        taken = actions.draw(n_samples)
        if actions.masked:  # valid for member 0, and so for siblings that have done the same
            taken = [chosen(branching, taken[0])] * n_samples
        start = time.perf_counter()
        if n_siblings:
            steps = branching.step_siblings(np.array(taken[1:]), starts, age + 1 < branch_horizon)
            if isinstance(steps, SiblingFailure):
                raise BranchingError(f"Member {steps.member} failed: {steps.error}")
            ended = np.logical_or(steps.terminated, steps.truncated)
        _, _, terminated, truncated, _ = branching.step(taken[0])
        if n_steps > 0:  # the first step tries whether copies are exact
            seconds += time.perf_counter() - start
        n_steps += 1
        age += 1
        if terminated or truncated:
            branching.reset()
        fork_all = terminated or truncated or age == branch_horizon
        age = 0 if fork_all else age
        starts = np.ones(n_siblings, bool) if fork_all else ended
    return 1e6 * seconds / (n_steps - 1)


def _engine_times(branching: BranchingWrapper) -> tuple[float, float]:
    """Microseconds of a save and a restore."""
    branching.reset(seed=0)
    engine, times = branching._engine, np.zeros(2)
    n_times = 0
    with branching._standing_still(as_start=True) as snapshot:
        while times.sum() < SECONDS / 3 and n_times < 10_000:
            start = time.perf_counter()
            snapshot = engine.save(snapshot)
            middle = time.perf_counter()
            engine.restore(snapshot)
            times += (middle - start, time.perf_counter() - middle)
            n_times += 1
    save, restore = (1e6 * times / n_times).tolist()
    return save, restore
