"""
Speed of HybridGRPO beside SB3's PPO, sb3-contrib's TRPO and a bare ``env.step`` loop, in one run and one thread.

``python -m sb3_hybrid_grpo.benchmark.speed --output speed_benchmark``

A busy machine changes its speed from second to second. So every measurement of HybridGRPO is taken right after one of PPO and
one of the bare loop, ratios are formed pair by pair, and the table shows their median with the lowest and the highest.
The learning rate is 0: every repeat measures the same policy, and an update costs the same as any other.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark.speed_report import Row, save_report
from sb3_hybrid_grpo.cli import CommandError, output_folder, require_modules
from sb3_hybrid_grpo.recording import CALLS_BEFORE_RECORDING

ENVS = {"CartPole-v1": 8, "Pendulum-v1": 4, "HalfCheetah-v5": 4, "Ant-v5": 4, "hybrid_grpo/Inventory-v0": 8}
GROUPS = [(n_samples, branch_horizon) for n_samples in (1, 4, 8, 16) for branch_horizon in (1, 64)]
BATCH_SIZE = 64
COMMON: dict[str, Any] = {"batch_size": BATCH_SIZE, "learning_rate": 0.0, "seed": 0, "device": "cpu"}


class Size(NamedTuple):
    """
    How much to measure.

    :param samples: Samples in a rollout, the same for every algorithm: members and envs included.
    :param n_epochs: Epochs of an update.
    :param repeats: Measurements of each case.
    :param raw_seconds: Shortest duration of the bare loop.
    :param warm_up: Steps of each env before the first measurement.
    """

    samples: int
    n_epochs: int
    repeats: int
    raw_seconds: float
    warm_up: int


FULL = Size(samples=4096, n_epochs=10, repeats=5, raw_seconds=0.3, warm_up=2 * CALLS_BEFORE_RECORDING)
QUICK = Size(samples=256, n_epochs=1, repeats=1, raw_seconds=0.01, warm_up=0)


class Speed(NamedTuple):
    """
    One measurement.

    :param rollout: Simulator steps per second while collecting.
    :param update: Samples per second while updating, all epochs of a sample counted as one.
    """

    rollout: float
    update: float

    @property
    def overall(self) -> float:
        """Samples per second of collecting and updating together."""
        return 1.0 / (1.0 / self.rollout + 1.0 / self.update)


@dataclass
class Runner:
    """
    A model that can be measured again and again.

    :param model: The model.
    :param callback: What ``_setup_learn`` made of no callback.
    """

    model: PPO | TRPO | HybridGRPO
    callback: Any = field(init=False)

    def __post_init__(self) -> None:
        _, self.callback = self.model._setup_learn(total_timesteps=sys.maxsize, callback=None)

    def simulator_steps(self) -> int:
        """Steps that any simulator took so far."""
        return self.model.num_simulator_steps if isinstance(self.model, HybridGRPO) else self.model.num_timesteps

    def warm_up(self, n_steps: int) -> None:
        """
        Let the model do what it does at first only: initialise lazily, record.

        :param n_steps: Steps of each env to take at least.
        """
        taken = 0
        while taken <= n_steps:
            self.measure()
            taken += self.model.n_steps

    def measure(self) -> Speed:
        """
        Collect one rollout and update once.

        :return: The speed of both.
        """
        model, before = self.model, self.simulator_steps()
        assert model.env is not None
        start = time.perf_counter()
        model.collect_rollouts(model.env, self.callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        collected = time.perf_counter()
        model.train()
        end = time.perf_counter()
        steps = self.simulator_steps() - before
        return Speed(steps / (collected - start), steps / (end - collected))


def build_peer(algorithm: type[PPO] | type[TRPO], env_id: str, n_envs: int, size: Size) -> Runner:
    """
    Build a peer with the benchmark's settings.

    :param algorithm: Its class.
    :param env_id: The env's id.
    :param n_envs: Number of envs.
    :param size: How much to measure.
    :return: The model, ready to be measured.
    """
    env = make_vec_env(env_id, n_envs=n_envs, seed=0)
    epochs: dict[str, Any] = {"n_epochs": size.n_epochs} if algorithm is PPO else {}  # of TRPO, its own: one
    return Runner(algorithm("MlpPolicy", env, n_steps=size.samples // n_envs, **epochs, **COMMON))


def build_runner(env_id: str, n_envs: int, size: Size, n_samples: int, branch_horizon: int) -> Runner:
    """
    Build HybridGRPO with the benchmark's settings.

    :param env_id: The env's id.
    :param n_envs: Number of envs.
    :param size: How much to measure.
    :param n_samples: Group size.
    :param branch_horizon: After how many steps siblings fork.
    :return: The model, ready to be measured.
    """
    env = make_vec_env(env_id, n_envs=n_envs, seed=0)
    groups: dict[str, Any] = {"n_samples": n_samples, "branch_horizon": branch_horizon, "n_epochs": size.n_epochs}
    return Runner(HybridGRPO("MlpPolicy", env, n_steps=size.samples // (n_envs * n_samples), **groups, **COMMON))


def build_raw_loop(env_id: str, n_envs: int, seconds: float) -> Callable[[], float]:
    """
    Build the bare loop: random actions, nothing but ``env.step`` and ``env.reset``.

    :param env_id: The env's id.
    :param n_envs: Number of envs, stepped in turn.
    :param seconds: Shortest duration of a measurement.
    :return: A function that measures the steps per second.
    """
    envs = [gym.make(env_id) for _ in range(n_envs)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        env.action_space.seed(seed)
    # Drawn beforehand: the loop is to measure the envs, not the action space.
    actions = [[env.action_space.sample() for env in envs] for _ in range(256)]

    def measure() -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for actions_E in actions:
                for env, action in zip(envs, actions_E, strict=True):
                    _, _, terminated, truncated, _ = env.step(action)
                    if terminated or truncated:
                        env.reset()
            steps += len(actions) * n_envs
        return steps / (time.perf_counter() - start)

    return measure


def measure_env(env_id: str, n_envs: int, size: Size, done: Callable[[str], None]) -> list[Row]:
    """
    Measure every case on one env.

    :param env_id: The env's id.
    :param n_envs: Number of envs.
    :param size: How much to measure.
    :param done: Called with a case's name after each measurement.
    :return: The bare loop, PPO, TRPO, then each group size and horizon.
    """
    raw_loop = build_raw_loop(env_id, n_envs, size.raw_seconds)
    ppo, trpo = build_peer(PPO, env_id, n_envs, size), build_peer(TRPO, env_id, n_envs, size)
    hybrids = {group: build_runner(env_id, n_envs, size, *group) for group in GROUPS}
    for runner in (ppo, trpo, *hybrids.values()):
        runner.warm_up(size.warm_up)
    rows = {group: Row(env_id, n_envs, "HybridGRPO", *group) for group in GROUPS}
    raw_row, ppo_row, trpo_row = (Row(env_id, n_envs, name) for name in ("env.step loop", "PPO", "TRPO"))
    cases = [(trpo_row, trpo, "TRPO"), *((rows[it], hybrids[it], f"N={it[0]} K={it[1]}") for it in GROUPS)]
    for _ in range(size.repeats):
        for row, runner, name in cases:
            raw, peer, own = raw_loop(), ppo.measure(), runner.measure()
            raw_row.add(rollout=raw)
            ppo_row.add(rollout=peer.rollout, update=peer.update, overall=peer.overall, rollout_to_raw=peer.rollout / raw)
            row.add(
                rollout=own.rollout,
                update=own.update,
                overall=own.overall,
                rollout_to_raw=own.rollout / raw,
                rollout_to_ppo=own.rollout / peer.rollout,
                update_to_ppo=own.update / peer.update,
                overall_to_ppo=own.overall / peer.overall,
            )
            done(f"{env_id} {name}")
    return [raw_row, ppo_row, trpo_row, *rows.values()]


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """
    Show a progress bar, or a line a measurement where tqdm is not installed.

    :param total: Number of measurements.
    :return: A context manager that yields a function to call after each.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda name: print(name, file=sys.stderr)
        return
    with tqdm(total=total, unit="measurement") as bar:

        def done(name: str) -> None:
            bar.set_description(name)
            bar.update()

        yield done


