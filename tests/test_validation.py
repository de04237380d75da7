"""Bad arguments are refused before anything is built, with what was received, what is needed and how to fix it."""

import multiprocessing
import re
import types
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper

from sb3_hybrid_grpo.buffers import HybridDictRolloutBuffer, HybridRolloutBuffer, MaskableHybridRolloutBuffer
from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.validation import check_arguments, check_no_longer, executed_steps
from tests.toy_envs import NoisyWalk, walk

GOOD: dict[str, Any] = {
    "n_samples": 4,
    "branch_horizon": 64,
    "advantage_estimator": "hybrid",
    "group_baseline": "auto",
    "reward_transform": None,
    "action_selection": "on_policy",
    "selection_temperature": 1.0,
    "branching_check": True,
    "ent_coef": 0.0,
    "n_steps": 2048,
    "adapt_rollouts": True,
}


def check(changes: dict[str, Any]) -> None:
    check_arguments(types.SimpleNamespace(**{**GOOD, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_samples": 1},
        {"n_samples": np.int64(2), "branch_horizon": np.int32(1)},
        {"branch_horizon": "episode", "group_baseline": 0},
        {"branch_horizon": "auto"},
        {"branch_horizon": 1, "advantage_estimator": "paper"},
        {"branch_horizon": 8, "advantage_estimator": "paper"},
        {"branch_horizon": "episode", "advantage_estimator": "paper_per_sample"},
        {"advantage_estimator": "grpo"},
        {"group_baseline": np.float64(0.5)},
        {"group_baseline": np.float32(0.5)},
        {"group_baseline": 1},
        {"n_samples": 1, "adapt_rollouts": False},
    ],
    ids=str,
)
def test_good_arguments(changes: dict[str, Any]) -> None:
    check(changes)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"n_samples": 0}, "Use n_samples=4"),
        ({"n_samples": -1}, "Use n_samples=4"),
        ({"n_samples": 2.0}, "whole number"),
        ({"n_samples": True}, "whole number"),
        ({"n_samples": "4"}, "whole number"),
        ({"branch_horizon": 0}, "Use branch_horizon=256"),
        ({"branch_horizon": 1.5}, "whole number"),
        ({"branch_horizon": "epsiode"}, "'episode' or 'auto'"),
        ({"branch_horizon": None}, "'episode' or 'auto'"),
        ({"advantage_estimator": "gae"}, "one of 'hybrid', 'paper', 'paper_per_sample', 'grpo'"),
        ({"advantage_estimator": "paper", "n_samples": 1, "branch_horizon": 64}, "branch_horizon=1"),
        ({"advantage_estimator": "paper", "branch_horizon": "auto"}, "branch_horizon=1 (as in the paper)"),
        ({"advantage_estimator": "paper_per_sample", "branch_horizon": "auto"}, "or 'episode'"),
        ({"advantage_estimator": "grpo", "n_samples": 1}, "n_samples of at least 2"),
        ({"group_baseline": -0.1}, "between 0"),
        ({"group_baseline": 1.01}, "between 0"),
        ({"group_baseline": float("nan")}, "between 0"),
        ({"group_baseline": "learned"}, "must be 'auto'"),
        ({"group_baseline": True}, "must be 'auto'"),
        ({"group_baseline": None}, "must be 'auto'"),
        ({"group_baseline": 0.5, "n_samples": 1}, "has no effect"),
        ({"n_steps": 3}, "n_steps of at least 4"),
        ({"branching_check": "no"}, "must be True or False"),
        ({"adapt_rollouts": 0}, "Leave it at True"),
        ({"adapt_rollouts": 1.5}, "Leave it at True"),
        ({"adapt_rollouts": 64, "n_samples": 1}, "has no effect"),
        ({"adapt_rollouts": 64, "advantage_estimator": "grpo", "branch_horizon": 64}, "has no effect"),
        ({"group_baseline": 0.5, "advantage_estimator": "grpo", "branch_horizon": 64}, "has no effect"),
    ],
    ids=str,
)
def test_bad_arguments(changes: dict[str, Any], fix: str) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=re.escape(fix)) as caught:
        check(changes)
    assert str(caught.value).startswith("Received ") and name in str(caught.value) and str(value) in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(fix)):
        HybridGRPO("MlpPolicy", "CartPole-v1", **changes)


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
    model = HybridGRPO("MlpPolicy", walk(), n_steps=64, batch_size=16, reward_transform=lambda rewards: np.log(rewards - 0.9))
    before = [p.detach().clone() for p in model.policy.parameters()]
    with pytest.raises(ValueError, match="NaN"):
        model.learn(64)
    assert all((one == other).all() for one, other in zip(before, model.policy.parameters(), strict=True))


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
    small: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "branch_horizon": 8}
    with pytest.raises(BranchingError, match=r"Stream\.noise leads to another process.*n_samples=1"):
        HybridGRPO("MlpPolicy", Stream(), **small)
    HybridGRPO("MlpPolicy", Stream(), n_samples=1, **small).learn(64)
    with pytest.raises(ValueError, match="wrapped in Unknown"):
        HybridGRPO("MlpPolicy", Unknown(make_vec_env(walk)), **small)
    HybridGRPO("MlpPolicy", Unknown(make_vec_env(walk)), n_samples=1, **small).learn(64)


