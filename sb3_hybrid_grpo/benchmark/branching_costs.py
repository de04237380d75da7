"""
What branching costs, env by env: ``python -m sb3_hybrid_grpo.benchmark.branching_costs --output benchmarks/branching``

Each row is what ``python -m sb3_hybrid_grpo check`` prints for the env. Times depend on the machine; read the ratios.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym

from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.branching import BranchingReport, check_branching
from sb3_hybrid_grpo.cli import output_folder, versions, write_text
from sb3_hybrid_grpo.train_arguments import positive_int

ENVS = (
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "Taxi-v4", "FrozenLake-v1", "Blackjack-v1"),
    *("LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"),
    *("InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5"),
    *("ale_py:PongNoFrameskip-v4", "ale_py:BreakoutNoFrameskip-v4"),
    *("hybrid_grpo/Inventory-v0", "hybrid_grpo/Queue-v0", "hybrid_grpo/GustyHopper-v0"),
)
HORIZONS = (1, 64)
HEADER = (
    "| env | siblings that live on are | step (µs) | save (µs) | restore (µs) | K = 1 | K = 64 |\n"
    "|---|---|---|---|---|---|---|\n"
)


def row(env_id: str, n_samples: int) -> str:
    """
    Measure one env.

    :param env_id: The env's id.
    :param n_samples: N, the members of a group.
    :return: Its row of the table.
    """
    try:
        env = gym.make(env_id)
    except (gym.error.Error, ImportError) as error:
        return f"| {env_id} | not measured: {type(error).__name__} | | | | | |\n"
    one, many = (check_branching(env, n_samples, horizon) for horizon in HORIZONS)
    env.close()
    if not many.is_exact:
        return f"| {env_id} | refused | | | | | |\n"
    times = f"{many.step:.0f} | {many.save:.0f} | {many.restore:.0f}"
    return f"| {env_id} | {siblings(many)} | {times} | {one.slow_down:.2f} | {many.slow_down:.2f} |\n"


def siblings(report: BranchingReport) -> str:
    """
    Name what siblings are.

    :param report: Of an env that can be branched.
    :return: A word.
    """
    return {"in place": "snapshots", "copied": "copies", "forked": "forks"}[report.engine]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Measure, and write the table.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_hybrid_grpo.benchmark.branching_costs", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the table, branching.md")
    parser.add_argument("--envs", nargs="+", default=ENVS, metavar="ENV_ID", help="which envs")
    parser.add_argument("--n-samples", type=positive_int, default=4, help="N, the members of a group")
    options = parser.parse_args(arguments)
    rows = []
    for env_id in options.envs:
        rows.append(row(env_id, options.n_samples))
        print(rows[-1], end="", flush=True)
    used = ", ".join([*(f"{name} {version}" for name, version in versions().items()), machine()])
    text = (
        "# What branching costs\n\n"
        f"{options.n_samples} members. The last two columns: a step of the whole group with all that branching costs, over "
        f"{options.n_samples} plain steps of the env; made by `python -m sb3_hybrid_grpo.benchmark.branching_costs`.\n\n"
        f"{HEADER}{''.join(rows)}\n{used}\n"
    )
    write_text(output_folder(options.output) / "branching.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
