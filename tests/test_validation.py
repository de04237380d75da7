"""Bad arguments are refused before anything is built, with what was received, what is needed and how to fix it."""

import multiprocessing
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching.trial import TRIAL_STEPS
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.validation import check_arguments, check_batches
from tests.toy_envs import NoisyWalk, walk

GOOD: dict[str, Any] = {
    "n_samples": 4,
    "branch_horizon": 64,
    "advantage_estimator": "hybrid",
    "group_baseline": "auto",
    "batch_size": 64,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_samples": 1},
        {"n_samples": np.int64(2), "branch_horizon": np.int32(1)},
        {"branch_horizon": "episode", "group_baseline": 0},
        {"branch_horizon": "free"},
        {"branch_horizon": "auto"},
        {"branch_horizon": 1, "advantage_estimator": "paper"},
        {"branch_horizon": 8, "advantage_estimator": "paper"},
        {"branch_horizon": "episode", "advantage_estimator": "paper_per_sample"},
        {"advantage_estimator": "grpo"},
        {"group_baseline": np.float64(0.5)},
        {"group_baseline": np.float32(0.5)},
        {"group_baseline": 1},
    ],
    ids=str,
)
def test_good_arguments(changes: dict[str, Any]) -> None:
    check_arguments(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"n_samples": 0}, "Use n_samples=4"),
        ({"n_samples": -1}, "Use n_samples=4"),
        ({"n_samples": 2.0}, "whole number"),
        ({"n_samples": True}, "whole number"),
        ({"n_samples": "4"}, "whole number"),
        ({"branch_horizon": 0}, "Use branch_horizon=64"),
        ({"branch_horizon": 1.5}, "whole number"),
        ({"branch_horizon": "epsiode"}, "'episode' or 'free' or 'auto'"),
        ({"branch_horizon": None}, "'episode' or 'free' or 'auto'"),
        ({"advantage_estimator": "gae"}, "one of 'hybrid', 'paper', 'paper_per_sample', 'grpo'"),
        ({"advantage_estimator": "paper", "n_samples": 1, "branch_horizon": 64}, "branch_horizon=1"),
        ({"advantage_estimator": "paper", "branch_horizon": "auto"}, "1 is the paper's"),
        ({"advantage_estimator": "paper", "branch_horizon": "free"}, "'episode' for"),
        ({"advantage_estimator": "paper_per_sample", "branch_horizon": "auto"}, "'episode' for"),
        ({"advantage_estimator": "grpo", "n_samples": 1}, "n_samples of at least 2"),
        ({"advantage_estimator": "grpo", "branch_horizon": "free"}, "other than 'free'"),
        ({"group_baseline": -0.1}, "between 0"),
        ({"group_baseline": 1.01}, "between 0"),
        ({"group_baseline": float("nan")}, "between 0"),
        ({"group_baseline": "learned"}, "must be 'auto'"),
        ({"group_baseline": True}, "must be 'auto'"),
        ({"group_baseline": None}, "must be 'auto'"),
        ({"group_baseline": 0.5, "n_samples": 1}, "would do nothing"),
        ({"group_baseline": 0.5, "branch_horizon": "free"}, "would do nothing"),
        ({"group_baseline": 0.5, "branch_horizon": "auto"}, "what the learned baseline"),
        ({"group_baseline": 0.5, "advantage_estimator": "grpo", "branch_horizon": 64}, "would do nothing"),
        ({"branch_horizon": 1, "batch_size": 3}, "at least 4"),
        ({"batch_size": 0}, "Use batch_size=64"),
        ({"batch_size": 64.0}, "Use batch_size=64"),
    ],
    ids=str,
)
def test_bad_arguments(changes: dict[str, Any], fix: str) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=re.escape(fix)) as caught:
        check_arguments(**{**GOOD, **changes})
    assert str(caught.value).startswith("Received ") and name in str(caught.value) and str(value) in str(caught.value)
    if name != "batch_size":
        with pytest.raises(ValueError, match=re.escape(fix)):
            HybridGRPO("MlpPolicy", "CartPole-v1", **changes)


