"""Which share of the variance of returns is noise that a group has in common: measured before a training, and by ``check``."""

import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.__main__ import main
from sb3_hybrid_grpo.branching import noise, sibling


RNG = np.random.default_rng(0)


class Earnings(gym.Env[Any, Any]):
    """
    The reward is a noise, and the action times a factor; both have a variance of 1.

    :param draws: the generator of the noise: "own", "numpy", "python", "torch", "torch_generator", "module"; "none": no noise
    :param length: Steps of an episode, after which it cannot be stepped
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-(3**0.5), 3**0.5, (1,), np.float32)

    def __init__(self, draws: str = "own", factor: float = 1.0, length: int = 100) -> None:
        self.draws, self.factor, self.length, self.t = draws, factor, length, 0
        self.torch = th.Generator().manual_seed(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.t < self.length
        self.t += 1
        draw: Any = {
            "own": lambda: self.np_random.normal(),
            "numpy": lambda: np.random.normal(),
            "python": lambda: random.gauss(0, 1),
            "torch": lambda: float(th.randn(1)),
            "module": lambda: RNG.normal(),
            "torch_generator": lambda: float(th.randn(1, generator=self.torch)),
            "none": lambda: 0.0,
        }
        reward = draw[self.draws]() + self.factor * float(action[0])
        return np.zeros(1, np.float32), reward, False, self.t >= self.length, {}


@pytest.mark.parametrize(
    ("draws", "factor", "share"),
    [
        *(("own", 1.0, 0.5), ("own", 2.0, 0.2), ("own", 0.0, 1.0), ("none", 1.0, 0.0)),
        *(("numpy", 1.0, 0.5), ("python", 1.0, 0.5), ("torch", 1.0, 0.5), ("module", 1.0, 0.5)),
        ("torch_generator", 1.0, 0.5),
    ],
)
def test_shares_of_known_variances(draws: str, factor: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_branchable(Earnings(draws, factor, length=20))  # episodes end before some of the states are reached
    env.reset(seed=0)
    assert env.get_wrapper_attr("check_siblings")() is None
    monkeypatch.setattr(noise, "N_STATES", 64)
    make = env.get_wrapper_attr("sibling_maker")
    assert noise.noise_share(env, make, noise.random_actions(env)) == pytest.approx(share, abs=0.12)


class TwoSources(Earnings):
    """Earns the difference of two noises, each with a generator of its own."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.sources = self.np_random.spawn(2)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        one, other = (source.normal() for source in self.sources)
        return np.zeros(1, np.float32), one - other + float(action[0]), False, False, {}


def test_noises_of_several_generators_do_not_cancel() -> None:
    assert share_of(TwoSources()) == pytest.approx(2 / 3, abs=0.2)


def share_of(env: Any) -> float | None:
    return HybridGRPO("MlpPolicy", DummyVecEnv([lambda: env]), **SMALL).learn(64).auto_grouping.noise_share


class Slow(Earnings):
    """Needs 2 ms for a step."""

    def step(self, action: Any) -> Any:
        time.sleep(0.002)
        return super().step(action)


def test_slow_steps_leave_time_for_fewer_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "MOST_SECONDS", 2.5)  # all states need 5 s
    assert share_of(Slow(factor=0.0)) == pytest.approx(1.0)


def test_steps_that_are_too_slow_begin_as_ppo_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "MOST_SECONDS", 0.1)
    with pytest.warns(UserWarning, match=r"not be estimated, so .* begins as PPO.*branch_horizon=256.*longer than 0\.1 s"):
        assert share_of(Slow()) is None


SMALL: Any = {"n_steps": 64, "batch_size": 32, "n_epochs": 1}


