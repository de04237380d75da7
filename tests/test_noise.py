"""Which envs draw random numbers while they step, and that looking changes nothing."""

import copy
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import sb3_hybrid_grpo.envs  # noqa: F401
from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching import engines, register_engine
from sb3_hybrid_grpo.grouping import EXPECTED


class Drawing(gym.Env[Any, Any]):
    """Draws random numbers from where it is told to, from some step of an episode on."""

    def __init__(self, source: str = "nowhere", first_step: int = 0) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,))
        self.action_space = spaces.Discrete(2)
        self.source, self.first_step, self.t = source, first_step, 0
        self.generators: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        # made anew in each episode, and drawn from at once
        self.generators = {
            "PCG64": np.random.default_rng(1),
            "MT19937": np.random.Generator(np.random.MT19937(1)),
            "RandomState": np.random.RandomState(1),
            "Random": random.Random(1),
        }
        self.np_random.random()
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.t > self.first_step:
            if self.source == "np_random":
                self.np_random.random()
            elif self.source == "action_space":
                self.action_space.sample()
            elif self.source in self.generators:
                self.generators[self.source].random()
        return np.zeros(1, np.float32), 0.0, False, False, {}


def saw_noise(env: gym.Env[Any, Any], steps: int = 30) -> bool:
    env = make_branchable(env)
    watcher = env.get_wrapper_attr("saw_noise")
    assert not watcher()
    env.reset(seed=1)
    actions = copy.deepcopy(env.action_space)
    actions.seed(1)
    for _ in range(steps):
        env.action_space.sample()  # by a callback, say
        if any(env.step(actions.sample())[2:4]):
            env.reset()
    return bool(watcher())


@pytest.mark.parametrize("source", ["np_random", "action_space", "PCG64", "MT19937", "RandomState", "Random"])
@pytest.mark.parametrize("first_step", [0, 7])
def test_every_generator_is_watched(source: str, first_step: int) -> None:
    assert saw_noise(Monitor(TimeLimit(Drawing(source, first_step), 10)))


def test_what_a_reset_draws_is_no_noise() -> None:
    assert not saw_noise(TimeLimit(Drawing(), 3))
    for env_id in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "hybrid_grpo/CartPoleSwingUp-v0"):
        assert not saw_noise(gym.make(env_id))


@pytest.mark.parametrize("env_id", ["Inventory-v0", "Queue-v0", "GustyCartPoleSwingUp-v0"])
def test_noisy_envs_are_seen_to_be(env_id: str) -> None:
    assert saw_noise(gym.make(f"hybrid_grpo/{env_id}"))


@pytest.mark.parametrize(("env_id", "noisy"), [("HalfCheetah-v5", False), ("hybrid_grpo/GustyHalfCheetah-v0", True)])
def test_mujoco(env_id: str, noisy: bool) -> None:
    pytest.importorskip("mujoco")
    assert saw_noise(gym.make(env_id)) == noisy


class SavesItself(Drawing):
    def save_state(self) -> Any:
        return self.t

    def restore_state(self, state: Any) -> None:
        self.t = state


class Simulator:
    pass


def test_what_cannot_be_looked_into_counts_as_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert saw_noise(SavesItself())
    env = Drawing()
    env.simulator = Simulator()  # type: ignore[attr-defined]
    assert not saw_noise(env)
    monkeypatch.setattr(engines, "_ENGINES", dict(engines._ENGINES))
    register_engine(f"{Simulator.__module__}.Simulator", lambda simulator: None, lambda simulator, state: None)
    try:
        assert saw_noise(env)
    finally:
        monkeypatch.undo()
        engines.engine_of.cache_clear()


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "hybrid_grpo/Inventory-v0"])
def test_auto_groups_where_there_is_noise(vec_env: Any, env_id: str) -> None:
    env = make_vec_env(env_id, 2, seed=0, vec_env_cls=vec_env, wrapper_class=make_branchable)
    model = HybridGRPO("MlpPolicy", env, n_steps=16, n_epochs=1, seed=0)
    assert model.branch_horizon == "auto"
    model.learn(64)
    env.close()
    assert model.auto_grouping.noise_seen == (env_id != "CartPole-v1")
    assert (model.auto_grouping.variance_removed != EXPECTED) == model.auto_grouping.noise_seen