def test_the_check_is_on_or_off() -> None:
    with pytest.raises(ValueError, match=r"Received branching_check='no': it must be True or False"):
        HybridGRPO("MlpPolicy", "CartPole-v1", branching_check="no")  # type: ignore[arg-type]


def test_batches() -> None:
    check_batches(64, True, 32, 2, 4, False)
    check_batches(1, False, 1, 1, 1, False)
    with pytest.raises(ValueError, match="batch_size=1 "):
        check_batches(1, True, 32, 2, 4, False)
    with pytest.raises(ValueError, match="= 1: both must be at least 2"):
        check_batches(64, True, 1, 1, 1, False)
    with pytest.warns(UserWarning, match="truncated mini-batch of size 4 in every epoch"):
        check_batches(20, True, 4, 2, 3, False)
    with pytest.warns(UserWarning, match="which therefore has 63 samples"):
        check_batches(64, True, 21, 1, 3, True)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("tan", "'tanh'"),
        (3, "reward_transform=3"),
        (lambda rewards: rewards.mean(axis=2), "shape"),
        (lambda rewards: np.log(-rewards), "NaN"),
        (lambda rewards: 1 / (rewards - 1), "infinity"),
    ],
)
def test_bad_transforms_are_refused_at_once(transform: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridGRPO("MlpPolicy", "CartPole-v1", reward_transform=transform)


def test_a_transform_that_gives_nan_later_is_refused_before_the_update() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=16, batch_size=16, reward_transform=lambda rewards: np.log(rewards - 0.9))
    before = [p.detach().clone() for p in model.policy.parameters()]
    with pytest.raises(ValueError, match="NaN"):
        model.learn(16)
    assert all((one == other).all() for one, other in zip(before, model.policy.parameters(), strict=True))


def test_what_ppo_refuses_by_an_assertion_is_both_kinds_of_error() -> None:
    for arguments in ({"clip_range_vf": -0.2}, {"batch_size": 1}, {"n_steps": 1, "n_samples": 1}):
        for kind in (AssertionError, ValueError):
            with pytest.raises(kind, match="Received"):
                HybridGRPO("MlpPolicy", "CartPole-v1", **arguments)


def test_bad_clip_range_vf_and_buffer_class() -> None:
    with pytest.raises(ValueError, match="clip_range_vf=-1"):
        HybridGRPO("MlpPolicy", "CartPole-v1", clip_range_vf=-1)
    with pytest.raises(ValueError, match="HybridRolloutBuffer"):
        HybridGRPO("MlpPolicy", "CartPole-v1", rollout_buffer_class=RolloutBuffer)


class Unknown(VecEnvWrapper):
    """A VecEnv wrapper that nobody knows."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


class Stream(NoisyWalk):
    """An env that reads its noise from another process, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, _ = multiprocessing.Pipe()


def test_envs_that_cannot_be_branched_are_refused_at_once_and_train_with_one_member() -> None:
    small: dict[str, Any] = {"n_steps": 16, "batch_size": 16}
    with pytest.raises(BranchingError, match=r"Stream\.noise holds a multiprocessing\.connection\.Connection.*n_samples=1"):
        HybridGRPO("MlpPolicy", Stream(), **small)
    HybridGRPO("MlpPolicy", Stream(), n_samples=1, **small).learn(16)
    with pytest.raises(ValueError, match="wrapped in Unknown"):
        HybridGRPO("MlpPolicy", Unknown(make_vec_env(walk)), **small)
    HybridGRPO("MlpPolicy", Unknown(make_vec_env(walk)), n_samples=1, **small).learn(16)


def test_set_env_refuses_them_too() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=16, batch_size=16)
    with pytest.raises(BranchingError, match="Stream"):
        model.set_env(Stream())


