"""The runs of a comparison, each in its own process, so that the death of one does not end the others."""

import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo.benchmark.variants import Variant
from sb3_hybrid_grpo.commands.evaluation import make_env, normalized_like

# one deterministic evaluation; wall_seconds is the training's time; gradient_variance_ratio is NaN if it was not measured
Row = dict[str, Any]
Ended = tuple["Run", "Future[pd.DataFrame]"]

COLUMNS: dict[str, type] = {
    **{"env": str, "algorithm": str, "settings": str, "seed": int, "simulator_steps": int, "executed_steps": int},
    **{"wall_seconds": float, "mean_reward": float, "episodes": int, "gradient_variance_ratio": float},
}
KEY = ("algorithm", "settings", "seed")
SEEDS_APART, EVALUATION_SEED = 1_000, 1_000_000  # envs of a run have the seeds SEEDS_APART * seed, + 1, ...
MOST_EVALUATION_ENVS = 25
_NEW_PROCESSES = multiprocessing.get_context("spawn")


class Run(NamedTuple):
    """A training."""

    env: str
    variant: Variant
    seed: int
    budget: int  # simulator steps; the last whole update within them ends the run
    evaluations: int  # besides the one before the training
    episodes: int  # of an evaluation
    normalize: bool  # observations and rewards

    def __str__(self) -> str:
        return f"{self.env} {self.variant.algorithm} ({self.variant.settings}) seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies a run on its env: algorithm, settings, seed."""
        return self.variant.algorithm, self.variant.settings, self.seed

    @property
    def total_timesteps(self) -> int:
        """The ``total_timesteps`` for ``learn``: whole updates."""
        return self.budget // self.variant.update_size * self.variant.update_size


class _Evaluation(BaseCallback):
    """Evaluates before the training, and then at regular intervals, between two updates."""

    def __init__(self, run: Run, report: Callable[[Row], None]) -> None:
        super().__init__()
        self.run_, self.report = run, report
        self._done, self._evaluating_seconds, self._start = 0, 0.0, time.perf_counter()

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._done * self.run_.budget / self.run_.evaluations:
            self._on_training_end()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        before, run, steps = time.perf_counter(), self.run_, self.model.num_timesteps
        # the same episodes in all evaluations of all runs; no training sees them
        env = make_env(run.env, min(run.episodes, MOST_EVALUATION_ENVS), EVALUATION_SEED)
        reward, _ = evaluate_policy(self.model, normalized_like(self.model, env), run.episodes)
        env.close()
        executed = getattr(self.model, "num_executed_steps", steps)  # PPO has no siblings
        seconds = round(before - self._start - self._evaluating_seconds, 2)
        ratio = getattr(getattr(self.model, "auto_grouping", None), "ratio", None)
        found = (run.env, *run.key, steps, executed, seconds, reward, run.episodes, np.nan if ratio is None else ratio)
        self.report(dict(zip(COLUMNS, found, strict=True)))
        self._done = int(steps * run.evaluations / run.budget) + 1
        self._evaluating_seconds += time.perf_counter() - before


def execute(run: Run, report: Callable[[Row], None]) -> None:
    """Train, and call ``report`` with the row of every evaluation."""
    seed = SEEDS_APART * run.seed
    env: VecEnv = make_env(run.env, run.variant.n_envs, seed)
    if run.normalize:
        env = VecNormalize(env, gamma=run.variant.arguments.get("gamma", 0.99))
    model = run.variant.build(env, seed)
    model.learn(run.total_timesteps, callback=_Evaluation(run, report))
    env.close()


def side_by_side(runs: Sequence[Run], jobs: int, say: Callable[[str], None]) -> Generator[Ended, None, None]:
    """
    Execute ``jobs`` runs at a time, and report each evaluation by ``say``, from another thread. Yields each ended run with a
    future: its result are the run's rows, its exception is the run's error. Closing the generator ends the other runs.
    """
    threads, processes, stopped = ThreadPoolExecutor(jobs), set[Any](), Event()
    futures = {threads.submit(_watch, run, say, processes, stopped): run for run in runs}
    try:
        for future in as_completed(futures):
            yield futures[future], future
    finally:
        stopped.set()
        for process in list(processes):
            process.terminate()
        threads.shutdown(cancel_futures=True)


def _watch(run: Run, say: Callable[[str], None], processes: set[Any], stopped: Event) -> pd.DataFrame:
    receiving, sending = _NEW_PROCESSES.Pipe(duplex=False)
    process = _NEW_PROCESSES.Process(target=_work, args=(run, sending))
    process.start()
    processes.add(process)
    if stopped.is_set():
        process.terminate()
    sending.close()
    rows, said = [], "it said nothing"
    with suppress(EOFError):  # the process has ended
        while True:
            message = receiving.recv()
            if isinstance(message, str):
                said = message
            else:
                rows.append(message)
                say(f"{run}: {message['mean_reward']:.1f}")
    process.join()
    processes.discard(process)
    if not rows or rows[-1]["simulator_steps"] < run.total_timesteps:
        raise RuntimeError(f"exit code {process.exitcode}: {said}")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _work(run: Run, rows: Connection) -> None:
    """Execute a run in this process without any output; send its rows, or its error."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    th.set_num_threads(1)  # runs share the cores: networks of this size gain nothing from a second thread
    try:
        execute(run, rows.send)
    except Exception as error:
        rows.send(" ".join(f"{type(error).__name__}: {error}".split())[:500])
        raise
