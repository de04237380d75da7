"""
HybridGRPO is PPO to the last bit, in every parameter of policy and optimiser: with one member, and in the single rollouts of
"auto", whose siblings are not stepped.
"""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
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


ALONE: list[dict[str, Any]] = [{"n_samples": 1}, {"n_samples": 1, "branch_horizon": 16}, {}]
"""One member; and the default arguments, in envs without noise."""


def check(make: Callable[[], VecEnv], n_steps: int = 64, ours: Any = None, **kwargs: Any) -> None:
    assert_equal(trained(HybridGRPO, make, n_steps, **(ours or {}), **kwargs), trained(PPO, make, n_steps, **kwargs))


@pytest.mark.parametrize("ours", ALONE, ids=str)
@pytest.mark.parametrize(("env_id", "n_envs"), [("CartPole-v1", 1), ("CartPole-v1", 4), ("Pendulum-v1", 3)])
def test_without_siblings_it_is_ppo(env_id: str, n_envs: int, ours: dict[str, Any]) -> None:
    # Pendulum's episodes are truncated after 200 steps, all three in one step
    check(lambda: make_vec_env(env_id, n_envs=n_envs), 120, ours)


@pytest.mark.parametrize("ours", ALONE, ids=str)
def test_without_siblings_it_is_ppo_on_half_cheetah_under_vec_normalize(ours: dict[str, Any]) -> None:
    options: dict[str, Any] = {"gamma": 0.98, "gae_lambda": 0.9, "ent_coef": 0.01, "batch_size": 128}
    envs: list[VecNormalize] = []

    def make() -> VecEnv:
        envs.append(VecNormalize(make_vec_env("HalfCheetah-v5", n_envs=4), gamma=0.98))
        return envs[-1]

    check(make, ours=ours, **options)
    mine, its = (pickle.dumps((env.obs_rms, env.ret_rms)) for env in envs)
    assert mine == its


@pytest.mark.filterwarnings("ignore:HybridGRPO trains without siblings")
def test_where_siblings_would_be_forks_it_is_ppo() -> None:
    pytest.importorskip("Box2D")
    check(lambda: VecNormalize(make_vec_env("LunarLander-v3", n_envs=2)), 120)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_without_siblings_it_is_ppo_where_episodes_are_truncated_and_terminated_inside_a_rollout(n_envs: int) -> None:
    check(lambda: make_vec_env(walk, n_envs=n_envs, env_kwargs={"max_steps": 9, "bound": 0.5}), ours={"n_samples": 1})


@pytest.mark.parametrize(
    ("policy", "space"),
    [
        ("MlpPolicy", spaces.Discrete(7)),
        ("MlpPolicy", spaces.MultiDiscrete([2, 2])),
        ("MlpPolicy", spaces.MultiBinary(2)),
        ("MultiInputPolicy", spaces.Dict({"a": spaces.Box(-9, 9, (2,)), "b": spaces.Discrete(5), "c": spaces.MultiBinary(2)})),
        ("CnnPolicy", spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)),
    ],
    ids=str,
)
def test_without_siblings_it_is_ppo_on_any_observations(policy: str, space: Any) -> None:
    def make() -> VecEnv:
        return make_vec_env(walk, n_envs=2, env_kwargs={"max_steps": 9, "observation_space": space})

    check(make, 24, {"n_samples": 1}, policy=policy, batch_size=16)


@pytest.mark.parametrize(
    "options",
    [
        {"use_sde": True, "sde_sample_freq": 4},
        {"use_sde": True, "policy_kwargs": {"squash_output": True}},
        {"clip_range_vf": 0.2, "normalize_advantage": False, "max_grad_norm": 0.1},
        {"target_kl": 1e-4},
        {"learning_rate": lambda progress: 1e-3 * progress, "clip_range": lambda progress: 0.2 * progress},
        {"batch_size": 60},
        {"batch_size": 500},
    ],
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_without_siblings_it_is_ppo_with_every_argument_of_ppo(options: dict[str, Any]) -> None:
    check(lambda: make_vec_env("Pendulum-v1", n_envs=2), 128, {"n_samples": 1}, **options)


@pytest.mark.parametrize("ours", ALONE, ids=str)
def test_without_siblings_it_is_ppo_in_subprocesses(ours: dict[str, Any]) -> None:
    check(lambda: make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable), ours=ours)


@pytest.mark.parametrize("ours", ALONE, ids=str)
def test_without_siblings_it_is_ppo_over_calls_of_learn_and_in_another_env(ours: dict[str, Any]) -> None:
    def thrice(algorithm: Any, **kwargs: Any) -> list[np.ndarray]:
        model = algorithm("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), n_steps=64, seed=1, n_epochs=2, **kwargs)
        model.learn(128)
        model.learn(128)
        model.learn(128, reset_num_timesteps=False)
        model.set_env(make_vec_env("CartPole-v1", n_envs=2, seed=5))
        model.learn(128, reset_num_timesteps=False)
        return parameters(model)

    assert_equal(thrice(HybridGRPO, **ours), thrice(PPO))


class Bonus(BaseCallback):
    """Pays for what PPO's callbacks can see, at every step and at the end of a rollout."""

    def _on_step(self) -> bool:
        self.locals["rewards"] += np.abs(self.locals["actions"]).reshape(len(self.locals["rewards"]), -1).mean(axis=1)
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.rewards += 0.1 * buffer.values
        buffer.compute_returns_and_advantage(self.locals["values"], self.locals["dones"])


def test_callbacks_that_change_rewards_change_them_as_ppos() -> None:
    def run(algorithm: Any, callback: Any, **kwargs: Any) -> list[np.ndarray]:
        # episodes terminate, none is truncated: PPO puts V of a truncated state into the rewards that the callback sees
        env = make_vec_env("CartPole-v1", n_envs=2)
        model = algorithm("MlpPolicy", env, n_steps=64, seed=1, n_epochs=2, **kwargs)
        return parameters(model.learn(384, callback))

    ours = run(HybridGRPO, Bonus())
    assert_equal(ours, run(PPO, Bonus()))
    assert any((one != other).any() for one, other in zip(ours, run(HybridGRPO, None), strict=True))
