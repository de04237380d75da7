"""Which envs draw random numbers while they step, and that looking changes nothing."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import sb3_hybrid_grpo.envs  # noqa: F401
from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching import exactness


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


def saw_noise(env: gym.Env[Any, Any]) -> bool:
    env = make_branchable(env)
    env.reset(seed=1)
    assert env.get_wrapper_attr("check_siblings")() is None
    seen = env.get_wrapper_attr("saw_noise")()
    assert isinstance(seen, bool)
    return seen


@pytest.mark.parametrize("source", ["np_random", "PCG64", "MT19937", "RandomState", "Random"])
@pytest.mark.parametrize("first_step", [0, 7])
def test_every_generator_is_watched(source: str, first_step: int) -> None:
    assert saw_noise(Monitor(TimeLimit(Drawing(source, first_step), 70)))


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_only_the_first_ten_steps_count_however_fast_the_machine_is(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "SECONDS", seconds)
    assert saw_noise(TimeLimit(Drawing("np_random", 9), 70))
    env = make_branchable(TimeLimit(Drawing("np_random", 10), 70))
    assert not saw_noise(env)
    for _ in range(30):
        env.step(0)
    assert env.get_wrapper_attr("saw_noise")() is False  # noise that is seldom drawn is found by probes


def test_what_a_reset_or_a_space_draws_is_no_noise() -> None:
    assert not saw_noise(TimeLimit(Drawing(), 3))
    assert not saw_noise(TimeLimit(Drawing("action_space"), 50))
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


def test_noise_that_nobody_can_look_into_is_left_to_probes() -> None:
    assert not saw_noise(SavesItself("np_random"))


SMALL: Any = {"n_steps": 64, "batch_size": 32, "n_epochs": 1}


@pytest.mark.parametrize(("source", "grouped"), [("np_random", True), ("nowhere", False)])
@pytest.mark.parametrize("kind", [DummyVecEnv, partial(SubprocVecEnv, start_method="fork")])
def test_a_training_begins_grouped_where_steps_of_an_env_draw(source: str, grouped: bool, kind: Any) -> None:
    env = kind([lambda one=one: make_branchable(TimeLimit(Drawing(one), 30)) for one in ("nowhere", source)])
    model = HybridGRPO("MlpPolicy", env, **SMALL).learn(64)
    assert model.auto_grouping.noise_seen == grouped == (model.rollout_buffer.n_samples == 4)
    env.close()


@pytest.mark.parametrize("changed", [{"n_samples": 1}, {"branching_check": False}, {"branch_horizon": 8}])
def test_where_nobody_looked_the_next_training_looks(changed: dict[str, Any]) -> None:
    env = DummyVecEnv([lambda: TimeLimit(Drawing("np_random"), 30)])
    model = HybridGRPO("MlpPolicy", env, **{**SMALL, **changed}).learn(64)
    assert model.auto_grouping.noise_seen is None
    model.n_samples, model.branching_check, model.branch_horizon = 4, True, "auto"
    model.learn(64, reset_num_timesteps=False)
    assert model.auto_grouping.noise_seen and model.rollout_buffer.n_samples == 4


def test_a_training_that_goes_on_does_not_begin_anew(tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: TimeLimit(Drawing("np_random"), 30)])
    model = HybridGRPO("MlpPolicy", env, **SMALL).learn(64)
    model.auto_grouping.grouped = False  # as if groups did not pay
    assert model.learn(64, reset_num_timesteps=False).rollout_buffer.n_samples == 1
    model.save(tmp_path / "model")
    assert HybridGRPO.load(tmp_path / "model", env).learn(64, reset_num_timesteps=False).rollout_buffer.n_samples == 1
