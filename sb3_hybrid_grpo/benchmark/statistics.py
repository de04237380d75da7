"""The numbers of a comparison: learning curves on a common grid, interquartile means with intervals, the best settings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]
Axis = Literal["simulator_steps", "executed_steps", "wall_seconds"]

BASELINES, OURS = ("ppo", "trpo"), "ours"
GRID_POINTS, RESAMPLES, FEWEST_SEEDS = 100, 2_000, 3
HIGHEST_THRESHOLD = 2.0  # profiles end here: an env on which PPO learned little would stretch the axis


class Estimate(NamedTuple):
    """The interquartile mean over seeds, and its 95 % bootstrap interval: None for one seed or two."""

    value: float
    interval: tuple[float, float] | None

    def overlaps(self, other: "Estimate") -> bool | None:
        """Say whether the intervals overlap; None if one of them is missing."""
        if self.interval is None or other.interval is None:
            return None
        return self.interval[0] <= other.interval[1] and other.interval[0] <= self.interval[1]


def interquartile_means(scores: Array) -> Array:
    """Average (seeds, columns) to (columns,) as rliable's ``aggregate_iqm`` does, all columns at once."""
    from scipy.stats import trim_mean

    means: Array = trim_mean(scores, 0.25, axis=0)
    return means


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Make rliable's resampling repeatable: seed numpy's global generator, and restore its state afterwards."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def bootstrap(scores: Array) -> tuple[Array, Array]:
    """Lower and upper bounds, 95 %, of the interquartile mean of each column of scores of shape (seeds, columns)."""
    from rliable.library import get_interval_estimates

    with fixed_seed():
        _, found = get_interval_estimates({"scores": scores}, interquartile_means, reps=RESAMPLES)
    low, high = found["scores"]
    return low, high


def first_reaching(steps: Array, values: Array, score: float) -> float | None:
    """The first of the steps at which a curve is at least as high as a score; None if it never is."""
    reached = np.flatnonzero(values >= score)
    return float(steps[reached[0]]) if reached.size else None