def test_set_env_refuses_them_too() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=64, batch_size=16, branch_horizon=8)
    with pytest.raises(BranchingError, match="Stream"):
        model.set_env(Stream())


def test_an_env_refused_by_set_env_leaves_none_to_train_in() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=64, batch_size=16, branch_horizon=8).learn(64)
    with pytest.raises(BranchingError):
        model.set_env(Stream())
    with pytest.raises(ValueError, match="set_env"):
        model.learn(64)


class Doubled(gym.RewardWrapper[Any, Any]):
    """A wrapper that siblings must not escape."""

    def reward(self, reward: Any) -> float:
        return 2.0 * float(reward)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_siblings_do_not_escape_a_wrapper_put_above_make_branchable(kind: Any) -> None:
    env = kind([lambda: Doubled(make_branchable(walk()))])
    with pytest.raises(ValueError, match=r"below Doubled.*make_branchable\(Wrapper\(env\)\)"):
        HybridGRPO("MlpPolicy", env, branch_horizon=8)
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
        HybridGRPO("MlpPolicy", Scaling(walk()), branch_horizon=8)
    with pytest.raises(ValueError, match="ScalingVecEnv, in which no siblings"):
        HybridGRPO("MlpPolicy", ScalingVecEnv([walk]), branch_horizon=8)


def test_an_update_that_spoils_the_policy_is_an_error() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=64, batch_size=16, n_epochs=3, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"Lower the learning rate|invalid values"):
        model.learn(256)


def test_subprocesses_that_are_not_branchable() -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    with pytest.raises(ValueError, match="wrapper_class=make_branchable"):
        HybridGRPO("MlpPolicy", env, branch_horizon=8)
    env.close()


def test_an_env_that_draws_on_a_screen() -> None:
    class Shown(NoisyWalk):
        def __init__(self) -> None:
            super().__init__()
            self.metadata = {"render_modes": ["human"]}
            self.render_mode = "human"

        def render(self) -> None: ...

    with pytest.raises(ValueError, match="render_mode='human'"):
        HybridGRPO("MlpPolicy", Shown(), branch_horizon=8)


def test_an_env_that_says_human_and_draws_nothing_trains() -> None:
    env = BitFlippingEnv(n_bits=3)  # SB3's own; "human" is its default, and among no modes that it declares
    assert env.render_mode == "human"
    model = HybridGRPO("MultiInputPolicy", env, n_steps=64, batch_size=16).learn(64)
    assert model.num_timesteps == 64


def test_nan_of_a_sibling_is_named() -> None:
    class Breaks(gym.Wrapper[Any, Any, Any, Any]):
        """Gives NaN at its seventh step, counted over all members."""

        steps = 0

        def step(self, action: Any) -> Any:
            Breaks.steps += 1
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs, float("nan") if Breaks.steps == 7 else reward, terminated, truncated, info

    # four members: steps 1 to 3 are those of the siblings, 4 of member 0, 5 to 7 of the siblings again
    model = HybridGRPO("MlpPolicy", Breaks(walk()), n_steps=64, batch_size=16, branch_horizon=8, branching_check=False)
    with pytest.raises(BranchingError, match=r"reward of member 3 \(a sibling\) of env 0 is NaN at step 2"):
        model.learn(64)


