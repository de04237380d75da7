"""Speeds of algorithms in envs, measured pair by pair, and of the bare ``env.step`` loop."""

import importlib.util
import time
from collections.abc import Callable, Sequence
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

Measurement = dict[str, Any]  # labels of a case, and its measured numbers
BREAKOUT = "ale_py:BreakoutNoFrameskip-v4"
SBX, RAW_LOOP = "SBX PPO", "env.step loop"
BATCH_SIZE = 64
GROUPS = ((1, 256), (4, 256), (8, 256))  # 256: the K of "auto"
N_ENVS = {"CartPole-v1": 8, "hybrid_grpo/Inventory-v0": 8}  # others have 4


class Size(NamedTuple):
    """The amount of data and repeats of a measurement."""

    samples: int = 2048  # in a rollout, the same for every algorithm: members and envs included
    n_epochs: int = 10
    repeats: int = 7
    raw_seconds: float = 0.2  # shortest duration of the bare loop
    warm_up: int = CALLS_BEFORE_RECORDING * 3 // 2  # steps of each env, and minibatches, until the graphs are recorded


class Speed(NamedTuple):
    """Simulator steps per second of a rollout, samples per second of an update with all its epochs, and of both together."""

    rollout: float
    update: float
    overall: float

    def beside(self, peer: "Speed") -> dict[str, float]:
        """The speeds, and their ratios to PPO's speeds, measured right before."""
        pairs = zip(self._fields, self, peer, strict=True)
        return self._asdict() | {f"{name}_to_ppo": own / its for name, own, its in pairs}


class Runner(BaseCallback):
    """A model for repeated measurements. Its learning rate is 0, so that the policy stays the same."""

    def __init__(self, algorithm: Any, env: VecEnv, samples: int, **arguments: Any) -> None:
        super().__init__()
        common: dict[str, Any] = {"batch_size": BATCH_SIZE, "learning_rate": 0.0, "seed": 0, "device": "cpu"}
        if issubclass(algorithm, HybridGRPO):
            common["branching_check"] = False
        policy, n_steps = default_policy(env.observation_space), samples // env.num_envs
        self.model: Any = algorithm(policy, env, n_steps=n_steps, **(common | arguments))
        self._marks: list[tuple[float, int]] = []

    def _mark(self) -> None:
        self._marks.append((time.perf_counter(), self.model.num_timesteps))

    def _on_step(self) -> bool:
        return True

    _on_rollout_start = _on_rollout_end = _on_training_end = _mark

    def measure(self) -> Speed:
        """Collect one rollout and update once."""
        self.model.learn(1, callback=self, log_interval=None, reset_num_timesteps=self.model.num_timesteps == 0)
        (start, before), (collected, after), (updated, _) = self._marks[-3:]
        steps = after - before
        return Speed(*(steps / seconds for seconds in (collected - start, updated - collected, updated - start)))

    def warm_up(self, calls: int) -> None:
        """Take at least ``calls`` steps of each env and ``calls`` minibatches, until all is initialised and recorded."""
        model = self.model
        minibatches = getattr(model, "n_epochs", 1) * model.n_steps * model.n_envs // model.batch_size
        executed = model.n_steps // getattr(model, "n_samples", 1)
        for _ in range(1 + max(calls // executed, calls // max(minibatches, 1))):
            self.measure()


def make_envs(env_id: str, n_envs: int | None = None, **arguments: Any) -> VecEnv:
    """Make an algorithm's envs, Atari games with SB3's wrappers and four stacked frames; ``arguments`` go to SB3."""
    arguments |= {"n_envs": n_envs or N_ENVS.get(env_id, 4), "seed": 0}
    if env_id == BREAKOUT:
        return VecFrameStack(make_atari_env(env_id, **arguments), n_stack=4)
    return make_vec_env(env_id, **arguments)


def raw_loop(env_id: str, n_envs: int, seconds: float) -> Callable[[], float]:
    """Build the bare loop: nothing but ``env.step`` with random actions; the result measures steps per second."""
    envs: list[gym.Env[Any, Any]] = [gym.make(env_id) for _ in range(n_envs)]
    envs = [AtariWrapper(env) if env_id == BREAKOUT else env for env in envs]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        env.action_space.seed(seed)
    # Drawn beforehand, so that the loop measures the envs and not the action space.
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


def labels(env_id: str, algorithm: str, n_samples: int | str = "", horizon: int | str = "") -> Measurement:
    """Labels of a case: the env, the algorithm, and N and K if the algorithm has them."""
    env = env_id.rpartition(":")[2]
    return {"env": env, "algorithm": algorithm, "n_samples": str(n_samples), "branch_horizon": str(horizon)}


def measure_speed(env_id: str, size: Size, groups: Sequence[tuple[int, int]] = GROUPS) -> list[Measurement]:
    """Measure the bare loop, PPO, TRPO, SBX's PPO if it is installed, then each group size and horizon."""
    n_envs, epochs, found = N_ENVS.get(env_id, 4), {"n_epochs": size.n_epochs}, []
    loop, ppo = raw_loop(env_id, n_envs, size.raw_seconds), Runner(PPO, make_envs(env_id), size.samples, **epochs)
    cases = [(labels(env_id, "TRPO"), Runner(TRPO, make_envs(env_id), size.samples))]
    if importlib.util.find_spec("sbx") is not None:
        from sbx import PPO as SBX_PPO

        cases.append((labels(env_id, SBX), Runner(SBX_PPO, make_envs(env_id), size.samples, **epochs)))
    for n_samples, horizon in groups:
        shape = {"n_samples": n_samples, "branch_horizon": horizon, **epochs}
        runner = Runner(HybridGRPO, make_envs(env_id), size.samples, **shape)
        cases.append((labels(env_id, "HybridGRPO", n_samples, horizon), runner))
    for runner in (ppo, *(runner for _, runner in cases)):
        runner.warm_up(size.warm_up)
    for _ in range(size.repeats):
        for case, runner in cases:
            raw, peer, own = loop(), ppo.measure(), runner.measure()
            found.append({**labels(env_id, RAW_LOOP), "rollout": raw})
            found.append({**labels(env_id, "PPO"), **peer._asdict(), "rollout_to_raw": peer.rollout / raw})
            found.append({**case, **own.beside(peer), "rollout_to_raw": own.rollout / raw})
    return [{**one, "n_envs": str(n_envs)} for one in found]
