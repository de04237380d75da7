"""What PPO's users do to a model and its envs besides training has the effect that it has with PPO."""

import copy
import itertools
import pickle
from pathlib import Path
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
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from tests.toy_envs import NoisyWalk, walk

ARGUMENTS: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 2, "learning_rate": 3e-3}


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
    ours = HybridGRPO("MlpPolicy", _vec(2), n_samples=1, seed=0, ent_coef=0.4, **ARGUMENTS).learn(256, Anneal())
    ppo = PPO("MlpPolicy", _vec(2), seed=0, ent_coef=0.4, **ARGUMENTS).learn(256, Anneal())
    untouched = HybridGRPO("MlpPolicy", _vec(2), n_samples=1, seed=0, ent_coef=0.4, **ARGUMENTS).learn(256)
    assert _distance(ours, ppo) < 1e-6
    assert _distance(ours, untouched) > 1e-4


def test_an_entropy_coefficient_may_become_a_learned_one() -> None:
    model = HybridGRPO("MlpPolicy", _vec(2), seed=0, **ARGUMENTS).learn(64)
    setattr(model, "ent_coef", "auto_0.2")  # noqa: B010  whose type SB3 knows as a number
    model.learn(128, reset_num_timesteps=False)
    assert model.entropy.value(1) not in (0.0, 0.2)
    setattr(model, "ent_coef", "never")  # noqa: B010
    with pytest.raises(ValueError, match="Received ent_coef='never'"):
        model.learn(64)


@pytest.mark.parametrize("how", ["model", "env"])
def test_a_seed_set_later_reaches_siblings(how: str) -> None:
    def trained(kind: Any, n_envs: int, **kwargs: Any) -> Any:
        model = kind("MlpPolicy", _vec(n_envs), seed=1, **(ARGUMENTS | {"batch_size": 96}), **kwargs)
        model.set_random_seed(5) if how == "model" else model.get_env().seed(5)
        return model.learn(96 * n_envs)

    assert _distance(trained(HybridGRPO, 2, n_samples=3, branch_horizon="free"), trained(PPO, 6)) < 1e-5


def test_a_seed_set_later_makes_equal_trainings() -> None:
    def trained() -> Any:
        model = HybridGRPO("MlpPolicy", _vec(2), branch_horizon="auto", **ARGUMENTS)
        th.manual_seed(0)
        model.policy = model._make_policy()
        model.set_random_seed(5)
        model.learn(3 * 64)
        model.auto_grouping.grouped = False
        model.learn(2 * 64, reset_num_timesteps=False)
        assert model.auto_grouping.times_let_go == 1
        return model

    assert _distance(trained(), trained()) == 0


class Level(gym.Env[Any, Any]):
    """Shows which level it was told to begin at, and ends after a few steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.level, self.n_steps = (options or {}).pop("level", 0), 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        return self._shown(), 0.0, self.n_steps == 5, False, {}

    def _shown(self) -> Any:
        return np.array([self.level, self.n_steps], np.float32)


class ForkedLevel(Level):
    """Can only be forked."""

    def __init__(self) -> None:
        self.endless = map(str, itertools.count())


@pytest.mark.filterwarnings("ignore:Each sibling of")
@pytest.mark.parametrize("kind", [Level, ForkedLevel])
def test_options_of_a_reset_reach_free_siblings(kind: type[Level]) -> None:
    env = DummyVecEnv([kind] * 2)
    model = HybridGRPO("MlpPolicy", env, n_samples=3, branch_horizon="free", n_steps=8, batch_size=48, seed=0)
    env.set_options([{"level": 3}, {"level": 7}])
    model.learn(16)
    levels = model.rollout_buffer.observations.reshape(8, -1, 2)[:, :, 0]
    assert sorted(levels[0].tolist()) == [3, 3, 3, 7, 7, 7]
    assert (levels[5:] == 0).all()  # later resets have no options


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
        return HybridGRPO("MlpPolicy", env, seed=0, n_samples=3, **ARGUMENTS | {"batch_size": 96}, **kwargs).learn(64)

    assert _distance(trained(Buffered), trained(lambda env: env)) == 0


class Doubling(NoisyWalk):
    """Changes the action that it is given."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action *= 2
        return super().step(action)