@pytest.mark.parametrize(
    ("n_steps", "n_members", "executed"),
    [(2048, 4, 512), (2048, 1, 2048), (100, 3, 33), (64, 4, 16), (32, 4, 16), (10, 4, 10), (16, 16, 16), (4, 4, 4)],
)
def test_executed_steps_of_a_rollout(n_steps: int, n_members: int, executed: int) -> None:
    assert executed_steps(n_steps, n_members) == executed


@pytest.mark.parametrize(
    ("gone", "instead"),
    [
        ({"branch_horizon": "free"}, "n_samples times the envs"),
        ({"sampling_temperature": 2.0}, "raise ent_coef"),
        ({"ent_coef": "auto"}, "Use a number, as with PPO"),
        ({"target_entropy": 1.0}, "Use a number, as with PPO"),
    ],
    ids=str,
)
def test_what_is_gone_is_an_error_that_says_what_to_use_instead(gone: dict[str, Any], instead: str) -> None:
    for refuse in (check_no_longer, lambda arguments: HybridGRPO("MlpPolicy", "CartPole-v1", **arguments)):
        with pytest.raises(ValueError, match=instead) as error:
            refuse(gone)
        assert str(error.value).startswith("Received ") and "removed" in str(error.value)


def test_what_ppo_refuses_is_refused_in_its_words() -> None:
    refused: list[dict[str, Any]] = [{"clip_range_vf": -0.2}, {"batch_size": 1}, {"n_steps": 1, "n_samples": 1}]
    for arguments in refused:
        messages = []
        for algorithm in (HybridGRPO, PPO):
            theirs = {name: value for name, value in arguments.items() if algorithm is HybridGRPO or name != "n_samples"}
            with pytest.raises(AssertionError) as error:
                algorithm("MlpPolicy", "CartPole-v1", **theirs)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("given", [RolloutBuffer, HybridDictRolloutBuffer, MaskableHybridRolloutBuffer])
def test_a_buffer_that_does_not_fit_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=f"rollout_buffer_class={given.__name__}.*HybridRolloutBuffer"):
        HybridGRPO("MlpPolicy", "CartPole-v1", rollout_buffer_class=given)


def test_a_buffer_of_the_users_is_taken() -> None:
    own = type("Own", (HybridRolloutBuffer,), {})
    assert type(HybridGRPO("MlpPolicy", "CartPole-v1", rollout_buffer_class=own).rollout_buffer) is own


@pytest.mark.parametrize("transform", ["group", ["tanh", "group"]])
@pytest.mark.parametrize("shape", [{}, {"n_samples": 1, "branch_horizon": 8}], ids=str)
def test_rewards_of_a_group_need_a_group(transform: Any, shape: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="single rollouts have none"):
        HybridGRPO("MlpPolicy", walk(), n_steps=64, batch_size=16, reward_transform=transform, **shape)


def test_a_mistyped_argument_is_refused_in_the_name_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"HybridGRPO has no argument branch_horizn\. Did you mean branch_horizon\?"):
        HybridGRPO("MlpPolicy", walk(), branch_horizn=3)
    with pytest.raises(TypeError, match=r"HybridGRPO has no argument n_step, wings\. Did you mean n_steps\?"):
        HybridGRPO("MlpPolicy", walk(), wings=2, n_step=64)


def test_what_is_changed_between_two_trainings_is_checked_again() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=64, batch_size=16).learn(64)
    model.branch_horizon = "epsiode"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Received branch_horizon='epsiode'"):
        model.learn(64)


def test_a_notice_names_the_line_of_the_users_call() -> None:
    model = HybridGRPO("MlpPolicy", walk(), n_steps=66, batch_size=16, branch_horizon=8)
    with pytest.warns(UserWarning, match="a grouped rollout has 64 samples of each env.*use n_steps=64") as caught:
        model.learn(64)
    assert [one.filename for one in caught] == [__file__]
