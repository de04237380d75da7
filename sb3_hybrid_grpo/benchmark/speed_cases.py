"""What the speed benchmark measures: envs, algorithms in them, and the bare ``env.step`` loop."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_hybrid_grpo.benchmark.speed_runner import Runner
from sb3_hybrid_grpo.evaluation import default_policy
from sb3_hybrid_grpo.recording import CALLS_BEFORE_RECORDING

BREAKOUT = "ale_py:BreakoutNoFrameskip-v4"
N_ENVS = {
    "CartPole-v1": 8,
    "Pendulum-v1": 4,
    "HalfCheetah-v5": 4,
    "Ant-v5": 4,
    "LunarLander-v3": 4,
    "BipedalWalker-v3": 4,
    "hybrid_grpo/Inventory-v0": 8,
    BREAKOUT: 4,
}
"""Number of envs by env id, where a section does not vary it."""
BATCH_SIZE = 64


class Size(NamedTuple):
    """
    How much to measure.

    :param samples: Samples in a rollout, the same for every algorithm: members and envs included.
    :param n_epochs: Epochs of an update.
    :param repeats: Measurements of each case.
    :param raw_seconds: Shortest duration of the bare loop.
    :param warm_up: Steps of each env, and minibatches, before the first measurement.
    """

    samples: int
    n_epochs: int
    repeats: int
    raw_seconds: float
    warm_up: int

    def settings(self) -> dict[str, str]:
        """
        Name what numbers depend on.

        :return: By what it is.
        """
        return {"samples": str(self.samples), "n_epochs": str(self.n_epochs), "repeats": str(self.repeats)}


class Sizes(NamedTuple):
    """
    How much to measure, by what is measured.

    :param vectors: Algorithms beside one another, in envs with vectors as observations.
    :param images: The same with images, whose networks take a hundred times as long.
    :param brief: Where many cases are measured, or updates alone.
    :param states: States of a rollout whose memory is measured.
    """

    vectors: Size
    images: Size
    brief: Size
    states: int

    def of(self, env_id: str) -> Size:
        """
        Choose by the env.

        :param env_id: The env's id.
        :return: The size for algorithms in it.
        """
        return self.images if is_atari(env_id) else self.vectors


# What is recorded is recorded after so many calls, and the first step of a rollout is not counted.
_WARM_UP = CALLS_BEFORE_RECORDING * 3 // 2
FULL = Sizes(
    vectors=Size(samples=2048, n_epochs=10, repeats=7, raw_seconds=0.2, warm_up=_WARM_UP),
    images=Size(samples=256, n_epochs=4, repeats=3, raw_seconds=0.2, warm_up=0),  # convolutions are not recorded
    brief=Size(samples=2048, n_epochs=2, repeats=5, raw_seconds=0.2, warm_up=_WARM_UP),
    states=1024,
)
_TINY = Size(samples=256, n_epochs=1, repeats=1, raw_seconds=0.01, warm_up=0)
QUICK = Sizes(_TINY, _TINY._replace(samples=64), _TINY, states=64)


def is_atari(env_id: str) -> bool:
    """
    :param env_id: An env's id.
    :return: Whether it is an Atari game's.
    """
    return env_id.startswith("ale_py:")


def short_name(env_id: str) -> str:
    """
    Name an env for people.

    :param env_id: The env's id.
    :return: The same without the module that registers it.
    """
    return env_id.rpartition(":")[2]


def make_one(env_id: str) -> gym.Env[Any, Any]:
    """
    Make one env, with all that the algorithms' envs have but recorders.

    :param env_id: The env's id.
    :return: The env; Atari games under SB3's ``AtariWrapper``.
    """
    env: gym.Env[Any, Any] = gym.make(env_id)
    return AtariWrapper(env) if is_atari(env_id) else env


def make_envs(env_id: str, n_envs: int, **arguments: Any) -> VecEnv:
    """
    Make the envs of an algorithm.

    :param env_id: The env's id.
    :param n_envs: How many.
    :param arguments: Of ``make_vec_env`` besides.
    :return: The envs; Atari games with the wrappers of SB3's, and four frames stacked.
    """
    if is_atari(env_id):
        return VecFrameStack(make_atari_env(env_id, n_envs=n_envs, seed=0, **arguments), n_stack=4)
    return make_vec_env(env_id, n_envs=n_envs, seed=0, **arguments)


def build(algorithm: type[OnPolicyAlgorithm], env: VecEnv, samples: int, **arguments: Any) -> Runner:
    """
    Build a model that measures the same policy again and again: with the learning rate 0.

    :param algorithm: Its class.
    :param env: Its envs.
    :param samples: Samples in a rollout, members and envs included.
    :param arguments: Of the class besides.
    :return: The model, ready to be measured.
    """
    n_steps = samples // (env.num_envs * arguments.get("n_samples", 1))
    common: dict[str, Any] = {"batch_size": BATCH_SIZE, "learning_rate": 0.0, "seed": 0, "device": "cpu"}
    policy = default_policy(env.observation_space)
    return Runner(algorithm(policy, env, n_steps=n_steps, **(common | arguments)))


def sbx_ppo() -> type[OnPolicyAlgorithm] | None:
    """
    Import SBX's PPO.

    :return: The class; None where SBX is not installed.
    """
    if importlib.util.find_spec("sbx") is None:
        return None
    from sbx import PPO

    algorithm: type[OnPolicyAlgorithm] = PPO
    return algorithm


def build_raw_loop(env_id: str, n_envs: int, seconds: float) -> Callable[[], float]:
    """
    Build the bare loop: random actions, nothing but ``env.step`` and ``env.reset``.

    :param env_id: The env's id.
    :param n_envs: Number of envs, stepped in turn.
    :param seconds: Shortest duration of a measurement.
    :return: A function that measures the steps per second.
    """
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
