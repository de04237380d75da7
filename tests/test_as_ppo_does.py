"""What PPO's users do to a model and its envs besides training has the effect that it has with PPO."""

import copy
import pickle
from typing import Any
from unittest import mock

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from tests.toy_envs import NoisyWalk, walk

ARGUMENTS: dict[str, Any] = {"n_steps": 96, "batch_size": 64, "n_epochs": 2, "learning_rate": 3e-3}


def _vec(n_envs: int, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: walk(**kwargs)] * n_envs)


def _distance(one: Any, other: Any) -> float:
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


class Anneal(BaseCallback):
    """Halves the entropy coefficient before every rollout."""

    def _on_rollout_start(self) -> None:
        self.model.ent_coef *= 0.5  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


def test_an_entropy_coefficient_that_is_set_counts() -> None:
    ours = HybridGRPO("MlpPolicy", _vec(2), n_samples=1, seed=0, ent_coef=0.4, **ARGUMENTS).learn(384, Anneal())
    ppo = PPO("MlpPolicy", _vec(2), seed=0, ent_coef=0.4, **ARGUMENTS).learn(384, Anneal())
    untouched = HybridGRPO("MlpPolicy", _vec(2), n_samples=1, seed=0, ent_coef=0.4, **ARGUMENTS).learn(384)
    assert _distance(ours, ppo) == 0
    assert _distance(ours, untouched) > 1e-4


class Buffered(gym.Wrapper[Any, Any, Any, Any]):
    """Returns one array, written anew at every step and reset."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.shown = np.zeros(2, np.float32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.shown[:], info = self.env.reset(**kwargs)
        return self.shown, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *others = self.env.step(action)
        self.shown[:] = observation
        return self.shown, *others  # type: ignore[return-value]


@pytest.mark.parametrize("kwargs", [{"branch_horizon": 8}, {"branch_horizon": 1, "action_selection": "greedy"}])
def test_the_last_observation_of_an_env_that_returns_its_buffer_is_kept(kwargs: Any) -> None:
    def trained(wrap: Any) -> Any:
        env = DummyVecEnv([lambda: wrap(walk(5, bound=9))])
        return HybridGRPO("MlpPolicy", env, seed=0, n_samples=3, **ARGUMENTS | {"batch_size": 96}, **kwargs).learn(192)

    assert _distance(trained(Buffered), trained(lambda env: env)) == 0


class Doubling(NoisyWalk):
    """Changes the action that it is given."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action *= 2
        return super().step(action)


@pytest.mark.parametrize("kwargs", [{"branch_horizon": 8}, {"branch_horizon": 1, "action_selection": "greedy"}])
def test_an_env_may_change_its_action_in_place(kwargs: Any) -> None:
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Doubling(), 20)])
    model = HybridGRPO("MlpPolicy", env, seed=0, n_steps=64, batch_size=32, **kwargs).learn(128)
    assert model.num_timesteps == model.num_executed_steps * (5 if "action_selection" in kwargs else 4)


class Attributes(NoisyWalk):
    """Has attributes with names that a wrapper may have too."""

    def __init__(self) -> None:
        super().__init__()
        self._noise = self._engine = self._take = self._beside = self.siblings = 0.0


def test_set_attr_reaches_the_env_whatever_the_name() -> None:
    env = DummyVecEnv([Attributes])
    model = HybridGRPO("MlpPolicy", env, n_steps=64, batch_size=16, branch_horizon=4)
    names = [name for name, value in vars(Attributes()).items() if isinstance(value, float) and value == 0.0]
    assert len(names) == 5
    for name in names:
        env.set_attr(name, 3.0)
        assert env.get_attr(name) == [3.0]
    assert {vars(env.envs[0].unwrapped)[name] for name in names} == {3.0}
    model.learn(32)
    assert {vars(env.envs[0].unwrapped)[name] for name in names} == {3.0}


def test_a_wrapper_may_be_patched_and_keeps_its_spaces() -> None:
    env: Any = make_branchable(walk())
    with mock.patch.object(env, "saw_noise", lambda: "patched"):
        assert env.saw_noise() == "patched"
    assert env.saw_noise() is None
    env.action_space = spaces.Discrete(7)
    assert copy.deepcopy(env).action_space == spaces.Discrete(7)


@pytest.mark.parametrize("space", [None, spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)])
def test_observations_that_are_no_numbers_are_named(space: Any) -> None:
    env = VecNormalize(_vec(1, action_space=space))
    model = HybridGRPO("MlpPolicy", env, n_steps=64, batch_size=16)
    env.clip_obs = np.nan
    with pytest.raises(ValueError, match=r"diverged|invalid values"):
        model.learn(64)


class Failing(th.nn.Module):
    """A layer with a mistake of its own."""

    def forward(self, rows: th.Tensor) -> th.Tensor:
        raise RuntimeError("my own mistake")


def test_an_error_of_the_policy_is_its_own() -> None:
    model = HybridGRPO("MlpPolicy", _vec(1), n_steps=64, batch_size=16)
    model.policy.mlp_extractor.policy_net = th.nn.Sequential(Failing())
    with pytest.raises(RuntimeError, match="my own mistake"):
        model.learn(16)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("horizon", [4, "auto"])
def test_a_model_with_its_envs_can_be_pickled(horizon: Any, dumps: Any) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0)
    if dumps is pickle.dumps:
        env = DummyVecEnv([_cart_pole, _cart_pole])
    model = HybridGRPO("MlpPolicy", env, n_steps=64, batch_size=64, branch_horizon=horizon, seed=0).learn(128)
    again = pickle.loads(dumps(model))
    assert _distance(model, again) == 0
    assert again.learn(128, reset_num_timesteps=False).num_timesteps == 256
    assert model.learn(128, reset_num_timesteps=False).num_timesteps == 256


def _cart_pole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")
