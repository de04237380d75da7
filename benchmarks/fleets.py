"""
Group steps of simulators that sleep, in the workers of a RayVecEnv and in the processes of a SubprocVecEnv, beside the ideal.

    python benchmarks/fleets.py

Sleeping takes no processor, so that a small machine stands for a large one as far as its cores allow: all workers' share of
Ray's work is done on them, too. CPU times are what the estimate for many machines in docs/fleets.md is made from.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import make_branchable
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.results import stamp
from sb3_hybrid_grpo.branching import Groups

N_SAMPLES, HORIZON = 4, 64
MILLISECONDS, WORKERS = (1, 10, 100), (1, 4, 16, 32)
FOLDER = Path(__file__).parent / "fleets"
HEADER = {
    "vec_env": "VecEnv",
    "workers": "workers",
    "milliseconds": "a step sleeps (ms)",
    "group_step": "group step (ms)",
    "steps_per_second": "simulator steps/s",
    "share_of_ideal": "of the ideal",
    "driver_cpu": "driver's CPU (ms a worker)",
    "worker_cpu": "worker's CPU (ms)",
}


class Sleeper(gym.Env[Any, Any]):
    """Sleeps for a while in each step."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (16,), np.float32)
        self.action_space = spaces.Box(-1, 1, (4,), np.float32)
        self.seconds = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(16, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        return np.zeros(16, np.float32), 0.0, False, False, {}

    def cpu(self) -> float:
        """CPU time of the process so far, in seconds."""
        return time.process_time()


def branchable_sleeper() -> gym.Env[Any, Any]:
    """Make a sleeper for a SubprocVecEnv."""
    return make_branchable(Sleeper())


def measure(env: Any, milliseconds: float, seconds: float) -> dict[str, float]:
    """Step groups for some seconds; the median of a group step, and CPU times."""
    env.set_attr("seconds", milliseconds / 1000)
    env.reset()
    groups = Groups(env, N_SAMPLES, HORIZON)
    groups.start(env_was_reset=True)
    actions = np.zeros((N_SAMPLES, env.num_envs, 4), np.float32)
    for _ in range(3):
        groups.step(actions)
    workers_cpu, own_cpu, times = env.env_method("cpu"), time.process_time(), list[float]()
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        groups.step(actions)
        times.append(time.perf_counter() - start)
    own_cpu = time.process_time() - own_cpu
    used = np.subtract(env.env_method("cpu"), workers_cpu)
    step, number = statistics.median(times), len(times)
    return {
        "group_step": 1e3 * step,
        "steps_per_second": N_SAMPLES * env.num_envs / step,
        "share_of_ideal": N_SAMPLES * milliseconds / 1e3 / step,
        "driver_cpu": 1e3 * own_cpu / number / env.num_envs,
        "worker_cpu": 1e3 * float(used.mean()) / number,
    }


def add_rows(rows: list[dict[str, Any]], name: str, make: Callable[[int], Any], seconds: float) -> None:
    """Measure one kind of VecEnv, and save what there is."""
    for workers in WORKERS:
        env = make(workers)
        for milliseconds in MILLISECONDS:
            labels = {"vec_env": name, "workers": workers, "milliseconds": milliseconds}
            rows.append({**labels, **measure(env, milliseconds, seconds)})
            print(rows[-1], flush=True)
        env.close()
        pd.DataFrame(rows).to_csv(FOLDER / "fleets.csv", index=False, float_format="%.5g")


def parts_of_a_thousand() -> dict[str, float]:
    """What else a group step of a thousand envs takes: the size of a call and of its answer, and VecNormalize."""
    from sb3_hybrid_grpo.distributed.env_worker import EnvWorker

    worker = EnvWorker()
    worker.first, worker.envs, worker.reset_infos = 0, [branchable_sleeper()], [{}]
    worker.envs[0].reset()
    actions = np.zeros((N_SAMPLES, 4), np.float32)
    siblings = ("step_siblings", (actions[1:], [True] * (N_SAMPLES - 1)), {})
    calls = cloudpickle.dumps([(0, "env_method", siblings), (0, "step", actions[0])])
    answer = worker.run(calls)
    env = VecNormalize(DummyVecEnv([Sleeper]))
    rows = np.random.default_rng(0).normal(size=(1000 * N_SAMPLES, 16)).astype(np.float32)
    start, repeats = time.process_time(), 100
    for _ in range(repeats):
        env.obs_rms.update(rows[:1000])
        env.normalize_obs(rows)
        env.ret_rms.update(rows[:1000, 0])
        env.normalize_reward(rows[:, 0])
    milliseconds = 1e3 * (time.process_time() - start) / repeats
    return {"bytes_of_a_call": len(calls), "bytes_of_an_answer": len(answer), "vec_normalize_ms": milliseconds}


def page(frame: pd.DataFrame, parts: dict[str, float]) -> str:
    """Write the page of a table."""
    shown = {"group_step": "{:,.2f}", "steps_per_second": "{:,.0f}", "share_of_ideal": "{:.0%}"}
    shown |= {"driver_cpu": "{:,.2f}", "worker_cpu": "{:,.2f}"}
    cells = [[shown.get(name, "{}").format(row[name]) for name in HEADER] for row in frame.to_dict("records")]
    return (
        f"# Fleets of sleeping simulators\n\nOne env a worker, N = {N_SAMPLES}, K = {HORIZON}, without a policy: medians of "
        f"group steps. Ideal: {N_SAMPLES} sleeps. A worker's CPU time has the copies of its env in it. "
        f"Made by `python benchmarks/fleets.py`.\n\n{table(list(HEADER.values()), cells)}\n\n"
        f"A call has {parts['bytes_of_a_call']:.0f} bytes, its answer {parts['bytes_of_an_answer']:.0f} (observations of 16 "
        f"numbers). VecNormalize takes {parts['vec_normalize_ms']:.1f} ms of CPU time for a group step of 1,000 envs.\n\n"
        f"{plain(stamp())}\n"
    )


def main() -> None:
    """Measure, and save the table and its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case (default: %(default)s)")
    parser.add_argument("--report-only", action="store_true", help="write the page of the table that is there")
    options = parser.parse_args()
    if not options.report_only:
        rows: list[dict[str, Any]] = []
        # first, for it forks processes, and Ray starts threads
        add_rows(rows, "SubprocVecEnv", lambda n: SubprocVecEnv([branchable_sleeper] * n, "fork"), options.seconds)
        from sb3_hybrid_grpo.distributed import RayVecEnv

        add_rows(rows, "RayVecEnv", lambda n: RayVecEnv([Sleeper] * n), options.seconds)
        pd.DataFrame([parts_of_a_thousand()]).to_csv(FOLDER / "parts.csv", index=False, float_format="%.5g")
    (parts,) = pd.read_csv(FOLDER / "parts.csv").to_dict("records")
    (FOLDER / "fleets.md").write_text(page(pd.read_csv(FOLDER / "fleets.csv"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
