"""The numbers of a comparison's report: curves on a common grid, interquartile means with intervals, who is best."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from sb3_hybrid_grpo.benchmark.results import Row

Array = npt.NDArray[np.float64]
Axis = Literal["simulator_steps", "executed_steps", "wall_seconds"]
Run = tuple[Row, ...]

BASELINES = ("ppo", "trpo")
OURS = "ours"
GRID_POINTS = 100
RESAMPLES = 2_000
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """
    A number over seeds.

    :param value: The interquartile mean.
    :param interval: Its 95% bootstrap interval; None for one seed or two, of which it would be no more than the range.
    """

    value: float
    interval: tuple[float, float] | None

    def overlaps(self, other: "Estimate") -> bool | None:
        """
        Compare with another estimate.

        :param other: The other one.
        :return: Whether the intervals overlap; None where one of them is missing.
        """
        if self.interval is None or other.interval is None:
            return None
        return self.interval[0] <= other.interval[1] and other.interval[0] <= self.interval[1]


def interquartile_means(scores: Array) -> Array:
    """
    Average over seeds, without the lowest and the highest quarter of them: rliable's ``aggregate_iqm`` of each column, which,
    column by column, would take minutes.

    :param scores: A row per seed.
    :return: One mean per column.
    """
    cut = len(scores) // 4
    means: Array = np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)
    return means


@contextmanager
def fixed_seed() -> Iterator[None]:
    """
    Make rliable's resampling repeatable: it draws from numpy's global generator, whatever ``random_state`` it is given.

    :return: A context manager, after which the generator is as it was.
    """
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def bootstrap(scores: Array, statistic: Callable[[Array], Array]) -> tuple[Array, Array]:
    """
    Find 95% intervals by resampling seeds, in each column on its own.

    :param scores: A row per seed.
    :param statistic: From such scores to an array of numbers.
    :return: The numbers' lower and upper bounds.
    """
    from rliable.library import get_interval_estimates

    with fixed_seed():
        _, found = get_interval_estimates({"scores": scores}, statistic, reps=RESAMPLES)
    low, high = found["scores"]
    return low, high


def estimates(scores: Array) -> list[Estimate]:
    """
    Estimate every column's interquartile mean.

    :param scores: A row per seed.
    :return: One per column.
    """
    values = interquartile_means(scores)
    if len(scores) < FEWEST_SEEDS:
        return [Estimate(float(value), None) for value in values]
    bounds = zip(*bootstrap(scores, interquartile_means), strict=True)
    return [Estimate(float(v), (float(low), float(high))) for v, (low, high) in zip(values, bounds, strict=True)]


def positions(run: Run, axis: Axis) -> Array:
    """
    Say where a run was evaluated.

    :param run: The run.
    :param axis: In what.
    :return: One number per evaluation.
    """
    return np.array([getattr(row, axis) for row in run], dtype=np.float64)


def rewards(run: Run) -> Array:
    """
    List what a run's evaluations gave.

    :param run: The run.
    :return: One mean reward per evaluation.
    """
    return np.array([row.mean_reward for row in run], dtype=np.float64)


def on_common_grid(runs: Sequence[Run], axis: Axis) -> tuple[Array, Array]:
    """
    Make runs comparable point by point: linear between evaluations, nothing beyond the range that all of them cover.

    :param runs: The runs of a variant.
    :param axis: What the grid counts.
    :return: The grid, which is every position at which one of them was evaluated (evenly spaced if those are many), and the
        rewards there, a row per run.
    """
    known = [positions(run, axis) for run in runs]
    first, last = max(steps[0] for steps in known), min(steps[-1] for steps in known)
    grid = np.unique(np.concatenate(known))
    grid = grid[(grid >= first) & (grid <= last)]
    if len(grid) > GRID_POINTS:
        grid = np.linspace(first, last, GRID_POINTS)
    return grid, np.array([np.interp(grid, steps, rewards(run)) for steps, run in zip(known, runs, strict=True)])


def first_reaching(steps: Array, values: Array, score: float) -> float | None:
    """
    Find where a curve first reaches a score.

    :param steps: The curve's positions.
    :param values: Its values there.
    :param score: The score.
    :return: The first position with at least that; None if there is none.
    """
    reached = np.flatnonzero(values >= score)
    return float(steps[reached[0]]) if reached.size else None


class Runs:
    """
    An algorithm at some settings, with the runs it had.

    :param algorithm: As named on the command line.
    :param settings: How it collected and used data.
    :param runs: Rows by seed; each run's in the order of simulator steps, at least one of them after training began.
    """

    def __init__(self, algorithm: str, settings: str, runs: Mapping[int, Run]) -> None:
        self.algorithm, self.settings = algorithm, settings
        self.runs = [runs[seed] for seed in sorted(runs)]
        family = algorithm.partition(",")[0]
        self.group = family if family in BASELINES else OURS
        trained = [rewards(run)[positions(run, "simulator_steps") > 0] for run in self.runs]
        self.means = np.array([values.mean() for values in trained])
        self.finals = np.array([values[-2:].mean() for values in trained])
        self.wall_seconds = float(np.median([run[-1].wall_seconds for run in self.runs]))
        self.last_steps = [run[-1].simulator_steps for run in self.runs]

    @cached_property
    def _estimates(self) -> list[Estimate]:
        return estimates(np.column_stack([self.means, self.finals]))

    @property
    def training(self) -> Estimate:
        """Mean reward of all evaluations after step 0."""
        return self._estimates[0]

    @property
    def final(self) -> Estimate:
        """Mean reward of the last two evaluations."""
        return self._estimates[1]

    def steps_to_reach(self, score: float) -> float | None:
        """
        Find when the interquartile mean over seeds first reaches a score.

        :param score: The score.
        :return: Simulator steps; None if it never does.
        """
        grid, values = on_common_grid(self.runs, "simulator_steps")
        return first_reaching(grid, interquartile_means(values), score)

    def seeds_steps_to_reach(self, score: float) -> list[float | None]:
        """
        Find when each seed's own curve first reaches a score.

        :param score: The score.
        :return: Simulator steps of each seed; None for those that never do.
        """
        return [first_reaching(positions(run, "simulator_steps"), rewards(run), score) for run in self.runs]


class EnvResults:
    """
    All variants on one env.

    :param name: Name of the env's files.
    :param env: The env's id.
    :param variants: In the order in which they are shown.
    :param failed: Algorithm, settings and seed of runs that are missing because they failed.
    """

    def __init__(self, name: str, env: str, variants: Sequence[Runs], failed: Sequence[tuple[str, str, int]] = ()) -> None:
        self.name, self.env, self.variants, self.failed = name, env, list(variants), list(failed)
        self.best: dict[str, Runs] = {}
        for variant in self.variants:
            known = self.best.get(variant.algorithm)
            if known is None or variant.means.mean() > known.means.mean():
                self.best[variant.algorithm] = variant

    def settings_of(self, algorithm: str) -> list[Runs]:
        """
        List what an algorithm was tried with.

        :param algorithm: As named on the command line.
        :return: Its variants.
        """
        return [variant for variant in self.variants if variant.algorithm == algorithm]

    def best_training(self, group: str | None = None) -> Runs | None:
        """
        Find the highest mean over training, each algorithm at its best settings.

        :param group: One of the baselines or ``OURS``; by default, all.
        :return: The variant; None if the group has none.
        """
        fitting = [variant for variant in self.best.values() if group in (None, variant.group)]
        return max(fitting, key=lambda variant: variant.training.value, default=None)

    def best_final(self, group: str | None = None) -> Runs | None:
        """
        Find the highest final score, at any settings.

        :param group: One of the baselines or ``OURS``; by default, all.
        :return: The variant; None if the group has none.
        """
        fitting = [variant for variant in self.variants if group in (None, variant.group)]
        return max(fitting, key=lambda variant: variant.final.value, default=None)

    def first_ppo_to_reach(self, score: float) -> float | None:
        """
        Find when PPO first reaches a score, whatever its settings.

        :param score: The score.
        :return: Simulator steps; None if it never does.
        """
        found = [variant.steps_to_reach(score) for variant in self.variants if variant.group == "ppo"]
        return min((steps for steps in found if steps is not None), default=None)

    @cached_property
    def untrained(self) -> float:
        """Mean reward of the policies before training; where none was evaluated, the lowest mean reward of all."""
        rows = [row for variant in self.variants for run in variant.runs for row in run]
        before = [row.mean_reward for row in rows if row.simulator_steps == 0]
        return float(np.mean(before)) if before else min(row.mean_reward for row in rows)
