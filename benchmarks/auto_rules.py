"""
Other rules for "auto" than the package's, one at a time, with SB3's default arguments: above which ρ rollouts become single
(on two envs that begin with groups), how the length of a grouped rollout follows ρ, and its length before ρ is known. Adds the
runs that are missing to auto_rules.csv.

    OMP_NUM_THREADS=1 python benchmarks/auto_rules.py > benchmarks/auto_rules.md
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch as th

import sb3_hybrid_grpo.envs  # noqa: F401 (registers them)
from sb3_hybrid_grpo import auto_grouping
from sb3_hybrid_grpo.auto_grouping import AutoGrouping
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.report import interval
from sb3_hybrid_grpo.benchmark.results import Results, stamp
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, Run, execute
from sb3_hybrid_grpo.benchmark.statistics import Runs
from sb3_hybrid_grpo.benchmark.variants import Variant

BUDGETS = {
    **{"hybrid_grpo/Queue-v0": 131_072, "hybrid_grpo/GustyCartPoleSwingUp-v0": 131_072},
    **{"hybrid_grpo/Inventory-v0": 65_536, "hybrid_grpo/GustyHalfCheetah-v0": 131_072},
}
QUEUE, SWING_UP, INVENTORY, CHEETAH = BUDGETS
SEEDS, EVALUATIONS, EPISODES = 10, 8, 20
DEFAULTS = Variant("hybrid", 1, {"n_steps": 2048, "batch_size": 64, "learning_rate": 0.0003, "gamma": 0.99})
RESULTS = Path(__file__).with_suffix(".csv")


def with_length(ratio_of: Callable[[float | None], float]) -> Any:
    """A patch: the length of a rollout follows a function of ρ, which is None before the first measurement."""
    length = AutoGrouping.length

    def other(auto: AutoGrouping, *arguments: Any) -> int:
        return length(dataclasses.replace(auto, numerator=ratio_of(auto.ratio), denominator=1.0), *arguments)

    return mock.patch.object(AutoGrouping, "length", other)


RULES = {
    **{
        f"single above {threshold}": (mock.patch.object(auto_grouping, "SINGLE_ABOVE", threshold), (QUEUE, SWING_UP))
        for threshold in (0.6, 0.75)
    },
    "as the package": (contextlib.nullcontext(), tuple(BUDGETS)),
    **{
        name: (with_length(ratio_of), (INVENTORY, CHEETAH, QUEUE, SWING_UP))
        for name, ratio_of in {
            "as long as ρ² asks": lambda ratio: 1.0 if ratio is None else ratio**2,
            "as long as √ρ asks": lambda ratio: 1.0 if ratio is None else ratio**0.5,
            "short from the first": lambda ratio: ratio or 0.0,
        }.items()
    },
}


def add_missing(results: Results) -> None:
    for seed, (rule, (patch, envs)) in product(range(SEEDS), RULES.items()):
        for env in envs:
            if (env, rule, seed) not in results.done():
                rows: list[dict[str, object]] = []
                with patch:
                    execute(Run(env, DEFAULTS, seed, BUDGETS[env], EVALUATIONS, EPISODES, True), rows.append)
                results.add(pd.DataFrame(rows).assign(settings=rule))
                print(env, rule, seed, file=sys.stderr)


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
        lines.append([env, settings, len(last), interval(found.training), interval(found.final), shares])
    print('# Other rules for "auto"\n\n`python benchmarks/auto_rules.py`, see there. Interquartile means')
    print("over the seeds with 95 % intervals, of the mean over training and of the final score.\n")
    print(table(("env", "rollouts are", "seeds", "mean over training", "final", "share of steps in grouped rollouts"), lines))
    print(f"\n{plain(stamp())}.")


if __name__ == "__main__":
    main()