@pytest.mark.parametrize("kwargs", [{"branch_horizon": 8}, {"branch_horizon": 1, "action_selection": "greedy"}])
def test_an_env_may_change_its_action_in_place(kwargs: Any) -> None:
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Doubling(), 20)])
    model = HybridGRPO("MlpPolicy", env, seed=0, n_steps=32, batch_size=32, **kwargs).learn(64)
    assert env.get_attr("branching_engine")[0].name == "in place"
    assert model.num_simulator_steps == 64 * (5 if "action_selection" in kwargs else 4)


class Attributes(NoisyWalk):
    """Has attributes with names that a wrapper may have too."""

    def __init__(self) -> None:
        super().__init__()
        self._noise = self._engine = self._take = self._beside = self.siblings = 0.0


def test_set_attr_reaches_the_env_whatever_the_name() -> None:
    env = DummyVecEnv([Attributes])
    model = HybridGRPO("MlpPolicy", env, n_steps=16, batch_size=16, branch_horizon=4)
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
    assert env.saw_noise() is False
    env.action_space = spaces.Discrete(7)
    assert copy.deepcopy(env).action_space == spaces.Discrete(7)


@pytest.mark.parametrize("space", [None, spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)])
def test_observations_that_are_no_numbers_are_named(space: Any) -> None:
    env = VecNormalize(_vec(1, action_space=space))
    model = HybridGRPO("MlpPolicy", env, n_steps=16, batch_size=16)
    env.clip_obs = np.nan
    with pytest.raises(ValueError, match="diverged"):
        model.learn(16)


def test_a_seed_set_later_is_not_saved(tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", _vec(1), n_steps=16, batch_size=16)
    model.set_random_seed(5)
    model.save(tmp_path / "model")
    assert model.last_seed == 5
    assert HybridGRPO.load(tmp_path / "model").last_seed is None


class Failing(th.nn.Module):
    """A layer with a mistake of its own."""

    def forward(self, rows: th.Tensor) -> th.Tensor:
        raise RuntimeError("my own mistake")


def test_an_error_of_the_policy_is_its_own() -> None:
    model = HybridGRPO("MlpPolicy", _vec(1), n_steps=16, batch_size=16)
    model.policy.mlp_extractor.policy_net = th.nn.Sequential(Failing())
    with pytest.raises(RuntimeError, match="my own mistake"):
        model.learn(16)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("horizon", [4, "free"])
def test_a_model_with_its_envs_can_be_pickled(horizon: Any, dumps: Any) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0)
    if dumps is pickle.dumps:
        env = DummyVecEnv([_cart_pole, _cart_pole])
    model = HybridGRPO("MlpPolicy", env, n_steps=16, batch_size=64, branch_horizon=horizon, seed=0).learn(64)
    assert model._groups.__getstate__()["_aside"] is None  # type: ignore[union-attr]
    again = pickle.loads(dumps(model))
    assert _distance(model, again) == 0
    assert again.learn(64, reset_num_timesteps=False).num_timesteps == 128
    assert model.learn(64, reset_num_timesteps=False).num_timesteps == 128


def _cart_pole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def _normalized_twice(env: VecEnv) -> VecEnv:
    return VecNormalize(VecNormalize(env, norm_obs=False), norm_reward=False)


def _extracted(env: VecEnv) -> VecEnv:
    return VecExtractDictObs(VecNormalize(env), "place")


def _stacked(env: VecEnv) -> VecEnv:
    return VecFrameStack(VecNormalize(env), 3)


def _transposed(env: VecEnv) -> VecEnv:
    return VecTransposeImage(VecNormalize(env, norm_obs_keys=["place"]), skip=False)


PLACE = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
IMAGE = spaces.Dict({"place": PLACE, "seen": spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8)})


@pytest.mark.parametrize(
    ("stack", "policy", "space"),
    [
        (_normalized_twice, "MlpPolicy", None),
        (_stacked, "MlpPolicy", None),
        (_extracted, "MlpPolicy", spaces.Dict({"place": PLACE})),
        (_transposed, "MultiInputPolicy", IMAGE),
    ],
)
def test_free_siblings_are_envs_like_any_other_in_any_stack(stack: Any, policy: str, space: Any) -> None:
    def trained(kind: Any, n_envs: int, **kwargs: Any) -> Any:
        arguments = ARGUMENTS | {"batch_size": 96, "n_epochs": 1, "n_steps": 16}
        return kind(policy, stack(_vec(n_envs, observation_space=space)), seed=1, **arguments, **kwargs).learn(48 * n_envs)

    assert _distance(trained(HybridGRPO, 2, n_samples=3, branch_horizon="free"), trained(PPO, 6)) < 2e-5
