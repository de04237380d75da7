"""The algorithm as its users see it."""

import ast
import inspect
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from tests.toy_envs import NoisyWalk, walk

ACTIONS: list[spaces.Space[Any]] = [
    spaces.Box(-1, 1, (2,), dtype=np.float32),
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
]
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "MlpPolicy": spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32),
    "MlpPolicy discrete": spaces.Discrete(7),
    "MlpPolicy binary": spaces.MultiBinary(2),
    "MlpPolicy multi": spaces.MultiDiscrete([2, 2]),
    "CnnPolicy": spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8),
    "MultiInputPolicy": spaces.Dict({"a": spaces.Box(-9, 9, (2,), dtype=np.float32), "b": spaces.Discrete(5)}),
}
SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 2, "seed": 0}


class Recorder(KVWriter):
    """Keeps every table that is logged."""

    def __init__(self) -> None:
        self.tables: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.tables.append(dict(key_values))

    def close(self) -> None: ...


def recorded(model: Any, total_timesteps: int, **kwargs: Any) -> list[dict[str, Any]]:
    recorder = Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(total_timesteps, **kwargs)
    return recorder.tables


def changed(model: HybridGRPO, total_timesteps: int = 64) -> bool:
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(total_timesteps)
    after = list(model.policy.parameters())
    assert all(th.isfinite(p).all() for p in after)
    return any(not th.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
@pytest.mark.parametrize("horizon", [1, 8, "episode"])
def test_every_action_space_trains(action_space: spaces.Space[Any], horizon: Any) -> None:
    env = make_vec_env(walk, n_envs=2, env_kwargs={"action_space": action_space, "max_steps": 7})
    assert changed(HybridGRPO("MlpPolicy", env, branch_horizon=horizon, **SMALL), 128)


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("horizon", [1, 8])
def test_every_observation_space_trains(name: str, horizon: Any) -> None:
    env = make_vec_env(walk, n_envs=2, env_kwargs={"observation_space": OBSERVATIONS[name], "max_steps": 7})
    assert changed(HybridGRPO(name.split()[0], env, branch_horizon=horizon, **SMALL), 128)


@pytest.mark.parametrize(
    "options",
    [
        {"branch_horizon": 1, "advantage_estimator": "paper", "reward_transform": "tanh"},
        {"branch_horizon": 1, "advantage_estimator": "grpo"},
        {"branch_horizon": 8, "advantage_estimator": "grpo", "gamma": 1.0},
        {"branch_horizon": "episode", "group_baseline": 1.0},
        {"branch_horizon": 64, "group_baseline": 0, "reward_transform": np.arctan},
        {"use_sde": True, "sde_sample_freq": 4, "policy_kwargs": {"squash_output": True}},
        {"branch_horizon": 1, "use_sde": True, "target_kl": 0.01, "clip_range_vf": 0.2},
        {"policy_kwargs": {"share_features_extractor": False, "net_arch": {"pi": [8], "vf": [8, 8]}}, "branch_horizon": 1},
    ],
    ids=str,
)
def test_every_corner_trains(options: dict[str, Any]) -> None:
    env = make_vec_env(walk, n_envs=2, env_kwargs={"max_steps": 9})
    assert changed(HybridGRPO("MlpPolicy", env, **SMALL, **options), 128)


def test_without_critic_grpo_leaves_the_critic_alone() -> None:
    model = HybridGRPO("MlpPolicy", walk(), advantage_estimator="grpo", branch_horizon=64, **SMALL)
    critic = [p.detach().clone() for p in model.policy.value_net.parameters()]
    assert changed(model)
    assert all(th.equal(one, other) for one, other in zip(critic, model.policy.value_net.parameters(), strict=True))
    assert np.isnan(model.logger.name_to_value["train/explained_variance"])


@pytest.mark.parametrize(
    "options", [{}, {"branch_horizon": 1}, {"branch_horizon": 1, "advantage_estimator": "paper"}], ids=str
)
def test_identity_discrete(options: dict[str, Any]) -> None:
    """Learns to name the number that it sees."""
    env = make_vec_env(lambda: IdentityEnv(ep_length=50), n_envs=1)
    arguments: dict[str, Any] = {"n_steps": 256, "gamma": 0.4, "ent_coef": 0.01, "learning_rate": 2e-3, **options}
    model = HybridGRPO("MlpPolicy", env, seed=0, **arguments).learn(4_096)
    assert float(evaluate_policy(model, env, 10, warn=False)[0]) > 45  # type: ignore[arg-type]


def test_identity_box() -> None:
    env = make_vec_env(lambda: IdentityEnvBox(eps=0.5, ep_length=50), n_envs=1)
    model = HybridGRPO("MlpPolicy", env, n_steps=512, gamma=0.4, seed=0, learning_rate=3e-3).learn(8_192)
    assert float(evaluate_policy(model, env, 10, warn=False)[0]) > 45  # type: ignore[arg-type]


def test_a_fixed_baseline_is_logged() -> None:
    env = make_vec_env(walk, n_envs=2)
    tables = recorded(HybridGRPO("MlpPolicy", env, branch_horizon=64, group_baseline=0.25, **SMALL), 256)
    assert tables[-1]["train/group_beta"] == 0.25


def test_shared_noise_is_removed_by_the_baseline() -> None:
    """The wind moves the reward far more than the action does, and all members live through the same wind."""
    tables = recorded(
        HybridGRPO("MlpPolicy", walk(max_steps=200, bound=99), branch_horizon=64, **{**SMALL, "n_steps": 1024}), 6144
    )
    assert tables[-1]["train/group_variance_removed"] > 0.5 and tables[-1]["train/group_beta"] > 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"branch_horizon": 2},
        {"n_samples": 2},
        {"n_samples": 1},
        {"group_baseline": 0.0},
        {"reward_transform": "tanh"},
        {"advantage_estimator": "grpo"},
        {"branch_horizon": 1, "action_selection": "greedy"},
    ],
    ids=str,
)
def test_what_is_changed_between_two_trainings_counts(changes: dict[str, Any]) -> None:
    """As with the attributes of PPO: from there on the model is one that was made with them."""

    def model_of(**arguments: Any) -> HybridGRPO:
        arguments = {"branch_horizon": 16, **arguments}
        return HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2, seed=0), **SMALL, adapt_rollouts=False, **arguments)

    changing, made_with = model_of(), model_of(**changes)
    vars(changing).update(changes)
    made_with.policy.load_state_dict(changing.policy.state_dict())
    for model in (changing, made_with):
        model.set_random_seed(0)
        model.learn(256)
    for ours, theirs in zip(changing.policy.parameters(), made_with.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)
    before = [one.clone() for one in changing.policy.parameters()]
    vars(changing).update(branch_horizon=16, **({"action_selection": "on_policy"} if "action_selection" in changes else {}))
    changing.learn(256, reset_num_timesteps=False)
    assert not all(map(th.equal, before, changing.policy.parameters()))


