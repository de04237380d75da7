"""Speeds of algorithms in envs, measured pair by pair, and of the bare ``env.step`` loop."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import gymnasium as gym
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.commands.evaluation import default_policy
from sb3_hybrid_grpo.graph_replay import CALLS_BEFORE_RECORDING

Measurement = dict[str, Any]
"""What was measured, by the labels of its section, and the numbers by name."""
Add = Callable[[Measurement], None]

BREAKOUT = "ale_py:BreakoutNoFrameskip-v4"
SBX, RAW_LOOP = "SBX PPO", "env.step loop"
BATCH_SIZE = 64
GROUPS = tuple((n_samples, horizon) for n_samples in (1, 4, 8, 16) for horizon in (1, 64))
N_ENVS = {"CartPole-v1": 8, "hybrid_grpo/Inventory-v0": 8}
"""Number of envs by env id, where it is not 4."""


class Size(NamedTuple):
    """
    How much to measure.

    :param samples: Samples in a rollout, the same for every algorithm: members and envs included.
    :param n_epochs: Epochs of an update.
    :param repeats: Measurements of each case.
    :param raw_seconds: Shortest duration of the bare loop.
    :param warm_up: Steps of each env, and minibatches, before the first measurement: until the graphs are recorded.
    """

    samples: int = 2048
    n_epochs: int = 10
    repeats: int = 7
    raw_seconds: float = 0.2
    warm_up: int = CALLS_BEFORE_RECORDING * 3 // 2


class Speed(NamedTuple):
    """Simulator steps per second while collecting, samples per second while updating (all epochs counted as one)."""

    rollout: float
    update: float

    def named(self) -> dict[str, float]:
        """Both, and samples per second of collecting and updating together."""
        return {**self._asdict(), "overall": 1.0 / (1.0 / self.rollout + 1.0 / self.update)}

    def beside(self, peer: "Speed") -> dict[str, float]:
        """The same with ratios to PPO's, measured right before."""
        own, its = self.named(), peer.named()
        return own | {f"{name}_to_ppo": own[name] / its[name] for name in own}


