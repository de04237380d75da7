"""Without ``os.fork``, as on Windows: envs that can be copied are branched, the others train as PPO or are refused."""

import os
import warnings
from typing import Any

import pytest

from sb3_hybrid_grpo import HybridGRPO, auto_grouping, check_branching
from sb3_hybrid_grpo.branching import fork_env
from sb3_hybrid_grpo.errors import BranchingError
from tests import outside_envs
from tests.toy_envs import walk

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "seed": 0}


@pytest.fixture(autouse=True)
def no_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")


@pytest.mark.parametrize("horizon", ["auto", 8, 1, "episode"])
def test_an_env_that_can_be_copied_trains_in_groups(horizon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_grouping, "FULL_ROLLOUT", 64)  # no check sees the noise here, but probes look for it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = HybridGRPO("MlpPolicy", walk(), branch_horizon=horizon, **SMALL).learn(512)
    assert model.num_executed_steps < model.num_timesteps == 512


def test_its_noise_is_the_same_for_all_members() -> None:
    env = walk()
    env.reset(seed=0)
    copies = fork_env(env, 2)
    action = env.action_space.sample()
    assert [copy.step(action)[1] for copy in copies] == [env.step(action)[1]] * 2
    assert {copy.kind for copy in copies} == {"copied"}


def test_an_env_that_would_be_forked_trains_as_ppo() -> None:
    with pytest.warns(UserWarning, match="trains without siblings, as PPO does"):
        model = HybridGRPO("MlpPolicy", outside_envs.generator(), **SMALL)
    model.learn(128)
    assert model.num_executed_steps == model.num_timesteps == 128


def test_with_a_number_for_branch_horizon_it_is_refused() -> None:
    with pytest.raises(BranchingError, match="cannot be branched"):
        HybridGRPO("MlpPolicy", outside_envs.generator(), branch_horizon=8, **SMALL)


def test_the_report_measures_costs_all_the_same() -> None:
    report = check_branching(walk())
    assert report.engine == "copied"
    assert report.fork > 0
    assert check_branching(outside_envs.generator()).engine == "none"
