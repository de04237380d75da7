"""A few steps find out what types do not show, and leave no trace."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import make_branchable
from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.inplace import InPlaceEngine
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


class EditsTextureInStep(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        self.unwrapped.model.tex_data[0] += 1  # type: ignore[attr-defined]
        return self.env.step(action)


@pytest.mark.parametrize("horizon", [1, 8, "free", "auto"])
@pytest.mark.parametrize("edits", [EditsModelInStep, EditsModelInReset])
def test_members_of_an_env_that_changes_its_model_have_one_each(edits: Any, horizon: Any) -> None:
    def lives() -> list[list[Any]]:
        """Of member 0 and two siblings, who all do the same."""
        env: Any = make_branchable(edits(pendulum()))
        env.reset(seed=4)
        assert env.check_siblings(resets=True) is None
        seen: list[list[Any]] = [[], [], []]
        forks = np.ones(2, bool)
        if horizon in ("free", "auto"):
            env.reset_siblings([4, 4])
            forks[:] = False
        rng = np.random.default_rng(0)
        for t in range(120):
            action = rng.uniform(-3, 3, 1).astype(np.float32)
            steps = env.step_siblings(np.array([action] * 2), forks, horizon != 1, horizon in ("free", "auto"))
            result = env.step(action)
            seen[0].append([result[0].tolist(), result[2]])
            ended = result[2] or result[3]
            if ended:
                env.reset()
            for m in range(2):
                seen[m + 1].append([steps.observations[m].tolist(), steps.terminated[m]])
            if horizon not in ("free", "auto"):
                forks[:] = ended or horizon == 1 or t % 8 == 7
        return seen

    twin, alone = edits(pendulum()), []
    twin.reset(seed=4)
    rng = np.random.default_rng(0)
    for _ in range(120):
        observation, _, terminated, truncated, _ = twin.step(rng.uniform(-3, 3, 1).astype(np.float32))
        alone.append([observation.tolist(), terminated])
        if terminated or truncated:
            twin.reset()
    assert sum(terminated for _, terminated in alone) > 3
    for its in lives():
        assert its == alone


@pytest.mark.parametrize("horizon", [1, 8, "free", "auto"])
@pytest.mark.parametrize("edits", [EditsModelInStep, EditsModelInReset])
def test_training_in_an_env_that_changes_its_model(edits: Any, horizon: Any) -> None:
    model = HybridGRPO("MlpPolicy", edits(pendulum()), branch_horizon=horizon, **SMALL).learn(64)
    assert model.num_timesteps == 64


def test_an_env_that_changes_shapes_or_pictures_is_refused() -> None:
    pytest.importorskip("mujoco")
    model = HybridGRPO("MlpPolicy", EditsTextureInStep(gym.make("HalfCheetah-v5")), **SMALL)
    with pytest.raises(BranchingError, match=r"its step\(\) changes MjModel\.tex_data, which all members share"):
        model.learn(16)
    assert model.num_timesteps == 0


def test_without_the_check_an_env_that_changes_its_model_is_refused() -> None:
    model = HybridGRPO("MlpPolicy", EditsModelInStep(pendulum()), branch_horizon=8, branching_check=False, **SMALL)
    with pytest.raises(BranchingError, match=r"changes MjModel\.opt\.gravity.*branching_check=True, has not seen it or was"):
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
    assert InPlaceEngine(Noisy()).shared_contents() == {}
    shared = InPlaceEngine(pendulum()).shared_contents()
    assert "0.body_mass" in shared and "0.opt.timestep" in shared
    shared = InPlaceEngine(pendulum(), own_models=True).shared_contents()
    assert "0.body_mass" not in shared and "0.tex_data" in shared


@pytest.mark.parametrize("horizon", [8, "free"])
def test_siblings_in_place_and_in_copies_are_the_same(horizon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[np.ndarray]:
        model = HybridGRPO("MlpPolicy", gym.make("CartPole-v1"), branch_horizon=horizon, **SMALL).learn(96)
        assert model.env is not None
        kinds = {type(one) for one in model.env.get_attr("siblings_beside")[0].values()}
        assert (EnvCopy in kinds) is copyable
        return [p.detach().numpy().copy() for p in model.policy.parameters()]

    copyable = True
    in_copies = run()
    monkeypatch.setattr("sb3_hybrid_grpo.branching.wrapper.copies_are_exact", lambda env, engine: False)
    copyable = False
    for one, other in zip(in_copies, run(), strict=True):
        np.testing.assert_array_equal(one, other)