class Runner(BaseCallback):
    """
    A model that is measured again and again, with the learning rate 0: always the same policy.

    :param samples: Samples in a rollout, members and envs included.
    :param arguments: Of the class besides.
    """

    def __init__(self, algorithm: Any, env: VecEnv, samples: int, **arguments: Any) -> None:
        super().__init__()
        common: dict[str, Any] = {"batch_size": BATCH_SIZE, "learning_rate": 0.0, "seed": 0, "device": "cpu"}
        if issubclass(algorithm, HybridGRPO):
            common["branching_check"] = False
        self.n_steps = samples // env.num_envs
        policy = default_policy(env.observation_space)
        self.model: Any = algorithm(policy, env, n_steps=self.n_steps, **(common | arguments))
        self._times: list[float] = []
        self._steps = 0

    def _on_rollout_start(self) -> None:
        self._steps = self.num_timesteps
        self._times = [time.perf_counter()]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._steps = self.num_timesteps - self._steps
        self._times.append(time.perf_counter())

    def measure(self) -> Speed:
        """Collect one rollout and update once."""
        self.model.learn(1, callback=self, log_interval=None, reset_num_timesteps=self.model.num_timesteps == 0)
        start, collected, updated = *self._times, time.perf_counter()
        return Speed(self._steps / (collected - start), self._steps / (updated - collected))

    def warm_up(self, calls: int) -> None:
        """Step each env and learn from minibatches so many times at least: initialise lazily, compile, record."""
        minibatches = getattr(self.model, "n_epochs", 1) * self.model.n_steps * self.model.n_envs // self.model.batch_size
        executed = self.n_steps // getattr(self.model, "n_samples", 1)
        for _ in range(1 + max(calls // executed, calls // max(minibatches, 1))):
            self.measure()


def is_atari(env_id: str) -> bool:
    """Whether an env is an Atari game."""
    return env_id.startswith("ale_py:")


def short_name(env_id: str) -> str:
    """An env's id without the module that registers it."""
    return env_id.rpartition(":")[2]


def make_envs(env_id: str, n_envs: int | None = None, **arguments: Any) -> VecEnv:
    """Make the envs of an algorithm, Atari games with SB3's wrappers and four frames stacked; ``arguments`` of SB3 besides."""
    arguments |= {"n_envs": n_envs or N_ENVS.get(env_id, 4), "seed": 0}
    if is_atari(env_id):
        return VecFrameStack(make_atari_env(env_id, **arguments), n_stack=4)
    return make_vec_env(env_id, **arguments)


def sbx_ppo() -> Any:
    """SBX's PPO; None where SBX is not installed."""
    if importlib.util.find_spec("sbx") is None:
        return None
    from sbx import PPO

    return PPO


def raw_loop(env_id: str, n_envs: int, seconds: float) -> Callable[[], float]:
    """Build the bare loop: nothing but ``env.step`` with random actions; the result measures steps per second."""
    envs = [make_one(env_id) for _ in range(n_envs)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        env.action_space.seed(seed)
    # Drawn beforehand: the loop is to measure the envs, not the action space.
    actions = [[env.action_space.sample() for env in envs] for _ in range(32)]

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


def make_one(env_id: str) -> gym.Env[Any, Any]:
    """Make one env as the algorithms have it, but without recorders."""
    env: gym.Env[Any, Any] = gym.make(env_id)
    return AtariWrapper(env) if is_atari(env_id) else env


def labels(env_id: str, algorithm: str, n_samples: int | None = None, horizon: int | None = None) -> Measurement:
    """Name a case: the env, what is measured, and N and K where the algorithm has them."""
    return {
        **{"env": short_name(env_id), "algorithm": algorithm},
        **{"n_samples": str(n_samples or ""), "branch_horizon": str(horizon or "")},
    }


def measure_speed(env_id: str, size: Size, add: Add, groups: tuple[tuple[int, int], ...] = GROUPS) -> None:
    """Measure the bare loop, PPO, TRPO, SBX's PPO where it is installed, then each group size and horizon."""
    n_envs = N_ENVS.get(env_id, 4)
    common = {"n_epochs": size.n_epochs}
    loop, ppo = raw_loop(env_id, n_envs, size.raw_seconds), Runner(PPO, make_envs(env_id), size.samples, **common)
    cases = [(labels(env_id, "TRPO"), Runner(TRPO, make_envs(env_id), size.samples))]
    if (sbx := sbx_ppo()) is not None:
        cases.append((labels(env_id, SBX), Runner(sbx, make_envs(env_id), size.samples, **common)))
    for n_samples, horizon in groups:
        shape = {"n_samples": n_samples, "branch_horizon": horizon, **common}
        cases.append(
            (labels(env_id, "HybridGRPO", n_samples, horizon), Runner(HybridGRPO, make_envs(env_id), size.samples, **shape))
        )
    for runner in (ppo, *(runner for _, runner in cases)):
        runner.warm_up(size.warm_up)
    envs = {"n_envs": str(n_envs)}
    for _ in range(size.repeats):
        for case, runner in cases:
            raw, peer, own = loop(), ppo.measure(), runner.measure()
            add({**labels(env_id, RAW_LOOP), **envs, "rollout": raw})
            add({**labels(env_id, "PPO"), **envs, **peer.named(), "rollout_to_raw": peer.rollout / raw})
            add({**case, **envs, **own.beside(peer), "rollout_to_raw": own.rollout / raw})


@contextmanager
def one_core() -> Iterator[None]:
    """Keep all threads of this process on one core, where the system lets it: JAX's are ended by no option of its own."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    _keep_to({max(cores)})
    try:
        yield
    finally:
        _keep_to(cores)


def _keep_to(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread), cores)
