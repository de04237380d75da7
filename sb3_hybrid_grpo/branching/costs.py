"""
What branching costs: steps of an env alone, and steps of its group, in turn.

A busy machine changes its speed from moment to moment. So a ratio is formed of two blocks that follow one another, and what
counts is the median over many such pairs.
"""

import time
from typing import NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching.answers import SiblingFailure
from sb3_hybrid_grpo.branching.plays import RandomActions, chosen
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper
from sb3_hybrid_grpo.errors import BranchingError

SECONDS = 0.8
"""How long pairs of blocks are measured."""
BLOCK = 0.02
"""How long a block is, at least, in seconds."""
FEWEST_PAIRS = 3


class Costs(NamedTuple):
    """Times in microseconds."""

    steps: list[float]
    """A step of the env alone, block by block."""
    group_steps: list[float]
    """A step of all members, with all that branching costs, each measured right before the one of the env alone."""
    save: float
    restore: float


def measure_costs(branching: BranchingWrapper, n_samples: int, branch_horizon: int) -> Costs:
    """
    Play at random, by turns alone and as a group.

    :param branching: The env; it is reset
    :param n_samples: N, the members of a group
    :param branch_horizon: K, the steps between two forks
    :return: What it costs
    :raises BranchingError: if a sibling fails
    """
    branching.reset(seed=0)
    turns = _Turns(branching, n_samples, branch_horizon)
    turns.group()  # the first step tries whether copies are exact
    steps: list[float] = []
    group_steps: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(steps) < FEWEST_PAIRS:
        group_steps.append(turns.group())
        steps.append(turns.alone())
    return Costs(steps, group_steps, *_engine_times(branching))


class _Turns:
    """Blocks of steps. What is no step is not measured: drawing actions, and resets of the env."""

    def __init__(self, branching: BranchingWrapper, n_samples: int, branch_horizon: int) -> None:
        self.branching, self.n_samples, self.branch_horizon = branching, n_samples, branch_horizon
        self.actions = RandomActions(branching)

    def alone(self) -> float:
        """Microseconds of a step of the env, as it would be without siblings."""
        env, n_steps, seconds = self.branching.env, 0, 0.0
        while seconds < BLOCK:
            # valid actions depend on the state: they are drawn one by one
            actions = [chosen(env, action) for action in self.actions.draw(1 if self.actions.masked else self.n_samples)]
            start = time.perf_counter()
            for action in actions:
                _, _, terminated, truncated, _ = env.step(action)
                n_steps += 1
                if terminated or truncated:
                    break
            seconds += time.perf_counter() - start
            if terminated or truncated:
                self.branching.reset()
        return 1e6 * seconds / n_steps

    def group(self) -> float:
        """Microseconds of a step of all members; siblings fork first, when they are to, and when the env's episode ends."""
        n_siblings, age, n_steps, seconds = self.n_samples - 1, 0, 0, 0.0
        starts = [True] * n_siblings
        while seconds < BLOCK or n_steps % self.branch_horizon > 0:
            taken = self.actions.draw(self.n_samples)
            if self.actions.masked:  # valid for member 0, and so for siblings that have done the same
                taken = [chosen(self.branching, taken[0])] * self.n_samples
            siblings_actions = np.array(taken[1:])
            start = time.perf_counter()
            ended = self._step_siblings(siblings_actions, starts, age + 1 < self.branch_horizon)
            _, _, terminated, truncated, _ = self.branching.step(taken[0])
            seconds += time.perf_counter() - start
            n_steps += 1
            age += 1
            if terminated or truncated:
                self.branching.reset()
            fork_all = terminated or truncated or age == self.branch_horizon
            age = 0 if fork_all else age
            starts = [True] * n_siblings if fork_all else ended
        return 1e6 * seconds / n_steps

    def _step_siblings(self, actions: np.ndarray, starts: list[bool], keep: bool) -> list[bool]:
        """Whose episode ended."""
        if not len(actions):
            return starts
        steps = self.branching.step_siblings(actions, starts, keep)
        if isinstance(steps, SiblingFailure):
            raise BranchingError(f"Member {steps.member} failed: {steps.error}")
        return [terminated or truncated for terminated, truncated in zip(steps.terminated, steps.truncated, strict=True)]


def _engine_times(branching: BranchingWrapper) -> tuple[float, float]:
    """Microseconds of a save and a restore."""
    branching.reset(seed=0)
    engine, times = branching.branching_engine, np.zeros(2)
    n_times = 0
    with branching.standing_still(as_start=True) as snapshot:
        while times.sum() < SECONDS / 8 and n_times < 10_000:
            start = time.perf_counter()
            snapshot = engine.save(snapshot)
            middle = time.perf_counter()
            engine.restore(snapshot)
            times += (middle - start, time.perf_counter() - middle)
            n_times += 1
    save, restore = (1e6 * times / n_times).tolist()
    return save, restore
