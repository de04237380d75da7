"""One thread per test process: the tests themselves run in parallel, and results do not depend on the number of cores."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hybrid_grpo import make_branchable
from tests.toy_envs import FragileWalk

th.set_num_threads(1)


def _branchable() -> gym.Env[Any, Any]:
    return make_branchable(FragileWalk())


@pytest.fixture
def processes() -> Iterator[SubprocVecEnv]:
    """Three walks, each in a process of its own, which may be broken or killed."""
    env = SubprocVecEnv([_branchable] * 3, start_method="fork")
    env.seed(4)
    env.reset()
    yield env
    for process in env.processes:
        process.terminate()