@pytest.mark.parametrize(("factor", "grouped"), [(0.25, True), (4.0, False)])
@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_a_training_begins_grouped_where_noise_rules(factor: float, grouped: bool, kind: Any) -> None:
    makers = [partial(make_branchable, Earnings(factor=factor)), partial(make_branchable, Earnings(factor=factor))]
    env = kind(makers)
    model = HybridGRPO("MlpPolicy", env, **SMALL).learn(64)
    share = model.auto_grouping.noise_share
    assert share is not None and (share > 0.5) == grouped == (model.rollout_buffer.n_samples == 4)
    assert model.logger.name_to_value["train/noise_share"] == share
    env.close()


def test_what_is_played_to_estimate_it_leaves_the_env_as_it_was() -> None:
    rewards = []
    for known in (0.9, None):
        model = HybridGRPO("MlpPolicy", DummyVecEnv([partial(Earnings, factor=0.25)]), seed=3, **SMALL)
        model.auto_grouping.noise_share = known
        model.auto_grouping.grouped = known is not None
        rewards.append(model.learn(128).rollout_buffer.rewards)
    np.testing.assert_array_equal(*rewards)


def test_it_is_estimated_once_and_only_if_siblings_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HybridGRPO("MlpPolicy", DummyVecEnv([partial(Earnings, factor=0.0)]), **SMALL).learn(64)
    assert model.auto_grouping.noise_share == pytest.approx(1.0)
    model.save(tmp_path / "model")
    monkeypatch.setattr(sibling, "noise_share_in_fork", None)
    model.learn(64, reset_num_timesteps=False)
    HybridGRPO.load(tmp_path / "model", DummyVecEnv([Earnings])).learn(64, reset_num_timesteps=False)


@pytest.mark.parametrize("changed", [{"n_samples": 1}, {"branching_check": False}, {"branch_horizon": 8}])
def test_where_it_was_not_estimated_it_is_at_the_next_training_that_can(changed: dict[str, Any]) -> None:
    model = HybridGRPO("MlpPolicy", DummyVecEnv([partial(Earnings, factor=0.0)]), **{**SMALL, **changed}).learn(64)
    assert model.auto_grouping.noise_share is None and "train/noise_share" not in model.logger.name_to_value
    model.n_samples, model.branching_check, model.branch_horizon = 4, True, "auto"
    model.learn(64, reset_num_timesteps=False)
    assert model.auto_grouping.noise_share == pytest.approx(1.0) and model.rollout_buffer.n_samples == 4


class Fragile(Earnings):
    """Raises an error late in an episode."""

    def step(self, action: Any) -> Any:
        if self.t == 25:
            raise RuntimeError("too far")
        return super().step(action)


def test_an_env_that_fails_while_it_is_estimated_begins_as_ppo_with_a_notice() -> None:
    model = HybridGRPO("MlpPolicy", DummyVecEnv([Fragile]), n_steps=24, batch_size=24, n_epochs=1)
    with pytest.warns(UserWarning, match="begins as PPO.*too far"):
        model.learn(24)
    assert model.rollout_buffer.n_samples == 1 and model.auto_grouping.noise_share is None


def test_the_command_tells_noise_and_takes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gym.register("test/Earnings-v0", Earnings)  # type: ignore[arg-type]
    try:
        model = HybridGRPO("MlpPolicy", VecNormalize(DummyVecEnv([Earnings])), n_steps=64, n_epochs=1).learn(64)
        model.save(tmp_path / "best_model")
        normalize: Any = model.get_vec_normalize_env()
        (tmp_path / "test-Earnings-v0").mkdir()
        normalize.save(str(tmp_path / "test-Earnings-v0" / "vecnormalize.pkl"))
        assert main(["check", "test/Earnings-v0"]) == 0
        assert "with random actions, " in capsys.readouterr().out
        assert main(["check", "test/Earnings-v0", "--model", str(tmp_path / "best_model.zip")]) == 0
        assert "with the model's actions, " in capsys.readouterr().out
    finally:
        gym.registry.pop("test/Earnings-v0")
    assert main(["check", "CartPole-v1"]) == 0
    assert "no step draws random numbers" in capsys.readouterr().out
