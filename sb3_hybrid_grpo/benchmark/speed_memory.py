"""
The speed benchmark's section on memory. Each case is measured in a process of its own:
``python -m sb3_hybrid_grpo.benchmark.speed_memory`` with the case as JSON.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark.speed_cases import N_ENVS, build, make_envs, short_name
from sb3_hybrid_grpo.benchmark.speed_report import Row

GROUPS = [(n_samples, branch_horizon) for n_samples in (1, 4, 8) for branch_horizon in (1, 64)]
_MEBI = 2**20


@dataclass(frozen=True)
class Case:
    """
    What is measured in a process.

    :param env: The env's id.
    :param states: Of a rollout, all envs' together.
    :param n_samples: Group size N; None: PPO.
    :param branch_horizon: Branch horizon K; None: PPO.
    """

    env: str
    states: int
    n_samples: int | None = None
    branch_horizon: int | None = None


def peak_memory() -> int | None:
    """
    Ask how much memory this process held at most.

    :return: Bytes; None where the system does not tell. Not what ``getrusage`` says, which begins with the parent's.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def buffer_memory(buffer: RolloutBuffer) -> int:
    """
    Add up a rollout buffer.

    :param buffer: The buffer.
    :return: Bytes of its arrays.
    """
    parts: list[Any] = []
    for value in vars(buffer).values():
        parts += value.values() if isinstance(value, dict) else [value]
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


def measure_here(case: Case) -> dict[str, float]:
    """
    Collect one rollout, and update for one epoch, in this process.

    :param case: What is measured.
    :return: Mebibytes by what they are.
    """
    th.set_num_threads(1)
    envs = make_envs(case.env, N_ENVS[case.env])
    envs.reset()
    before = peak_memory()
    algorithm: Any = PPO
    groups: dict[str, Any] = {}
    if case.n_samples is not None:
        algorithm, groups = HybridGRPO, {"n_samples": case.n_samples, "branch_horizon": case.branch_horizon}
    runner = build(algorithm, envs, case.states * (case.n_samples or 1), n_epochs=1, **groups)
    runner.measure()
    after = peak_memory()
    found = {"buffer": buffer_memory(runner.model.rollout_buffer) / _MEBI}
    if before is not None and after is not None:
        found["peak"] = (after - before) / _MEBI
    return found


def measure_apart(case: Case) -> dict[str, float]:
    """
    Do the same in a new process.

    :param case: What is measured.
    :return: Mebibytes by what they are.
    :raises RuntimeError: if the process fails
    """
    command = [sys.executable, "-m", "sb3_hybrid_grpo.benchmark.speed_memory", json.dumps(asdict(case))]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"Measuring the memory of {case} ended with exit code {process.returncode}:\n{process.stderr}")
    found: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return found


def measure_memory(
    env_id: str,
    states: int,
    repeats: int,
    done: Callable[[str], None],
    groups: Sequence[tuple[int, int]] = tuple(GROUPS),
) -> list[Row]:
    """
    Measure memory in one env.

    :param env_id: The env's id.
    :param states: Of a rollout, all envs' together.
    :param repeats: Measurements of each case.
    :param done: Called with a case's name after each measurement.
    :param groups: N and K of HybridGRPO.
    :return: PPO, then each group size and horizon.
    """
    settings = {"states": str(states), "n_epochs": "1", "repeats": str(repeats)}
    rows, peers = [], []
    for group in (None, *groups):
        names = {"n_samples": "", "branch_horizon": ""}
        names |= {} if group is None else {"n_samples": str(group[0]), "branch_horizon": str(group[1])}
        algorithm = "PPO" if group is None else "HybridGRPO"
        labels = {"env": short_name(env_id), "n_envs": str(N_ENVS[env_id]), "algorithm": algorithm, **names}
        rows.append(Row(labels, settings))
        for repeat in range(repeats):
            found = measure_apart(Case(env_id, states, *(group or ())))
            rows[-1].add(**found)
            if group is None:
                peers.append(found)
            else:
                rows[-1].add(**{f"{name}_to_ppo": found[name] / peers[repeat][name] for name in found})
            done(rows[-1].case)
    return rows


if __name__ == "__main__":
    print(json.dumps(measure_here(Case(**json.loads(sys.argv[1])))))
