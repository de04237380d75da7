"""The runs of a comparison, each in a process of its own: one that dies takes no other with it."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo.benchmark.variants import Variant
from sb3_hybrid_grpo.commands.evaluation import evaluate, make_env, normalized_like

Row = dict[str, Any]

# One row for each evaluation: the policy alone, deterministic. Wall seconds are those of the training.
COLUMNS: dict[str, type] = {
    **{"env": str, "algorithm": str, "settings": str, "seed": int, "simulator_steps": int, "executed_steps": int},
    **{"wall_seconds": float, "mean_reward": float, "episodes": int},
}
KEY = ("algorithm", "settings", "seed")
# Envs of a run have the seeds SEEDS_APART * seed, + 1, ...; evaluations have others.
SEEDS_APART = 1_000
EVALUATION_SEED = 1_000_000
MOST_EVALUATION_ENVS = 25
_NEW_PROCESSES = multiprocessing.get_context("spawn")


class Run(NamedTuple):
    """
    A training.

    :param env: The env's id.
    :param variant: The algorithm and its settings.
    :param seed: Number of the run.
    :param budget: Simulator steps; the last whole update within them ends the run.
    :param evaluations: How many, besides the one before the training.
    :param episodes: Episodes of an evaluation.
    :param normalize: Whether to normalise observations and rewards.
    """

    env: str
    variant: Variant
    seed: int
    budget: int
    evaluations: int
    episodes: int
    normalize: bool

    def __str__(self) -> str:
        return f"{self.env} {self.variant.algorithm} ({self.variant.settings}) seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the other runs on its env: algorithm, settings, seed."""
        return self.variant.algorithm, self.variant.settings, self.seed

    @property
    def total_timesteps(self) -> int:
        """What ``learn`` is called with: whole updates."""
        return self.budget // self.variant.update_size * self.variant.update_size


class _Evaluation(BaseCallback):
    """Evaluates before the training and then at even distances, between two updates: there the policy does not change."""

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
        # the same episodes at every evaluation of every run, none of which is trained on
        env = make_env(run.env, min(run.episodes, MOST_EVALUATION_ENVS), EVALUATION_SEED)
        reward = float(np.mean(evaluate(self.model, normalized_like(self.model, env), run.episodes)))
        executed = getattr(self.model, "num_executed_steps", steps)  # PPO has no siblings
        seconds = round(before - self._start - self._evaluating_seconds, 2)
        found = (run.env, *run.key, steps, executed, seconds, reward, run.episodes)
        self.report(dict(zip(COLUMNS, found, strict=True)))
        self._done = int(steps * run.evaluations / run.budget) + 1
        self._evaluating_seconds += time.perf_counter() - before


def execute(run: Run, report: Callable[[Row], None]) -> None:
    """Train, and call ``report`` with the row of every evaluation along the way."""
    seed = SEEDS_APART * run.seed
    env: VecEnv = make_env(run.env, run.variant.n_envs, seed)
    if run.normalize:
        env = VecNormalize(env, gamma=run.variant.arguments.get("gamma", 0.99))
    model = run.variant.build(env, seed)
    model.learn(run.total_timesteps, callback=_Evaluation(run, report))
    env.close()


class Pool:
    """Executes so many runs at a time. To be used in a ``with`` statement, whose end stops the processes."""

    def __init__(self, jobs: int) -> None:
        self._threads = ThreadPoolExecutor(jobs)
        self._processes: set[Any] = set()
        self._stopped = False

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for process in list(self._processes):
            process.terminate()
        self._threads.shutdown(cancel_futures=True)

    def execute(self, runs: Sequence[Run], say: Callable[[str], None]) -> Iterator[tuple[Run, "Future[pd.DataFrame]"]]:
        """
        Execute runs; the first ones start first.

        :param runs: The runs.
        :param say: Called in another thread with a line on every evaluation, as it happens.
        :return: Each run that ends, with a future whose result are its rows and whose exception says what went wrong.
        """
        futures = {self._threads.submit(self._execute, run, say): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future

    def _execute(self, run: Run, say: Callable[[str], None]) -> pd.DataFrame:
        receiving, sending = _NEW_PROCESSES.Pipe(duplex=False)
        process = _NEW_PROCESSES.Process(target=_work, args=(run, sending))
        process.start()
        self._processes.add(process)
        if self._stopped:
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
        self._processes.discard(process)
        if not rows or rows[-1]["simulator_steps"] < run.total_timesteps:
            raise RuntimeError(f"exit code {process.exitcode}: {said}")
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _work(run: Run, rows: Connection) -> None:
    """Execute a run in this process, which prints nothing; send its rows, and what went wrong."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    th.set_num_threads(1)  # runs share the cores: networks of this size gain nothing from a second thread
    try:
        execute(run, rows.send)
    except Exception as error:
        rows.send(" ".join(f"{type(error).__name__}: {error}".split())[:500])
        raise
