"""A few steps find out what types do not show, and leave no trace."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import make_branchable
from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.trial import model_contents
from sb3_hybrid_grpo.errors import BranchingError
from tests.stateful_envs import Noisy

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}


class EditsModelInStep(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        model: Any = self.unwrapped.model  # type: ignore[attr-defined]
        model.opt.gravity[2] += 0.5 * float(np.sum(action))
        return self.env.step(action)


class EditsModelInReset(gym.Wrapper[Any, Any, Any, Any]):
    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        model: Any = self.unwrapped.model  # type: ignore[attr-defined]
        model.body_mass[1] = self.np_random.uniform(5, 15)
        return result


def pendulum() -> gym.Env[Any, Any]:
    pytest.importorskip("mujoco")
    return gym.make("InvertedPendulum-v5")


@pytest.mark.parametrize("horizon", [1, 8, "free"])
def test_an_env_that_changes_its_model_in_a_step_is_refused(horizon: Any) -> None:
    model = HybridGRPO("MlpPolicy", EditsModelInStep(pendulum()), branch_horizon=horizon, **SMALL)
    with pytest.raises(BranchingError, match=r"its step\(\) changes MjModel\.opt\.gravity"):
        model.learn(16)
    assert model.num_timesteps == 0


def test_an_env_that_changes_its_model_in_a_reset_can_be_forked_from_and_not_be_reset_by_siblings() -> None:
    HybridGRPO("MlpPolicy", EditsModelInReset(pendulum()), branch_horizon=8, **SMALL).learn(32)
    model = HybridGRPO("MlpPolicy", EditsModelInReset(pendulum()), branch_horizon="free", **SMALL)
    with pytest.raises(BranchingError, match=r"its reset\(\) changes MjModel\.body_mass"):
        model.learn(16)


def test_member_0_is_not_disturbed_by_siblings_in_an_env_whose_reset_changes_the_model() -> None:
    env, twin = make_branchable(EditsModelInReset(pendulum())), EditsModelInReset(pendulum())
    rng = np.random.default_rng(0)
    for one in (env, twin):
        one.reset(seed=4)
    for _ in range(60):
        actions = rng.uniform(-3, 3, (4, 1)).astype(np.float32)
        env.get_wrapper_attr("step_siblings")(actions[1:], np.ones(3, bool), True)
        seen, expected = env.step(actions[0]), twin.step(actions[0])
        np.testing.assert_array_equal(seen[0], expected[0])
        if seen[2] or seen[3]:
            np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])


def test_only_mujoco_envs_have_a_model() -> None:
    assert model_contents(Noisy()) == {}
    assert "body_mass" in model_contents(pendulum()) and "opt.timestep" in model_contents(pendulum())


@pytest.mark.parametrize("horizon", [8, "free"])
def test_siblings_in_place_and_in_copies_are_the_same(horizon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[np.ndarray]:
        model = HybridGRPO("MlpPolicy", gym.make("CartPole-v1"), branch_horizon=horizon, **SMALL).learn(96)
        assert model.env is not None
        kinds = {type(one) for one in model.env.get_attr("_siblings")[0].values()}
        assert (EnvCopy in kinds) is copyable
        return [p.detach().numpy().copy() for p in model.policy.parameters()]

    copyable = True
    in_copies = run()
    monkeypatch.setattr("sb3_hybrid_grpo.branching.wrapper.copies_are_exact", lambda env, engine: False)
    copyable = False
    for one, other in zip(in_copies, run(), strict=True):
        np.testing.assert_array_equal(one, other)
