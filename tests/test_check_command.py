"""``check`` and ``check_branching``: how an env is branched, and what that costs."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor

from sb3_hybrid_grpo import check_branching, make_branchable
from sb3_hybrid_grpo.__main__ import main
from sb3_hybrid_grpo.branching import report
from tests import outside_envs
from tests.stateful_envs import Noisy


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SECONDS", 0.02)


def test_the_command_prints_engine_verdict_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "CartPole-v1", "--n-samples", "3", "--branch-horizon", "4"]) == 0
    printed = capsys.readouterr().out
    assert "CartPole-v1>>>>>> is branched exactly" in printed
    for part in ("copies of the env", "step ", "fork ", " µs", "3 members, branch_horizon=4"):
        assert part in printed


def test_auto_is_a_horizon_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "CartPole-v1", "--branch-horizon", "auto"]) == 0
    assert "4 members, branch_horizon=256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CartPole-v77"], r"Received the env 'CartPole-v77'"),
        (["CartPole-v1", "--n-samples", "0"], "needs a whole number of at least 1"),
        ([], "ENV_ID"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", *arguments])
    assert message in capsys.readouterr().err


def checked(make: Any) -> int:
    """The exit code of the command for an env that is registered meanwhile."""
    gym.register("test/Made-v0", make, max_episode_steps=9)
    try:
        return main(["check", "test/Made-v0"])
    finally:
        gym.registry.pop("test/Made-v0")


def test_an_env_that_cannot_be_branched(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(outside_envs.mapped) == 1
    assert "cannot be branched: Noisy.memory is memory that forked processes share" in capsys.readouterr().out


@pytest.mark.parametrize("horizon", [1, 4])
def test_figures(horizon: int) -> None:
    found = check_branching(gym.make("Pendulum-v1"), n_samples=3, branch_horizon=horizon)
    assert found.is_exact and found.engine == "copied"
    assert found.hint == "" or found.slow_down > 1.5
    assert min(found.step, found.fork, found.sibling_step, found.group_step, found.slow_down) > 0


@pytest.mark.parametrize(("horizon", "ends"), [(64, 0.001), (1000, 1 / 64)])
def test_slow_down_is_the_median_of_ratios_measured_in_turn(
    monkeypatch: pytest.MonkeyPatch, horizon: int, ends: float
) -> None:
    rounds = [(1e-6, 64e-6, 1e-6), (2e-6, 64e-6, 3e-6), (10e-6, 640e-6, 40e-6)]
    monkeypatch.setattr(report, "_measured", lambda _: (rounds, ends))
    found = check_branching(gym.make("CartPole-v1"), n_samples=2, branch_horizon=horizon)
    assert (found.step, found.group_step, found.slow_down) == (2.0, 6.0, 1.5)  # (3 / 2, 6 / 4, 60 / 20)


def test_forks_are_reported_with_their_reason_and_a_hint() -> None:
    found = check_branching(TimeLimit(outside_envs.generator(), 9), branch_horizon=4)
    assert found.engine == "forked" and found.is_exact
    assert "no copies  Noisy.noise is a generator" in str(found)
    assert "hint       forks cost milliseconds" in str(found)


def test_forks_that_cost_little_are_worth_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_measured", lambda _: ([(0.02, 0.1, 0.02)], 0.0))
    found = check_branching(TimeLimit(outside_envs.generator(), 9))
    assert found.engine == "forked" and "hint       beside this env's steps forks cost little: train with" in str(found)


class NoPictures(Noisy):
    """Refuses the render_mode for which Stable-Baselines3 asks."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        assert render_mode is None


def test_an_env_that_refuses_a_render_mode(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(NoPictures) == 0
    assert "is branched exactly" in capsys.readouterr().out


def test_slow_copies_bring_a_hint() -> None:
    env: Any = TimeLimit(outside_envs.cache(), 9)
    env.unwrapped.lists = [[float(n)] for n in range(500)]
    found = check_branching(env, branch_horizon=1)
    assert "hint       copies make groups slow" in str(found)


def test_steps_that_save_and_restore_a_shared_generator_bring_a_hint() -> None:
    found = check_branching(Noisy(lambda env: float(np.random.normal())))
    assert found.engine == "copied" and "draw from self.np_random instead" in str(found)


def test_plain_ppo_needs_no_siblings() -> None:
    found = check_branching(gym.make("CartPole-v1"), n_samples=1)
    assert found.slow_down > 0


def test_recorders_see_nothing_and_a_branchable_env_is_taken_as_it_is() -> None:
    env = Monitor(gym.make("CartPole-v1"))
    assert check_branching(env).is_exact
    assert env.get_total_steps() == 0 and isinstance(env.env, gym.wrappers.TimeLimit)
    assert check_branching(make_branchable(env)).is_exact
    assert env.get_total_steps() == 0


def test_a_refusal_says_why() -> None:
    found = check_branching(outside_envs.thread())
    assert (found.engine, found.is_exact) == ("none", False)
    assert str(found) == found.refusal and "Noisy.worker is or has a thread" in found.refusal


@pytest.mark.parametrize("changes", [{"branch_horizon": "auto"}, {"branch_horizon": 0}, {"n_samples": 2.5}])
def test_words_and_broken_numbers_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"Received {name}={changes[name]!r}: .* a whole number of at least 1"):
        check_branching(gym.make("CartPole-v1"), **changes)