def test_an_env_refused_by_set_env_leaves_none_to_train_in() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=16, batch_size=16).learn(16)
    with pytest.raises(BranchingError):
        model.set_env(Stream())
    with pytest.raises(ValueError, match="set_env"):
        model.learn(16)


class Doubled(gym.RewardWrapper[Any, Any]):
    """A wrapper that siblings must not escape."""

    def reward(self, reward: Any) -> float:
        return 2.0 * float(reward)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_siblings_do_not_escape_a_wrapper_put_above_make_branchable(kind: Any) -> None:
    env = kind([lambda: Doubled(make_branchable(walk()))])
    with pytest.raises(ValueError, match=r"below Doubled.*make_branchable\(Wrapper\(env\)\)"):
        HybridGRPO("MlpPolicy", env)
    env.close()


class Scaling(Monitor[Any, Any]):
    """A recorder that does more than record."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, 2.0 * float(reward), *rest)


class ScalingVecEnv(DummyVecEnv):
    """A VecEnv that does more than step its envs."""

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        return observations, 2 * rewards, dones, infos


def test_what_siblings_would_miss_in_a_subclass_is_refused() -> None:
    with pytest.raises(BranchingError, match=r"Scaling records episodes.*step\(\) of its own"):
        HybridGRPO("MlpPolicy", Scaling(walk()))
    with pytest.raises(ValueError, match="ScalingVecEnv, in which no siblings"):
        HybridGRPO("MlpPolicy", ScalingVecEnv([walk]))


def test_an_update_that_spoils_the_policy_is_an_error() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=32, batch_size=16, n_epochs=3, learning_rate=1e30)
    with pytest.raises(ValueError, match="Lower the learning rate"):
        model.learn(64)


def test_subprocesses_that_are_not_branchable() -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    with pytest.raises(ValueError, match="wrapper_class=make_branchable"):
        HybridGRPO("MlpPolicy", env)
    env.close()


def test_an_env_that_draws_on_a_screen() -> None:
    class Shown(NoisyWalk):
        def __init__(self) -> None:
            super().__init__()
            self.metadata = {"render_modes": ["human"]}
            self.render_mode = "human"

        def render(self) -> None: ...

    with pytest.raises(ValueError, match="render_mode='human'"):
        HybridGRPO("MlpPolicy", Shown())


def test_an_env_that_says_human_and_draws_nothing_trains() -> None:
    env = BitFlippingEnv(n_bits=3)  # SB3's own; "human" is its default, and among no modes that it declares
    assert env.render_mode == "human"
    model = HybridGRPO("MultiInputPolicy", env, n_steps=16, batch_size=16).learn(16)
    assert model.num_simulator_steps == 64


def test_nan_of_a_sibling_is_named() -> None:
    class Breaks(gym.Wrapper[Any, Any, Any, Any]):
        """Gives NaN at its seventh step after the trial of copies, counted over all members."""

        steps = -3 * TRIAL_STEPS

        def step(self, action: Any) -> Any:
            Breaks.steps += 1
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs, float("nan") if Breaks.steps == 7 else reward, terminated, truncated, info

    # four members: steps 1 to 3 are those of the siblings, 4 of member 0, 5 to 7 of the siblings again
    model = HybridGRPO("MlpPolicy", Breaks(walk()), n_steps=16, batch_size=16, branching_check=False)
    with pytest.raises(BranchingError, match=r"reward of member 3 \(a sibling\) of env 0 is NaN at step 2"):
        model.learn(16)


@pytest.mark.parametrize("horizon", ["free", "auto"])
@pytest.mark.parametrize("transform", ["group", ["tanh", "group"]])
def test_rewards_of_a_group_need_a_group(transform: Any, horizon: Any) -> None:
    with pytest.raises(ValueError, match="free ones never do"):
        HybridGRPO("MlpPolicy", walk(), n_steps=16, batch_size=16, reward_transform=transform, branch_horizon=horizon)
