"""
With one member, and with free members, HybridGRPO is PPO: every parameter of policy and optimiser.

To the last bit, but where several truncated states (or the states of siblings) are evaluated in one batch that PPO evaluates
one by one: torch rounds a row of a large batch differently from a small one. There to 1e-6.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from tests.toy_envs import walk

ROLLOUTS = 3


def parameters(model: OnPolicyAlgorithm) -> list[np.ndarray]:
    """Everything that training changes: the policy, and Adam's moments."""
    moments = model.policy.optimizer.state_dict()["state"].values()
    tensors = [*model.policy.state_dict().values(), *(moment for state in moments for moment in state.values())]
    return [tensor.detach().numpy().copy() for tensor in tensors]


def trained(
    algorithm: type[OnPolicyAlgorithm], make_env: Callable[[], VecEnv], n_steps: int, **kwargs: Any
) -> list[np.ndarray]:
    env = make_env()
    policy = kwargs.pop("policy", "MlpPolicy")
    model: Any = algorithm(policy, env, n_steps=n_steps, n_epochs=3, seed=7, **kwargs)  # type: ignore[call-arg]
    untrained = parameters(model)
    model.learn(ROLLOUTS * n_steps * env.num_envs)
    assert any((one != other).any() for one, other in zip(untrained, parameters(model), strict=False))
    env.close()
    return parameters(model)


def assert_equal(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float = 0.0) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("env_id", "n_envs", "tolerance"),
    [("CartPole-v1", 1, 0.0), ("CartPole-v1", 4, 0.0), ("Pendulum-v1", 1, 0.0), ("Pendulum-v1", 2, 1e-6)],
)
def test_one_member_is_ppo(env_id: str, n_envs: int, tolerance: float) -> None:
    # Pendulum's episodes are truncated after 200 steps, inside a rollout of 256
    def make() -> VecEnv:
        return make_vec_env(env_id, n_envs=n_envs)

    assert_equal(trained(HybridGRPO, make, 256, n_samples=1), trained(PPO, make, 256), tolerance)


def test_one_member_is_ppo_on_half_cheetah_under_vec_normalize() -> None:
    def make() -> VecEnv:
        return VecNormalize(make_vec_env("HalfCheetah-v5", n_envs=4), gamma=0.98)

    options: dict[str, Any] = {"gamma": 0.98, "gae_lambda": 0.9, "ent_coef": 0.01, "batch_size": 128}
    assert_equal(trained(HybridGRPO, make, 128, n_samples=1, **options), trained(PPO, make, 128, **options))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_one_member_is_ppo_where_episodes_are_truncated_and_terminated_inside_a_rollout(n_envs: int) -> None:
    def make() -> VecEnv:
        return make_vec_env(walk, n_envs=n_envs, env_kwargs={"max_steps": 9, "bound": 0.5})

    assert_equal(trained(HybridGRPO, make, 64, n_samples=1), trained(PPO, make, 64), tolerance=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"use_sde": True, "sde_sample_freq": 4},
        {"clip_range_vf": 0.2, "normalize_advantage": False, "max_grad_norm": 0.1},
        {"target_kl": 1e-4},
        {"learning_rate": lambda progress: 1e-3 * progress, "clip_range": lambda progress: 0.2 * progress},
        {"batch_size": 60},
    ],
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_one_member_is_ppo_with_every_argument_of_ppo(options: dict[str, Any]) -> None:
    def make() -> VecEnv:
        return make_vec_env("Pendulum-v1", n_envs=2)

    assert_equal(trained(HybridGRPO, make, 128, n_samples=1, **options), trained(PPO, make, 128, **options), tolerance=1e-6)


def test_one_member_in_subprocesses_is_ppo() -> None:
    def make() -> VecEnv:
        return make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)

    assert_equal(trained(HybridGRPO, make, 64, n_samples=1), trained(PPO, make, 64))


@pytest.mark.parametrize(("n_envs", "n_samples"), [(1, 4), (2, 3)])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("horizon", ["free", "auto"])
def test_free_members_are_ppo_with_as_many_envs(env_id: str, n_envs: int, n_samples: int, horizon: Any) -> None:
    """So are those of "auto" in an env without noise."""
    ours = trained(HybridGRPO, lambda: make_vec_env(env_id, n_envs=n_envs), 256, n_samples=n_samples, branch_horizon=horizon)
    theirs = trained(PPO, lambda: make_vec_env(env_id, n_envs=n_envs * n_samples), 256)
    assert_equal(ours, theirs, tolerance=1e-6)


def test_free_members_of_half_cheetah_are_ppo_with_as_many_envs() -> None:
    ours = trained(HybridGRPO, lambda: make_vec_env("HalfCheetah-v5"), 64, n_samples=4, branch_horizon="free")
    theirs = trained(PPO, lambda: make_vec_env("HalfCheetah-v5", n_envs=4), 64)
    assert_equal(ours, theirs, tolerance=1e-6)


@pytest.mark.parametrize("horizon", ["free", "auto"])
@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Acrobot-v1", "Pendulum-v1"])
def test_free_members_teach_vec_normalize_as_envs_do(env_id: str, horizon: Any) -> None:
    """Its statistics are of as many observations and rewards, and so are the policies that train on what it normalises."""
    envs: dict[int, VecNormalize] = {}

    def normalized(n_envs: int) -> VecEnv:
        envs[n_envs] = VecNormalize(make_vec_env(env_id, n_envs=n_envs), gamma=0.98)
        return envs[n_envs]

    # Acrobot's and Pendulum's episodes end in the third rollout
    ours = trained(HybridGRPO, lambda: normalized(2), 210, n_samples=3, branch_horizon=horizon)
    theirs = trained(PPO, lambda: normalized(6), 210)
    for name in ("obs_rms", "ret_rms"):
        mine, its = getattr(envs[2], name), getattr(envs[6], name)
        assert mine.count == pytest.approx(its.count)
        np.testing.assert_allclose(mine.mean, its.mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mine.var, its.var, rtol=1e-6, atol=1e-6)
    # means of 2 and of 4 observations do not round to that of 6
    assert_equal(ours, theirs, tolerance=1e-5)


def test_free_members_go_on_over_rollouts_and_learn_calls_as_envs_do() -> None:
    """The second call of learn resets all envs without a seed: siblings too go on with their own random numbers."""

    def twice(algorithm: type[OnPolicyAlgorithm], n_envs: int, **kwargs: Any) -> list[np.ndarray]:
        model: Any = algorithm("MlpPolicy", make_vec_env("CartPole-v1", n_envs=n_envs), n_steps=64, seed=1, **kwargs)
        model.learn(64 * n_envs)
        model.learn(64 * n_envs)
        model.learn(64 * n_envs, reset_num_timesteps=False)
        return parameters(model)

    assert_equal(twice(HybridGRPO, 1, n_samples=4, branch_horizon="free"), twice(PPO, 4), tolerance=1e-6)
