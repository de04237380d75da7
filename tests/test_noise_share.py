"""Which share of the variance of returns is noise that a group has in common, as ``check`` says."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.__main__ import main
from sb3_hybrid_grpo.commands import check, noise
from sb3_hybrid_grpo.errors import BranchingError


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


def share_of(env: Any) -> float:
    env = make_branchable(env)
    env.reset(seed=0)
    assert env.get_wrapper_attr("check_siblings")() is None
    return noise.noise_share(env, noise.random_actions(env))


@pytest.mark.parametrize(
    ("draws", "factor", "share"), [("own", 1.0, 0.5), ("own", 2.0, 0.2), ("own", 0.0, 1.0), ("none", 1.0, 0.0)]
)
def test_shares_of_known_variances(draws: str, factor: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "N_STATES", 64)
    env = Earnings(draws, factor, length=20)  # episodes end before some of the states are reached
    assert share_of(env) == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("draws", ["numpy", "python", "torch", "module", "torch_generator"])
def test_the_noise_of_every_generator_is_found(draws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "N_STATES", 16)
    assert share_of(Earnings(draws, length=20)) == pytest.approx(0.5, abs=0.25)


class TwoSources(Earnings):
    """Earns the difference of two noises, each with a generator of its own."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.sources = self.np_random.spawn(2)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        one, other = (source.normal() for source in self.sources)
        return np.zeros(1, np.float32), one - other + float(action[0]), False, False, {}


def test_noises_of_several_generators_do_not_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "N_STATES", 16)
    assert share_of(TwoSources()) == pytest.approx(2 / 3, abs=0.2)


@pytest.fixture
def slow_share(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[], float], list[float]]:
    """Estimates the share by actions that take 2 ms each, by a clock of its own; and that clock."""
    clock, env = [0.0], make_branchable(Earnings(factor=0.0))

    def act(*_: Any) -> Any:
        clock[0] += 0.002
        return np.zeros(1)

    monkeypatch.setattr(noise, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return lambda: noise.noise_share(env, act), clock


def test_slow_steps_leave_time_for_fewer_states(slow_share: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    share, clock = slow_share
    monkeypatch.setattr(noise, "MOST_SECONDS", 5.0)  # a state takes one
    assert share() == pytest.approx(1.0)
    assert 4.0 < clock[0] < 5.0


def test_steps_that_are_too_slow_for_two_states_are_an_error(slow_share: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    share, _ = slow_share
    monkeypatch.setattr(noise, "MOST_SECONDS", 0.5)
    with pytest.raises(BranchingError, match=r"two states take longer than 0\.5 s"):
        share()


class OddLater(Earnings):
    """Holds a generator, which cannot be copied, in the episode with seed 1."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.odd = (one for one in range(9)) if seed == 1 else None
        return super().reset(seed=seed)


def checked(env: Any, *options: str) -> int:
    gym.register("test/Earnings-v0", env)
    try:
        return main(["check", "test/Earnings-v0", *options])
    finally:
        gym.registry.pop("test/Earnings-v0")


def test_an_env_that_fails_while_it_is_estimated_is_said_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "noise_share", mock.Mock(side_effect=RuntimeError("too far")))
    assert checked(Earnings) == 0
    assert "is noise is not known: too far" in capsys.readouterr().out


def test_an_object_that_cannot_be_copied_and_turns_up_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="OddLater"):
        assert checked(OddLater) == 0
    assert re.search(r"is noise is not known: .*OddLater\.odd", capsys.readouterr().out)


def test_the_command_tells_noise_and_takes_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "N_STATES", 4)
    model = HybridGRPO("MlpPolicy", VecNormalize(DummyVecEnv([Earnings])), n_steps=64, n_epochs=1).learn(64)
    model.save(tmp_path / "best_model")
    normalize: Any = model.get_vec_normalize_env()
    (tmp_path / "test-Earnings-v0").mkdir()
    normalize.save(str(tmp_path / "test-Earnings-v0" / "vecnormalize.pkl"))
    assert checked(Earnings) == 0
    assert "With random actions, " in capsys.readouterr().out
    assert checked(Earnings, "--model", str(tmp_path / "best_model.zip")) == 0
    assert "With the model's actions, " in capsys.readouterr().out
    assert main(["check", "CartPole-v1"]) == 0
    assert "no step draws random numbers" in capsys.readouterr().out
    assert checked(lambda: Earnings("none"), "--model", str(tmp_path / "best_model.zip")) == 0
    assert "So --model is not used" in capsys.readouterr().out


def test_a_model_that_cannot_be_read_is_an_error_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "CartPole-v1", "--model", str(tmp_path / "nothing.zip")])
    assert "needs the file of a HybridGRPO for this env" in capsys.readouterr().err