class Runs:
    """An algorithm at some settings. Rows are sorted by ``simulator_steps``; each seed has one after training began."""

    def __init__(self, algorithm: str, settings: str, rows: pd.DataFrame) -> None:
        self.algorithm, self.settings = algorithm, settings
        self.group = family if (family := algorithm.partition(",")[0]) in BASELINES else OURS
        self.runs = [run for _, run in rows.groupby("seed")]
        trained = [run.mean_reward[run.simulator_steps > 0] for run in self.runs]
        self.means = np.array([rewards.mean() for rewards in trained])
        self.finals = np.array([rewards[-2:].mean() for rewards in trained])
        self.wall_seconds = float(np.median([run.wall_seconds.iloc[-1] for run in self.runs]))
        middle_and_end = [run.gradient_variance_ratio.iloc[[len(run) // 2, -1]].to_list() for run in self.runs]
        self.ratios = [float(one) for one in pd.DataFrame(middle_and_end).median()]
        self.last_steps = [int(run.simulator_steps.iloc[-1]) for run in self.runs]

    @cached_property
    def _estimates(self) -> list[Estimate]:
        scores = np.column_stack([self.means, self.finals])
        values = interquartile_means(scores).tolist()
        if len(scores) < FEWEST_SEEDS:
            return [Estimate(value, None) for value in values]
        low, high = (bounds.tolist() for bounds in bootstrap(scores))
        return [Estimate(value, interval) for value, interval in zip(values, zip(low, high, strict=True), strict=True)]

    @property
    def training(self) -> Estimate:
        """Mean reward of all evaluations after step 0."""
        return self._estimates[0]

    @property
    def final(self) -> Estimate:
        """Mean reward of the last two evaluations."""
        return self._estimates[1]

    def on_common_grid(self, axis: Axis = "simulator_steps") -> tuple[Array, Array]:
        """
        The positions of all evaluations on an axis, within the range that all runs cover (100 even positions if there are
        more), and the rewards there, interpolated linearly, shape (seeds, grid).
        """
        known = [run[axis].to_numpy(np.float64) for run in self.runs]
        first, last = max(steps[0] for steps in known), min(steps[-1] for steps in known)
        grid = np.unique(np.concatenate(known))
        grid = grid[(grid >= first) & (grid <= last)]
        if len(grid) > GRID_POINTS:
            grid = np.linspace(first, last, GRID_POINTS)
        return grid, np.array([np.interp(grid, x, run.mean_reward) for x, run in zip(known, self.runs, strict=True)])

    def steps_to_reach(self, score: float) -> float | None:
        """Simulator steps after which the interquartile mean over seeds first reaches a score; None if it never does."""
        grid, values = self.on_common_grid()
        return first_reaching(grid, interquartile_means(values), score)

    def seeds_steps_to_reach(self, score: float) -> list[float | None]:
        """For each seed's own curve, the steps after which it first reaches a score."""
        return [first_reaching(run.simulator_steps.to_numpy(), run.mean_reward.to_numpy(), score) for run in self.runs]


class EnvResults:
    """All variants on one env. ``name`` is the stem of the env's files, ``failed`` has notes on missing runs."""

    def __init__(self, name: str, env: str, variants: Sequence[Runs], failed: Sequence[Any] = ()) -> None:
        self.name, self.env, self.variants, self.failed = name, env, list(variants), list(failed)
        names = dict.fromkeys(variant.algorithm for variant in self.variants)
        self.best = {name: max(self.settings_of(name), key=lambda variant: float(variant.means.mean())) for name in names}
        """Each algorithm at its best settings, with the highest plain mean over training and seeds."""
        rows = pd.concat([run for variant in self.variants for run in variant.runs])
        before = rows.mean_reward[rows.simulator_steps == 0]
        self.untrained = float(before.mean() if len(before) else rows.mean_reward.min())
        """Mean reward of the policies before training; if none was evaluated, the lowest mean reward of all."""

    def settings_of(self, algorithm: str) -> list[Runs]:
        """The variants of an algorithm."""
        return [variant for variant in self.variants if variant.algorithm == algorithm]

    def best_training(self, group: str) -> Runs | None:
        """The highest mean over training of a group, each algorithm at its best settings; None if the group has no runs."""
        fitting = [variant for variant in self.best.values() if variant.group == group]
        return max(fitting, key=lambda variant: variant.training.value, default=None)

    def best_final(self, group: str) -> Runs | None:
        """The highest final score of a group, at any settings; None if the group has no runs."""
        fitting = [variant for variant in self.variants if variant.group == group]
        return max(fitting, key=lambda variant: variant.final.value, default=None)

    def first_ppo_to_reach(self, score: float) -> float | None:
        """Simulator steps after which PPO, at any settings, first reaches a score; None if it never does."""
        found = [variant.steps_to_reach(score) for variant in self.variants if variant.group == "ppo"]
        return min((steps for steps in found if steps is not None), default=None)


class Profiles(NamedTuple):
    """For each algorithm, the share of runs above each threshold, and its bounds (none for a single seed)."""

    thresholds: Array  # 0 is the untrained policy, 1 the best PPO's final score
    shares: dict[str, Array]
    bounds: dict[str, tuple[Array, Array]]
    envs: list[str]
    seeds: int  # of each algorithm on each env


def performance_profiles(comparisons: Sequence[EnvResults]) -> Profiles | None:
    """
    Compare algorithms over all envs on which PPO learned something, each at its best settings on each env. Algorithms without
    runs on one of these envs are left out. None if PPO was not run on every env, or fewer than two envs are left.
    """
    from rliable.library import create_performance_profile

    def shares_above(scores: Array, levels: Array) -> Array:  # as rliable's own, for all levels at once
        return np.asarray((scores[..., None] > levels).mean(axis=(0, 1)))

    targets = [(one, target.final.value - one.untrained) for one in comparisons if (target := one.best_final("ppo"))]
    usable = [(one, scale) for one, scale in targets if scale > 0]
    if len(targets) < len(comparisons) or len(usable) < 2:
        return None
    algorithms = [name for name in usable[0][0].best if all(name in one.best for one, _ in usable)]
    seeds = min(len(one.best[name].runs) for one, _ in usable for name in algorithms)
    scores = {
        name: np.column_stack([(one.best[name].finals[:seeds] - one.untrained) / scale for one, scale in usable])
        for name in algorithms
    }
    highest = max(float(values.max()) for values in scores.values())
    thresholds = np.linspace(0.0, min(max(highest, 1.0), HIGHEST_THRESHOLD), 301)
    with fixed_seed():
        shares, bounds = create_performance_profile(scores, thresholds, custom_profile_func=shares_above, reps=RESAMPLES)
    return Profiles(thresholds, shares, bounds if seeds > 1 else {}, [one.env for one, _ in usable], seeds)
