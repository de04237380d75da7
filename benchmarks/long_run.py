"""
Does a long training leak? Trains on CartPole-v1 in 8 processes, saves checkpoints on the way, and writes down memory, open
files and processes: a CSV file, and a page with its first and last lines. Needs Linux, whose /proc it reads.

    python benchmarks/long_run.py                # writes benchmarks/long_run.csv, .json and .md
    python benchmarks/long_run.py --report-only  # writes the page of the table that is there
"""

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.results import Results, read_notes, stamp, write_notes
from sb3_hybrid_grpo.commands.cli import write_text

N_ENVS = 8
COLUMNS: dict[str, type] = {
    **{"branch_horizon": str, "executed_steps": int, "seconds": int, "rss_mib": float, "children_rss_mib": float},
    **{"open_files": int, "children_open_files": int, "children": int, "mean_reward": float},
}


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

    :param every: Simulator steps between two lines
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.rows: list[tuple[Any, ...]] = []
        self.start = time.monotonic()

    def measure(self) -> None:
        """Write a line."""
        model: Any = self.model
        children = children_of(os.getpid())
        rewards = [info["r"] for info in model.ep_info_buffer or []]
        self.rows.append(
            (
                *(str(model.branch_horizon), model.num_executed_steps, round(time.monotonic() - self.start)),
                *(round(rss_mib(os.getpid()), 1), round(sum(map(rss_mib, children)), 1)),
                *(open_files(os.getpid()), sum(map(open_files, children)), len(children)),
                round(float(np.mean(rewards)), 1) if rewards else np.nan,
            )
        )

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every < N_ENVS:
            self.measure()
        return True


def train(branch_horizon: str | int, steps: int) -> pd.DataFrame:
    """
    Train once.

    :param branch_horizon: When siblings fork
    :param steps: Simulator steps
    :return: Lines of the CSV file; the last one after the env was closed
    """
    env = make_vec_env("CartPole-v1", N_ENVS, seed=0, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    shape: dict[str, Any] = {"n_steps": 512, "batch_size": 256, "branch_horizon": branch_horizon, "seed": 0}
    model = HybridGRPO("MlpPolicy", VecNormalize(env), device="cpu", **shape)
    watch = Watch(max(steps // 25, N_ENVS))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointCallback(max(steps // 50 // N_ENVS, 1), folder, save_vecnormalize=True)
        model.learn(steps, callback=[checkpoints, watch])
    env.close()
    watch.measure()
    return pd.DataFrame(watch.rows, columns=list(COLUMNS))


def page(results: Results) -> str:
    """Write the page of a table."""
    shown = []
    for _, lines in results.frame.groupby("branch_horizon", sort=False):
        cells = [list(map(str, line)) for line in lines.itertuples(index=False, name=None)]
        few = [cells[0], *cells[4:-1:5], *cells[-2:]]
        shown += [line for number, line in enumerate(few) if line not in few[:number]]
    return "\n\n".join(
        [
            "# A long training",
            f"CartPole-v1 in {N_ENVS} processes, with `VecNormalize` and 50 checkpoints, with two branch horizons (`auto`\n"
            "has no forks in an env without noise). MiB of resident memory (what processes share is counted in each), file\n"
            "descriptors, processes. The last line of each is after `env.close()`: what is left are the two helpers of\n"
            "Python's multiprocessing, and pipes that SB3 leaves to the garbage collection. Every line:\n"
            "[`long_run.csv`](long_run.csv); the command: [`long_run.py`](long_run.py).",
            table([name.replace("_", " ") for name in COLUMNS], shown),
            plain(read_notes(results.path.with_suffix(".json"))["made_with"]) + "\n",
        ]
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000_000, help="simulator steps of each training")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"), help="where to write every line")
    parser.add_argument("--report-only", action="store_true", help="write the page of the table that is there")
    arguments = parser.parse_args()
    results = Results(arguments.csv, COLUMNS, ["branch_horizon"])
    if not arguments.report_only:
        write_notes(arguments.csv.with_suffix(".json"), {"made_with": [stamp()]})
        for horizon in ("auto", 64):
            results.add(train(horizon, arguments.steps))
            gc.collect()  # SB3 leaves the pipes of a closed VecEnv to the garbage collection
    write_text(arguments.csv.with_suffix(".md"), page(results))


if __name__ == "__main__":
    main()