class Change(BaseCallback):
    """Changes arguments in the middle of a training, and notes the groups of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        self.seen.append((model.rollout_buffer.n_samples, "train/grouped" in self.logger.name_to_value))
        model.n_samples, model.branch_horizon = 2, 8


def test_what_a_callback_changes_of_groups_counts_from_the_next_training() -> None:
    change = Change()
    model = HybridGRPO("MlpPolicy", walk(), **{**SMALL, "n_samples": 4}).learn(192, callback=change, log_interval=100)
    assert change.seen == [(4, False), (4, True), (4, True)]
    assert model.learn(64).rollout_buffer.n_samples == 2


def test_learn_needs_no_argument() -> None:
    class StopAtOnce(BaseCallback):
        def _on_step(self) -> bool:
            return False

    model = HybridGRPO("MlpPolicy", walk(), **SMALL)
    model.learn(callback=StopAtOnce())
    assert model._total_timesteps == 100_000


def test_subprocesses_and_stacked_frames() -> None:
    env = make_vec_env(walk, n_envs=2, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    model = HybridGRPO("MlpPolicy", VecFrameStack(VecNormalize(env), 3), branch_horizon=4, **SMALL)
    assert changed(model, 64)
    env.close()


@pytest.mark.parametrize("horizon", [1, 8])
def test_the_same_seed_gives_the_same_model(horizon: Any) -> None:
    def run() -> list[np.ndarray]:
        model = HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2), branch_horizon=horizon, **SMALL).learn(96)
        return [p.detach().numpy().copy() for p in model.policy.parameters()]

    for one, other in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_attributes_that_a_vec_env_sets_reach_the_env() -> None:
    env = DummyVecEnv([NoisyWalk])
    HybridGRPO("MlpPolicy", env, **SMALL)
    env.set_attr("bound", 7.0)
    assert env.get_attr("unwrapped")[0].bound == 7.0


@pytest.mark.parametrize("kwargs", [HybridGRPO.paper_kwargs(), HybridGRPO.grpo_kwargs()], ids=["paper", "grpo"])
def test_presets_are_literals_that_train(kwargs: dict[str, Any]) -> None:
    assert ast.literal_eval(repr(kwargs)) == kwargs
    model = HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2), **{**SMALL, **kwargs}).learn(32)
    assert {name: getattr(model, name) for name in kwargs} == kwargs


def test_a_preset_can_be_changed_without_changing_the_next() -> None:
    HybridGRPO.paper_kwargs()["n_samples"] = 99
    assert HybridGRPO.paper_kwargs()["n_samples"] == 4


def test_logs_have_ppos_keys_and_those_of_groups() -> None:
    theirs = recorded(PPO("MlpPolicy", make_vec_env(walk, n_envs=2), **SMALL), 384)
    ours = recorded(HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2), **SMALL), 384)
    added = {"time/executed_steps", "train/grouped", "train/group_beta", "train/group_variance_removed"}
    added.add("train/gradient_variance_ratio")
    assert set(ours[-1]) == set(theirs[-1]) | added
    assert ours[-1]["time/total_timesteps"] == theirs[-1]["time/total_timesteps"] == 384
    assert ours[-1]["train/n_updates"] == theirs[-1]["train/n_updates"]
    assert ours[-1]["time/executed_steps"] == 3 * 128 // 4  # the check has seen the noise
    assert 0 <= ours[-1]["train/group_beta"] <= 1


def test_the_log_of_one_member_has_ppos_keys_and_the_executed_steps() -> None:
    theirs = recorded(PPO("MlpPolicy", walk(), **SMALL), 128)
    ours = recorded(HybridGRPO("MlpPolicy", walk(), n_samples=1, **SMALL), 128)
    assert set(ours[-1]) == set(theirs[-1]) | {"time/executed_steps"}


def test_episodes_are_those_of_member_0() -> None:
    model = HybridGRPO("MlpPolicy", walk(max_steps=8, bound=99), branch_horizon=8, **SMALL).learn(256)
    assert model.ep_info_buffer is not None
    assert [info["l"] for info in model.ep_info_buffer] == [8] * 8


@pytest.mark.parametrize("horizon", [4, "episode"])
def test_normalisation_statistics_are_those_of_member_0(horizon: Any) -> None:
    env = VecNormalize(make_vec_env(walk, n_envs=2))
    HybridGRPO("MlpPolicy", env, branch_horizon=horizon, **SMALL).learn(256)
    # one observation an env at the reset, and one at each of 32 steps
    assert isinstance(env.obs_rms, RunningMeanStd)
    assert env.obs_rms.count == pytest.approx(66, abs=0.01)


@pytest.mark.parametrize("horizon", [1, 8, "episode", "auto"])
def test_learning_in_two_calls_is_learning_in_one(horizon: Any) -> None:
    def run(calls: list[int]) -> list[np.ndarray]:
        model = HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2), branch_horizon=horizon, **SMALL)
        for number, steps in enumerate(calls):
            model.learn(steps, reset_num_timesteps=number == 0)
        return [p.detach().numpy().copy() for p in model.policy.parameters()]

    for one, other in zip(run([384]), run([256, 128]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ctrl_c_leaves_a_usable_model_and_env() -> None:
    class Interrupt(NoisyWalk):
        left = 300  # steps, siblings' included; on the class, where no copy has one of its own

        def step(self, action: Any) -> Any:
            type(self).left -= 1
            if type(self).left == 0:
                raise KeyboardInterrupt
            return super().step(action)

    model = HybridGRPO("MlpPolicy", Interrupt(), **SMALL, branch_horizon=8, branching_check=False)
    with pytest.raises(KeyboardInterrupt):
        model.learn(10_000)
    assert 0 < model.num_timesteps <= 300
    assert model.predict(np.zeros(2, dtype=np.float32))[0].shape == (2,)
    assert changed(model, 128)


def test_another_env_with_another_number_of_groups_is_refused_and_one_like_the_first_trained_in() -> None:
    model = HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2), branch_horizon=4, **SMALL).learn(128)
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env(walk, n_envs=3))
    other = make_vec_env(walk, n_envs=2)
    model.set_env(other)
    model.learn(256, reset_num_timesteps=False)
    assert sum(len(lengths) for lengths in other.env_method("get_episode_lengths")) > 0
    assert model.num_timesteps == 384


@pytest.mark.parametrize("transform", ["normalize", "scale", "tanh", ["scale", "tanh"]], ids=str)
def test_transforms_go_through_grouped_and_single_rollouts(transform: Any) -> None:
    env = make_vec_env(walk, n_envs=2)
    model = HybridGRPO("MlpPolicy", env, reward_transform=transform, branching_check=False, **SMALL)
    assert changed(model, 128)  # a single one: no check has seen the noise
    assert model.rollout_buffer.n_samples == 1
    model.auto_grouping.see_noise(True)
    assert changed(model, 128)
    assert model.rollout_buffer.n_samples == 4


class Again(BaseCallback):
    """Computes advantages again, as callbacks do that have changed rewards."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        before = buffer.advantages.copy()
        buffer.compute_returns_and_advantage(self.locals["values"], self.locals["dones"])
        np.testing.assert_array_equal(buffer.advantages, before)
        buffer.rewards += 1.0
        buffer.compute_returns_and_advantage(self.locals["values"], self.locals["dones"])
        assert (buffer.returns > 0.5 + buffer.values - np.abs(before).max() * 9).all() and (buffer.advantages != before).any()


@pytest.mark.parametrize(
    "options", [{}, {"branch_horizon": 4}, {"branch_horizon": 1, "reward_transform": "normalize"}], ids=str
)
def test_advantages_can_be_computed_again(options: dict[str, Any]) -> None:
    HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2), **SMALL, **options).learn(256, Again())


def test_it_is_an_algorithm_of_sb3_with_all_of_ppos_arguments() -> None:
    theirs, ours = (inspect.signature(one).parameters for one in (PPO, HybridGRPO))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    own = {"n_samples", "branch_horizon", "advantage_estimator", "group_baseline", "reward_transform"}
    own |= {"action_selection", "selection_temperature", "branching_check", "adapt_rollouts"}
    assert set(ours) - set(theirs) == own
    model = HybridGRPO("MlpPolicy", walk(), 1e-3, 32)  # in PPO's order
    assert isinstance(model, PPO) and (model.learning_rate, model.n_steps) == (1e-3, 32)
