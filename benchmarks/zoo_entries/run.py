"""
The entries of RL Baselines3 Zoo for PPO, unchanged, given to PPO and to HybridGRPO: evaluations.csv, runs.csv and a table.

``python benchmarks/zoo_entries/run.py``
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3

from sb3_hybrid_grpo import __version__

FOLDER = Path(__file__).parent
PPO_ENTRIES = Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml"
ENVS = ("CartPole-v1", "Pendulum-v1")
SEEDS = (0, 1, 2)
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "ppo": ("--algo", "ppo"),
    "hybrid_grpo": ("--algo", "hybrid_grpo"),
    "hybrid_grpo, K = 64": ("--algo", "hybrid_grpo", "--hyperparams", "branch_horizon:64"),
}


def train(env: str, seed: int, name: str, logs: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Train one agent.

    :param env: Id of the env
    :param seed: The seed
    :param name: Which of ``ALGORITHMS``
    :param logs: An empty folder
    :return: Row of runs.csv; rows of evaluations.csv
    """
    fixed = ("--conf-file", PPO_ENTRIES, "--eval-freq", 10_000, "--eval-episodes", 10, "--num-threads", 1, "--device", "cpu")
    options = (*ALGORITHMS[name], "--env", env, "--seed", seed, *fixed, "--log-folder", logs)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "sb3_hybrid_grpo.zoo", "train", *map(str, options)], check=True)
    seconds = time.monotonic() - began
    run = next(logs.glob(f"*/{env}_1"))
    with zipfile.ZipFile(run / f"{env}.zip") as model:
        data = json.loads(model.read("data"))
    which = {"env": env, "algorithm": name, "seed": seed}
    saved = np.load(run / "evaluations.npz")
    evaluations = [
        {**which, "num_timesteps": int(step), "mean_reward": round(float(rewards.mean()), 2)}
        for step, rewards in zip(saved["timesteps"], saved["results"], strict=True)
    ]
    counted = {key: data.get(key, data["num_timesteps"]) for key in ("num_timesteps", "num_executed_steps")}
    return {**which, **counted, "updates": data["_n_updates"], "seconds": round(seconds, 1)}, evaluations


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file beside this script."""
    with open(FOLDER / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(runs: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, for README.md."""

    def which(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["env"], row["algorithm"], row["seed"]

    lines = [
        "| env | algorithm | at the end | mean over training | simulator steps | executed steps | wall time |",
        "|---|---|---|---|---|---|---|",
    ]
    for env in ENVS:
        for name in ALGORITHMS:
            of = [one for one in runs if (one["env"], one["algorithm"]) == (env, name)]
            rewards = np.array([[one["mean_reward"] for one in evaluations if which(one) == which(run)] for run in of])
            scores = [f"{seeds.mean():.1f} ± {seeds.std(ddof=1):.1f}" for seeds in (rewards[:, -1], rewards.mean(axis=1))]
            steps = [f"{np.mean([one[key] for one in of]):,.0f}" for key in ("num_timesteps", "num_executed_steps")]
            seconds = np.mean([one["seconds"] for one in of])
            lines.append(f"| {' | '.join([env, name, *scores, *steps])} | {seconds:.0f} s |")
    return "\n".join(lines)


def main() -> None:
    """Train all, write the files, print the table."""
    runs: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for env in ENVS:
        for seed in SEEDS:
            for name in ALGORITHMS:
                with tempfile.TemporaryDirectory() as logs:
                    run, evaluated = train(env, seed, name, Path(logs))
                runs.append(run)
                evaluations += evaluated
    write("runs.csv", runs)
    write("evaluations.csv", evaluations)
    packages = ("stable_baselines3", "rl_zoo3", "gymnasium", "torch", "numpy")
    used = {"sb3_hybrid_grpo": __version__, **{name: version(name) for name in packages}}
    print(table(runs, evaluations), "\n", ", ".join(f"{name} {number}" for name, number in used.items()), sep="\n")


if __name__ == "__main__":
    main()
