"""Performance profiles of a comparison: all its envs in one figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_hybrid_grpo.benchmark.statistics import RESAMPLES, Array, EnvResults, fixed_seed

# Profiles end here, so that one env on which PPO learned little does not squeeze the others.
HIGHEST_THRESHOLD = 2.0


@dataclass(frozen=True)
class Profiles:
    """
    How often each algorithm gets how far, over envs.

    :param thresholds: Scores, where 0 is the untrained policy and 1 the best PPO's final score.
    :param shares: By algorithm, the share of runs above each threshold.
    :param bounds: By algorithm, the shares' lower and upper bounds; empty for a single seed.
    :param envs: The envs it is over.
    :param seeds: Runs of each algorithm on each env.
    """

    thresholds: Array
    shares: dict[str, Array]
    bounds: dict[str, tuple[Array, Array]]
    envs: list[str]
    seeds: int


def performance_profiles(comparisons: Sequence[EnvResults]) -> Profiles | None:
    """
    Compare algorithms over envs, each at its best settings on each.

    :param comparisons: The envs.
    :return: The profiles, over the envs on which PPO learned anything, of the algorithms with runs on all of those; None if
        PPO was not run on every env, or fewer than two envs or no algorithm are left.
    """
    from rliable.library import create_performance_profile

    scales = {}
    for results in comparisons:
        ppo = results.best_final("ppo")
        if ppo is None:
            return None
        if ppo.final.value > results.untrained:
            scales[results.name] = ppo.final.value - results.untrained
    usable = [results for results in comparisons if results.name in scales]
    algorithms = [name for name in usable[0].best if all(name in results.best for results in usable)] if usable else []
    if len(usable) < 2 or not algorithms:
        return None
    seeds = min(len(results.best[name].runs) for results in usable for name in algorithms)
    scores = {
        name: np.column_stack([(r.best[name].finals[:seeds] - r.untrained) / scales[r.name] for r in usable])
        for name in algorithms
    }
    highest = max(float(values.max()) for values in scores.values())
    thresholds = np.linspace(0.0, min(max(highest, 1.0), HIGHEST_THRESHOLD), 301)
    with fixed_seed():
        shares, found = create_performance_profile(
            scores,
            thresholds,
            custom_profile_func=lambda values, levels: (values[..., None] > levels).mean(axis=(0, 1)),
            reps=RESAMPLES,
        )
    bounds = {name: (low, high) for name, (low, high) in found.items()} if seeds > 1 else {}
    return Profiles(thresholds, shares, bounds, [results.env for results in usable], seeds)
