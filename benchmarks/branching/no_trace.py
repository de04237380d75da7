"""
Do siblings leave a trace in a long run? Plays the same random actions with 8 siblings beside each env and without any, and
compares what `Monitor` wrote, the statistics of `VecNormalize`, and all that was observed. Needs Linux, whose /proc it reads.

    python benchmarks/branching/no_trace.py > benchmarks/branching/no_trace.md
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.branching import Groups
from sb3_hybrid_grpo.commands.cli import versions

N_ENVS, N_SIBLINGS, HORIZON = 4, 8, 64
LINES = 10


class EndsAtRandom(gym.Wrapper[Any, Any, Any, Any]):
    """Ends an episode with a probability of 2 % a step."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or bool(self.np_random.random() < 0.02), truncated, info


def rss_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def play(env_id: str, n_samples: int, n_steps: int, folder: Path) -> tuple[dict[str, Any], list[tuple[int, float]]]:
    """
    Play random actions.

    :param env_id: The env's id
    :param n_samples: Members of a group
    :param n_steps: Executed steps, all envs together
    :param folder: Where Monitor writes
    :return: What is left of it, and memory in MiB after so many executed steps
    """
    folder.mkdir()
    envs = [lambda e=e: Monitor(EndsAtRandom(gym.make(env_id)), str(folder / str(e))) for e in range(N_ENVS)]
    env = VecNormalize(DummyVecEnv(envs))
    groups = Groups(env, n_samples, HORIZON)
    env.seed(0)
    observations: Any = env.reset()
    groups.start(True)
    member_0, others = np.random.default_rng(1), np.random.default_rng(2)
    space: Any = env.action_space
    seen, memory = hashlib.sha256(), []
    for step in range(n_steps // N_ENVS):
        groups.observations(observations)
        own = member_0.uniform(space.low, space.high, (1, N_ENVS, *space.shape))
        theirs = others.uniform(space.low, space.high, (n_samples - 1, N_ENVS, *space.shape))
        result = groups.step(np.concatenate([own, theirs]).astype(np.float32))
        observations = result.new_obs[:N_ENVS]
        for part in (observations, result.rewards[0], result.dones_NE[0]):
            seen.update(np.ascontiguousarray(part).tobytes())
        if (step + 1) % (n_steps // N_ENVS // LINES) == 0:
            memory.append(((step + 1) * N_ENVS, rss_mib()))
            print(f"{env_id}, {n_samples} members: {memory[-1]}", file=sys.stderr)
    env.close()
    episodes = [[line.split(",")[:2] for line in path.read_text().splitlines()[2:]] for path in sorted(folder.iterdir())]
    left = {
        "episodes in monitor.csv": episodes,
        "mean of observations": env.obs_rms.mean.tobytes(),  # type: ignore[union-attr]
        "variance of observations": env.obs_rms.var.tobytes(),  # type: ignore[union-attr]
        "variance of returns": env.ret_rms.var.tobytes(),
        "count": env.obs_rms.count,  # type: ignore[union-attr]
        "all observations, rewards and ends": seen.hexdigest(),
    }
    return left, memory


def main() -> int:
    """Print a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["Pendulum-v1", "Hopper-v5"], help="envs with continuous actions")
    parser.add_argument("--steps", type=int, default=200_000, help="executed steps, all envs together (default: 200000)")
    options = parser.parse_args()
    print(f"# {options.steps:,} executed steps with {N_SIBLINGS} siblings, and without\n")
    print("| env | what is left | with siblings and without |\n|---|---|---|")
    tables, same = [], True
    for env_id in options.envs:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            alone, _ = play(env_id, 1, options.steps, Path(folder) / "alone")
            left, memory = play(env_id, 1 + N_SIBLINGS, options.steps, Path(folder) / "siblings")
        for name, value in left.items():
            what = f"{name} ({sum(map(len, value))})" if isinstance(value, list) else name
            print(f"| {env_id} | {what} | {'the same' if value == alone[name] else '**differs**'} |", flush=True)
            same &= value == alone[name]
        tables.append(f"| {env_id} | {' | '.join(f'{mib:.0f}' for _, mib in memory)} | {time.monotonic() - start:.0f} s |")
    steps = " | ".join(f"{n:,}" for n, _ in memory)
    print("\nMemory in MiB, with siblings, after so many executed steps:\n")
    print(f"| env | {steps} | both took |\n|{'---|' * (LINES + 2)}")
    print("\n".join(tables))
    print(f"\n{', '.join([*(f'{name} {version}' for name, version in versions().items()), machine()])}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