def run(output: Path, size: Size, envs: dict[str, int]) -> None:
    """
    Measure, print the table, save it.

    :param output: Folder for ``speed.csv`` and ``speed.md``.
    :param size: How much to measure.
    :param envs: Number of envs by env id.
    """
    if envs.keys() & {"HalfCheetah-v5", "Ant-v5"}:
        require_modules(["mujoco", "imageio"], extra="mujoco")
    output_folder(output)
    th.set_num_threads(1)
    rows: list[Row] = []
    with progress(len(envs) * (1 + len(GROUPS)) * size.repeats) as done:
        for env_id, n_envs in envs.items():
            rows += measure_env(env_id, n_envs, size, done)
    settings = {"samples": size.samples, "batch_size": BATCH_SIZE, "n_epochs": size.n_epochs, "repeats": size.repeats}
    print(save_report(output, rows, settings))


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo.benchmark.speed",
        description="Speed of HybridGRPO beside PPO, TRPO and a bare env.step loop, in one thread (about an hour).",
    )
    parser.add_argument("--output", type=Path, default=Path("speed_benchmark"), help="folder for speed.csv and speed.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, the numbers mean nothing")
    options = parser.parse_args(arguments)
    try:
        run(options.output, QUICK if options.quick else FULL, ENVS)
    except CommandError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
