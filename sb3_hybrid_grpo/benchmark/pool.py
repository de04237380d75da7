"""Runs side by side, each in a process of its own: one that dies takes no other with it."""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from tempfile import TemporaryFile
from threading import Lock
from typing import NamedTuple

from sb3_hybrid_grpo.benchmark.results import Row
from sb3_hybrid_grpo.benchmark.worker import Run

_WORKER = (sys.executable, "-m", "sb3_hybrid_grpo.benchmark.worker")
# Runs share the cores: networks of this size gain nothing from a second thread.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Evaluated(NamedTuple):
    """
    A run has come to an evaluation.

    :param number: Which run, counted from 0.
    :param row: What it found.
    """

    number: int
    row: Row


class Ended(NamedTuple):
    """
    A run has ended.

    :param number: Which run, counted from 0.
    :param rows: All it found.
    :param error: What went wrong; None if nothing did.
    """

    number: int
    rows: list[Row]
    error: str | None


def execute(runs: Sequence[Run], jobs: int) -> Generator[Evaluated | Ended, None, None]:
    """
    Execute runs. Closing the generator, or an error in who uses it, ends those that are under way.

    :param runs: The runs; the first ones start first.
    :param jobs: How many at a time.
    :return: What happens, as it happens; every run ends once.
    """
    workers = _Workers()
    threads = ThreadPoolExecutor(jobs)
    for index, run in enumerate(runs):
        threads.submit(workers.execute, index, run)
    to_end = len(runs)
    try:
        while to_end:
            event = workers.events.get()
            to_end -= isinstance(event, Ended)
            yield event
    finally:
        workers.stop()
        threads.shutdown(cancel_futures=True)


class _Workers:
    """The processes, each watched by a thread."""

    def __init__(self) -> None:
        self.events: SimpleQueue[Evaluated | Ended] = SimpleQueue()
        self._lock = Lock()
        self._stopped = False
        self._processes: dict[int, subprocess.Popen[str]] = {}

    def stop(self) -> None:
        """End all processes and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._processes.values():
                process.terminate()

    def execute(self, index: int, run: Run) -> None:
        """
        Execute a run.

        :param index: Its number.
        :param run: The run.
        """
        rows: list[Row] = []
        try:
            error = self._watch(index, run, rows)
        except Exception as unexpected:  # whoever waits for the run's end must hear of it
            error = f"{type(unexpected).__name__}: {unexpected}"
        self.events.put(Ended(index, rows, error))

    def _watch(self, index: int, run: Run, rows: list[Row]) -> str | None:
        with TemporaryFile("w+") as errors:
            with self._lock:
                if self._stopped:
                    return "not started"
                process = subprocess.Popen(
                    [*_WORKER, run.to_json()],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env={**os.environ, **_ONE_THREAD},
                )
                self._processes[index] = process
            with process:
                for line in process.stdout or ():
                    rows.append(Row(**json.loads(line)))
                    self.events.put(Evaluated(index, rows[-1]))
            with self._lock:
                del self._processes[index]
            if process.returncode == 0 and rows and rows[-1].simulator_steps == run.simulator_steps:
                return None
            errors.seek(0)
            said = errors.read().strip().splitlines()
            return f"exit code {process.returncode}: {said[-1] if said else 'it said nothing'}"
