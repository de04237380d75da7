"""
Does a long training leak? Trains on CartPole-v1 in 8 processes, saves checkpoints on the way, and writes down memory, open
files and processes: a CSV file, and a page with its first and last lines. Needs Linux, whose /proc it reads.

    python benchmarks/long_run.py > benchmarks/long_run.md  # writes benchmarks/long_run.csv too
"""

import argparse
import csv
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.cli import versions

N_ENVS = 8
COLUMNS = [
    "branch_horizon",
    "executed_steps",
    "seconds",
    "rss_mib",
    "children_rss_mib",
    "open_files",
    "children_open_files",
    "children",
    "mean_reward",
]


def children_of(process: int) -> list[int]:
    """
    :param process: Its id
    :return: The ids of its children, threads' ones included, and of theirs
    """
    found = [int(child) for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()]
    return [*found, *(grandchild for child in found for grandchild in children_of(child))]


def rss_mib(process: int) -> float:
    """
    :param process: Its id
    :return: Its resident memory
    """
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(process: int) -> int:
    """
    :param process: Its id
    :return: The number of its file descriptors
    """
    return len(os.listdir(f"/proc/{process}/fd"))


class Watch(BaseCallback):
    """
    Writes down what the processes hold.

    :param every: Executed steps between two lines
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.rows: list[list[object]] = []
        self.start = time.monotonic()

    def measure(self) -> None:
        """Write a line."""
        children = children_of(os.getpid())
        rewards = [info["r"] for info in self.model.ep_info_buffer or []]
        self.rows.append(
            [
                self.model.branch_horizon,
                self.model.num_timesteps,
                round(time.monotonic() - self.start),
                round(rss_mib(os.getpid()), 1),
                round(sum(map(rss_mib, children)), 1),
                open_files(os.getpid()),
                sum(map(open_files, children)),
                len(children),
                round(float(np.mean(rewards)), 1) if rewards else "",
            ]
        )

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every < N_ENVS:
            self.measure()
        return True


def train(branch_horizon: str | int, steps: int) -> list[list[object]]:
    """
    Train once.

    :param branch_horizon: When siblings fork
    :param steps: Executed steps
    :return: Lines of the CSV file; the last one after the env was closed
    """
    env = make_vec_env("CartPole-v1", N_ENVS, seed=0, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    shape = {"n_steps": 128, "batch_size": 256, "branch_horizon": branch_horizon, "seed": 0}
    model = HybridGRPO("MlpPolicy", VecNormalize(env), device="cpu", **shape)
    watch = Watch(max(steps // 25, N_ENVS))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointCallback(max(steps // 50 // N_ENVS, 1), folder, save_vecnormalize=True)
        model.learn(steps, callback=[checkpoints, watch])
    env.close()
    watch.measure()
    return watch.rows


def page(rows: list[list[object]], steps: int) -> str:
    """
    :param rows: Lines of the CSV file
    :param steps: Executed steps of a training
    :return: Markdown
    """
    lines = [
        "# A long training",
        "",
        f"{steps:,} executed steps ({4 * steps:,} simulator steps) of CartPole-v1 in {N_ENVS} processes, with `VecNormalize`",
        "and 50 checkpoints, once with free siblings (`auto`, in an env without noise) and once with forks every 64 steps.",
        "MiB of resident memory (what processes share is counted in each), file descriptors, processes. The last line of",
        "each is after `env.close()`: what is left are the two helpers of Python's multiprocessing, and pipes that SB3 leaves",
        "to the garbage collection. Every line: [`long_run.csv`](long_run.csv); the command: [`long_run.py`](long_run.py).",
        "",
        "| " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]
    for horizon in dict.fromkeys(row[0] for row in rows):
        of_one = [row for row in rows if row[0] == horizon]
        shown = [of_one[0], *of_one[4:-1:5], *of_one[-2:]]
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in {tuple(row): row for row in shown}]
    return "\n".join([*lines, "", ", ".join(f"{name} {version}" for name, version in versions().items()), ""])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500_000, help="executed steps of each training")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"), help="where to write every line")
    arguments = parser.parse_args()
    rows = []
    for horizon in ("auto", 64):
        rows += train(horizon, arguments.steps)
        gc.collect()  # SB3 leaves the pipes of a closed VecEnv to the garbage collection
    with arguments.csv.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    sys.stdout.write(page(rows, arguments.steps))


if __name__ == "__main__":
    main()
