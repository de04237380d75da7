"""
The swap with the arguments that RL Zoo has for PPO on HalfCheetah and Hopper: both algorithms on HalfCheetah in wind, and on
both envs without wind, a part of the Zoo's million steps. Adds the runs that are missing to mujoco_zoo.csv.

    pip install -c constraints.txt -e ".[compare,mujoco,zoo]"
    OMP_NUM_THREADS=1 python benchmarks/mujoco_zoo.py > benchmarks/mujoco_zoo.md
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import rl_zoo3
import torch as th
import yaml
from torch import nn

import sb3_hybrid_grpo.envs  # noqa: F401 (registers them)
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.report import interval
from sb3_hybrid_grpo.benchmark.results import Results, stamp
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, Run, execute
from sb3_hybrid_grpo.benchmark.statistics import Runs
from sb3_hybrid_grpo.benchmark.variants import Variant

# the Zoo's entry and the number of seeds
TASKS = {
    "hybrid_grpo/GustyHalfCheetah-v0": ("HalfCheetah-v4", 10),
    "HalfCheetah-v5": ("HalfCheetah-v4", 5),
    "Hopper-v5": ("Hopper-v4", 5),
}
BUDGET, EVALUATIONS, EPISODES = 131_072, 8, 10
RESULTS = Path(__file__).with_suffix(".csv")


def arguments(name: str) -> dict[str, Any]:
    """An entry of the Zoo. Its strings are Python, as the Zoo itself reads them."""
    entry = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml").read_text())[name]
    for other in ("n_timesteps", "normalize", "policy", "n_envs"):
        del entry[other]
    entry["policy_kwargs"] = eval(entry["policy_kwargs"], {"nn": nn})
    return dict(entry)


def main() -> None:
    th.set_num_threads(1)
    results = Results(RESULTS, COLUMNS, ("env", "algorithm", "settings", "seed"))
    for env, (entry, seeds) in TASKS.items():
        variants = {algorithm: Variant(algorithm, 1, arguments(entry)) for algorithm in ("ppo", "hybrid")}
        for seed, algorithm in product(range(seeds), variants):
            if (env, algorithm, entry, seed) not in results.done():
                rows: list[dict[str, object]] = []
                execute(Run(env, variants[algorithm], seed, BUDGET, EVALUATIONS, EPISODES, True), rows.append)
                results.add(pd.DataFrame(rows).assign(settings=entry))
                print(env, algorithm, seed, file=sys.stderr)
    lines = []
    for (env, algorithm), runs in results.frame.groupby(["env", "algorithm"], sort=False):
        found, last = Runs(algorithm, TASKS[env][0], runs), runs.groupby("seed").last()
        finals = ", ".join(f"{score:,.0f}" for score in last.mean_reward)
        seconds = f"{last.wall_seconds.mean():.0f}"
        lines.append([env, algorithm, interval(found.training), interval(found.final), finals, seconds])
    print(f"# The swap with RL Zoo's arguments for MuJoCo\n\n`python benchmarks/mujoco_zoo.py`, see there. {BUDGET:,}")
    print("simulator steps, siblings included. Interquartile means over the seeds with 95 % intervals, of the mean over")
    print("training and of the final score; deterministic policy, other seeds.\n")
    print(table(("env", "algorithm", "mean over training", "final", "each seed", "seconds"), lines))
    print(f"\n{plain(stamp())}")


if __name__ == "__main__":
    main()
