"""What is saved, and what comes back."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, MaskableHybridGRPO
from tests.test_update import MaskedWalk
from tests.toy_envs import walk

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 2}


def new_env(seed: int) -> VecEnv:
    env = make_vec_env(walk, n_envs=2, seed=seed, env_kwargs={"max_steps": 9})
    return env


OPTIONS: list[dict[str, Any]] = [
    {"branch_horizon": 1},
    {"branch_horizon": 8},
    {"branch_horizon": "episode"},
    {},
    {"branch_horizon": 8, "advantage_estimator": "paper"},
    {"branch_horizon": 1, "action_selection": "softmax"},
    {"branch_horizon": 8, "reward_transform": "normalize"},
    {"branch_horizon": 8, "reward_transform": "scale"},
    {"branch_horizon": 8, "reward_transform": ["scale", np.tanh, "normalize"]},
    {"reward_transform": "scale"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_training_goes_on_after_a_load_as_it_would_have_without(
    tmp_path: Path, options: dict[str, Any], normalize: bool
) -> None:
    first = VecNormalize(new_env(0)) if normalize else new_env(0)
    model = HybridGRPO("MlpPolicy", first, **options, **SMALL).learn(256)
    model.save(tmp_path / "model")
    if normalize:
        first.save(str(tmp_path / "statistics.pkl"))  # type: ignore[attr-defined]

    def go_on(one: HybridGRPO) -> list[np.ndarray]:
        th.manual_seed(3)
        np.random.seed(3)
        one.learn(256, reset_num_timesteps=False)
        executed = one.num_timesteps // (5 if "action_selection" in options else 4)
        assert one.num_timesteps == 512 + (128 if "action_selection" in options else 0) or "branch_horizon" not in options
        assert one.num_executed_steps == executed or "branch_horizon" not in options
        return [p.detach().numpy().copy() for p in one.policy.parameters()]

    def fresh_env() -> VecEnv:
        # of the same seed for both, since a simulator is no part of a model; with the statistics that were saved
        env = new_env(1)
        return VecNormalize.load(str(tmp_path / "statistics.pkl"), env) if normalize else env

    model.set_env(fresh_env())
    unsaved = go_on(model)
    loaded = HybridGRPO.load(tmp_path / "model", env=new_env(9) if not normalize else VecNormalize(new_env(9)))
    loaded.set_env(fresh_env())
    for one, other in zip(unsaved, go_on(loaded), strict=True):
        np.testing.assert_array_equal(one, other)


def test_arguments_and_predictions_come_back(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {
        "n_samples": 3,
        "branch_horizon": 1,
        "advantage_estimator": "paper",
        "reward_transform": "tanh",
        "clip_range": 0.1,
    }
    model = HybridGRPO("MlpPolicy", new_env(0), **{**SMALL, "batch_size": 24}, **kwargs).learn(32)
    model.save(tmp_path / "model.zip")
    loaded = HybridGRPO.load(tmp_path / "model")
    for name in ("group_baseline", "n_steps", *(name for name in kwargs if name != "clip_range")):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.clip_range(1.0) == 0.1  # type: ignore[operator]
    obs = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    with pytest.raises(ValueError, match="set_env"):
        loaded.learn(10)


def test_a_function_as_transform_is_saved(tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", new_env(0), reward_transform=lambda rewards: rewards / 7, **SMALL)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=new_env(0))
    assert callable(loaded.reward_transform) and loaded.reward_transform(np.array([7.0])) == 1.0
    loaded.learn(32)


def test_hyperparameters_can_be_replaced_at_load(tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", new_env(0), **SMALL)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=new_env(0), n_samples=2, branch_horizon=4, learning_rate=0.0)
    loaded.learn(128)
    assert (loaded.num_timesteps, loaded.num_executed_steps) == (128, 64)


def test_unknown_arguments_are_refused_at_load(tmp_path: Path) -> None:
    HybridGRPO("MlpPolicy", new_env(0), **SMALL).save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"HybridGRPO has no argument branch_horizn\. Did you mean branch_horizon\?"):
        HybridGRPO.load(tmp_path / "model", branch_horizn=7)


@pytest.mark.parametrize(("ours", "theirs"), [(HybridGRPO, PPO), (MaskableHybridGRPO, MaskablePPO)])
def test_ppo_goes_on_from_a_file_with_its_own_buffer(ours: Any, theirs: Any, tmp_path: Path) -> None:
    """Its rollouts would get wrong advantages from ours, which is told of ends that PPO does not tell it."""
    env = make_vec_env(lambda: MaskedWalk(spaces.Discrete(3)))
    made = ours("MlpPolicy", env, **SMALL).learn(64)
    made.save(tmp_path / "model")
    assert type(theirs.load(tmp_path / "model", env).learn(64).rollout_buffer) is type(theirs("MlpPolicy", env).rollout_buffer)
    assert type(ours.load(tmp_path / "model", env).learn(64).rollout_buffer) is type(made.rollout_buffer)


def test_another_number_of_envs_at_load(tmp_path: Path) -> None:
    HybridGRPO("MlpPolicy", new_env(0), branch_horizon=4, **SMALL).save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=make_vec_env(walk, n_envs=3))
    loaded.learn(48)
    assert loaded.rollout_buffer.rewards.shape == (16, 12)


def test_nothing_of_the_simulator_is_in_the_zip(tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", new_env(0), **SMALL).learn(32)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = archive.read("data").decode()
    for word in ("_groups", '"_update"', '"_sampling"', 'rollout_buffer"', "Snapshot", "NoisyWalk", "BranchingWrapper"):
        assert word not in data


def test_save_to_an_open_file() -> None:
    model = HybridGRPO("MlpPolicy", new_env(0), **SMALL)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert HybridGRPO.load(file).n_samples == 4


def test_a_save_that_fails_keeps_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HybridGRPO("MlpPolicy", new_env(0), **SMALL)
    model.save(tmp_path / "model")
    good = (tmp_path / "model.zip").read_bytes()

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(th, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_a_file_that_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "latest.zip").symlink_to(tmp_path / "elsewhere" / "model.zip")
    HybridGRPO("MlpPolicy", new_env(0), **SMALL).save(tmp_path / "latest")
    assert (tmp_path / "latest.zip").is_symlink()
    assert HybridGRPO.load(tmp_path / "elsewhere" / "model").n_samples == SMALL.get("n_samples", 4)
