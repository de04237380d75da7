"""
Above which ρ should rollouts become single? Trains HybridGRPO with SB3's default arguments and three such thresholds, on envs
of this package that begin with groups, and on CartPole, which does not. Adds the runs that are missing to thresholds.csv.

    OMP_NUM_THREADS=1 python benchmarks/thresholds.py > benchmarks/thresholds.md
"""

import sys
from pathlib import Path

import pandas as pd
import torch as th

import sb3_hybrid_grpo.envs  # noqa: F401 (registers them)
from sb3_hybrid_grpo import auto_grouping
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.report import interval
from sb3_hybrid_grpo.benchmark.results import Results, stamp
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, Run, execute
from sb3_hybrid_grpo.benchmark.statistics import Runs
from sb3_hybrid_grpo.benchmark.variants import Variant

THRESHOLDS = (0.6, 0.75, 0.9)
BUDGETS = {"hybrid_grpo/Queue-v0": 131_072, "hybrid_grpo/GustyCartPoleSwingUp-v0": 131_072, "CartPole-v1": 65_536}
SEEDS, EVALUATIONS, EPISODES = 5, 8, 20
DEFAULTS = Variant("hybrid", 1, {"n_steps": 2048, "batch_size": 64, "learning_rate": 0.0003, "gamma": 0.99})
RESULTS = Path(__file__).with_suffix(".csv")


def add_missing(results: Results) -> None:
    for threshold in THRESHOLDS:
        auto_grouping.SINGLE_ABOVE = threshold
        for env, budget in BUDGETS.items():
            for seed in range(SEEDS):
                if (env, f"single above {threshold}", seed) in results.done():
                    continue
                rows: list[dict[str, object]] = []
                execute(Run(env, DEFAULTS, seed, budget, EVALUATIONS, EPISODES, True), rows.append)
                results.add(pd.DataFrame(rows).assign(settings=f"single above {threshold}"))
                print(env, threshold, seed, file=sys.stderr)


def main() -> None:
    th.set_num_threads(1)
    results = Results(RESULTS, COLUMNS, ("env", "settings", "seed"))
    add_missing(results)
    lines = []
    for (env, settings), rows in results.frame.groupby(["env", "settings"]):
        found, last = Runs("hybrid", settings, rows), rows.groupby("seed").last()
        # of N = 4 members one is executed: the siblings' share of all steps is 3/4 while rollouts are grouped
        grouped = (1 - last.executed_steps / last.simulator_steps) * 4 / 3
        shares = ", ".join(f"{share:.0%}" for share in grouped)
        lines.append([env, settings, interval(found.training), interval(found.final), shares])
    print("# The ρ above which rollouts become single\n\n`python benchmarks/thresholds.py`, see there. Interquartile means")
    print(f"over {SEEDS} seeds with 95 % intervals, of the mean over training and of the final score.\n")
    print(table(("env", "rollouts are", "mean over training", "final", "share of steps in grouped rollouts"), lines))
    print(f"\n{plain(stamp())}.")


if __name__ == "__main__":
    main()
