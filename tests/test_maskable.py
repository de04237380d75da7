"""Invalid action masking: every member asks in its own state, and with one member it is sb3-contrib's MaskablePPO."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, MaskableHybridGRPO, make_branchable
from sb3_hybrid_grpo.errors import BranchingError
from tests.test_parity_with_ppo import assert_equal, trained

HORIZONS: list[Any] = [1, 5, "episode", "auto"]
SMALL: dict[str, Any] = {"n_steps": 64, "n_epochs": 1, "batch_size": 32, "seed": 0}


class NeverTwice(gym.Env[Any, Any]):
    """
    Each of six actions is valid once an episode. What is left depends on what a member did itself, and another action raises.
    """

    def __init__(self, as_dict: bool = False) -> None:
        seen = spaces.Box(0, 1, (6,), np.float32)
        self.as_dict = as_dict
        self.observation_space = spaces.Dict({"left": seen}) if as_dict else seen
        self.action_space = spaces.Discrete(6)
        self.left = np.ones(6, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = np.ones(6, dtype=np.float32)
        return self._observe(), {}

    def _observe(self) -> Any:
        return {"left": self.left.copy()} if self.as_dict else self.left.copy()

    def step(self, action: Any) -> Any:
        if not self.left[action]:
            raise ValueError(f"action {action} is not valid in {self.left}")
        self.left[action] = 0
        reward = self.np_random.normal() + (1.0 if action == 5 - self.left.sum() else 0.0)
        # the last two are never taken, so that there is always a choice
        return self._observe(), reward, bool(self.left.sum() == 2), False, {}

    def action_masks(self) -> np.ndarray:
        if self.left.sum() <= 2:
            raise RuntimeError("nobody is to act where an episode has ended")
        return self.left.astype(bool)


class Noting(NeverTwice):
    """Notes the valid actions when it is asked for them, and its step reads the note."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.note = np.ones(6, dtype=bool)
        return super().reset(seed=seed, options=options)

    def action_masks(self) -> np.ndarray:
        self.note = super().action_masks()
        return self.note

    def step(self, action: Any) -> Any:
        observation, reward, *ends = super().step(action)
        return observation, reward + self.note.sum(), *ends


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_the_watch_is_asked_for_masks_too(kind: Any) -> None:
    env = make_vec_env(Noting, 2, vec_env_cls=kind, wrapper_class=make_branchable)
    MaskableHybridGRPO("MlpPolicy", env, branch_horizon=3, **SMALL).learn(256)
    env.close()


@pytest.mark.parametrize("env_class", [InvalidActionEnvDiscrete, InvalidActionEnvMultiDiscrete, InvalidActionEnvMultiBinary])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_one_member_is_maskable_ppo(env_class: Any, n_envs: int) -> None:
    def make() -> VecEnv:
        return make_vec_env(env_class, n_envs=n_envs, seed=0)  # their states are drawn from the action space

    assert_equal(trained(MaskableHybridGRPO, make, 64, n_samples=1), trained(MaskablePPO, make, 64))


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_no_member_takes_an_invalid_action(horizon: Any, vec_env: Any) -> None:
    env = make_vec_env(NeverTwice, 2, seed=0, vec_env_cls=vec_env, wrapper_class=make_branchable)
    model = MaskableHybridGRPO("MlpPolicy", VecNormalize(env), branch_horizon=horizon, **SMALL)
    model.learn(128 * 3)
    env.close()
    buffer: Any = model.rollout_buffer
    assert buffer.n_samples == 4
    # an update leaves the samples column by column
    masks, taken = buffer.action_masks.reshape(4, 2, 16, 6), buffer.actions.reshape(4, 2, 16, 1).astype(int)
    assert (masks[0] != masks[1]).any() == (horizon != 1)  # siblings had masks of their own
    assert np.take_along_axis(masks, taken, axis=3).all()


@pytest.mark.parametrize("options", [{"use_masking": False}, {}], ids=str)
def test_control_without_masks_they_would(options: dict[str, Any]) -> None:
    algorithm = MaskableHybridGRPO if options else HybridGRPO
    model: Any = algorithm("MlpPolicy", make_vec_env(NeverTwice, 2, seed=0), branch_horizon=5, **SMALL)
    with pytest.raises((ValueError, BranchingError), match="is not valid"):
        model.learn(64, **options)


def test_action_masker_and_the_callbacks_of_sb3_contrib(tmp_path: Path) -> None:
    def make() -> gym.Env[Any, Any]:
        return ActionMasker(NeverTwice(), lambda env: env.unwrapped.action_masks())  # type: ignore[attr-defined]

    env = make_vec_env(make, 2, seed=0)
    model = MaskableHybridGRPO("MlpPolicy", env, branch_horizon=5, **{**SMALL, "n_epochs": 4, "learning_rate": 3e-3})
    callback = MaskableEvalCallback(make_vec_env(make, 1, seed=1), eval_freq=64, n_eval_episodes=5, verbose=0)
    model.learn(128 * 30, callback=callback)
    assert len(callback.evaluations_results) == 0  # nothing is kept without a log path
    score, _ = evaluate_policy(model, make_vec_env(make, 1, seed=2), 50)
    assert isinstance(score, float) and score > 2.5  # 1 for each of four actions in order; a random policy has 0.9 or so

    model.save(tmp_path / "model")
    loaded = MaskableHybridGRPO.load(tmp_path / "model", env=env)
    left = np.ones((1, 6), dtype=np.float32)
    for mask in np.eye(6, dtype=bool):
        assert mask[loaded.predict(left, action_masks=mask[None])[0]].all()
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps + 128


def test_what_has_no_masks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ActionMasker.*use_masking=False"):
        MaskableHybridGRPO("MlpPolicy", "CartPole-v1", **SMALL).learn(32)
    MaskableHybridGRPO("MlpPolicy", "CartPole-v1", **SMALL).learn(64, use_masking=False)
    with pytest.raises(ValueError, match="MaskableActorCriticPolicy"):
        MaskableHybridGRPO(HybridGRPO.policy_aliases["MlpPolicy"], "CartPole-v1", **SMALL)
    with pytest.raises((ValueError, AssertionError), match=r"supports only|only supports"):
        MaskableHybridGRPO("MlpPolicy", "Pendulum-v1", **SMALL)


class Outside(NeverTwice):
    """Holds what only forks can save."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = (number for number in range(1_000))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("env_class", [NeverTwice, Outside])
def test_trials_before_the_training_take_valid_actions(env_class: Any, check: bool) -> None:
    env = make_vec_env(env_class, 1, seed=0)
    model = MaskableHybridGRPO("MlpPolicy", env, branch_horizon=4, branching_check=check, **SMALL)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.learn(32)
    said = [str(one.message) for one in seen]
    assert any("is a process" in one for one in said) == (env_class is Outside)
    assert not any("could not be checked" in one for one in said)
    assert env.get_attr("sibling_maker")[0].forks == (env_class is Outside)
    env.close()


def test_a_check_that_could_not_be_made_is_said() -> None:
    class Unmasked(NeverTwice):
        action_masks: Any = property()

    with pytest.warns(UserWarning, match=r"could not be checked.*is not valid.*action_masks\(\)"), pytest.raises(Exception):  # noqa: B017
        HybridGRPO("MlpPolicy", make_vec_env(Unmasked, 1, seed=0), branch_horizon=4, **SMALL).learn(32)
