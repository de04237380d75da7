"""What stands around a PPO that is trained: callbacks, loggers, files, videos, and the hubs that models go to."""

import csv
import importlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common import callbacks
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecVideoRecorder

from sb3_hybrid_grpo import HybridGRPO
from tests.toy_envs import NoisyWalk, walk

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "branch_horizon": 4}


def new_model(env: Any = None, **kwargs: Any) -> HybridGRPO:
    return HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2) if env is None else env, **{**SMALL, **kwargs})


def parameters(model: HybridGRPO) -> list[np.ndarray]:
    return [one.detach().numpy().copy() for one in model.policy.parameters()]


def assert_same(model: HybridGRPO, other: HybridGRPO) -> None:
    for one, two in zip(parameters(model), parameters(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_eval_callback_evaluates_under_the_statistics_of_the_training(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env(walk, n_envs=2))
    eval_env = VecNormalize(make_vec_env(walk), training=False, norm_reward=False)
    stop = callbacks.StopTrainingOnRewardThreshold(-1e9)
    evaluated = callbacks.EvalCallback(
        eval_env,
        callback_on_new_best=stop,
        eval_freq=64,
        n_eval_episodes=2,
        log_path=str(tmp_path),
        verbose=0,
        best_model_save_path=str(tmp_path),
    )
    model = new_model(env).learn(1280, callback=evaluated)
    assert model.num_timesteps == 128  # the threshold is reached at once
    assert isinstance(eval_env.obs_rms, RunningMeanStd) and isinstance(env.obs_rms, RunningMeanStd)
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [128]
    # what was best then is the model of that moment, which stopped before an update
    assert_same(HybridGRPO.load(tmp_path / "best_model"), model)


def test_checkpoints_can_be_gone_on_from(tmp_path: Path) -> None:
    checkpoints = callbacks.CheckpointCallback(64, str(tmp_path), save_vecnormalize=True, save_replay_buffer=True)
    new_model(VecNormalize(make_vec_env(walk, n_envs=2))).learn(384, callback=checkpoints)
    steps = (128, 256, 384)
    names = {f"rl_model_{n}_steps.zip" for n in steps} | {f"rl_model_vecnormalize_{n}_steps.pkl" for n in steps}
    assert {path.name for path in tmp_path.iterdir()} == names
    env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_256_steps.pkl"), make_vec_env(walk, n_envs=2))
    model = HybridGRPO.load(tmp_path / "rl_model_256_steps", env=env)
    # the checkpoint was made in the last step of the second rollout, before its update
    model.learn(128, reset_num_timesteps=False)
    assert (model.num_timesteps, model.num_executed_steps) == (384, 96)


def test_no_improvement_ends_a_training() -> None:
    stop = callbacks.StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1)
    env = make_vec_env(lambda: walk(max_steps=1, bound=99), seed=0)
    evaluated = callbacks.EvalCallback(env, callback_after_eval=stop, eval_freq=1, n_eval_episodes=1, verbose=0)
    model = new_model().learn(6400, callback=evaluated)
    assert 4 <= model.num_timesteps < 6400 and evaluated.last_mean_reward <= evaluated.best_mean_reward


def test_loggers_write_the_groups_too(tmp_path: Path) -> None:
    model = new_model()
    model.set_logger(configure(str(tmp_path), ["csv", "json"]))
    model.learn(384)
    with (tmp_path / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [int(row["time/executed_steps"]) for row in rows] == [32, 64, 96]
    assert [line["time/total_timesteps"] for line in lines] == [128, 256, 384]
    assert float(rows[-1]["train/group_beta"]) == pytest.approx(lines[-1]["train/group_beta"])


def test_tensorboard_has_a_run_for_each_training(tmp_path: Path) -> None:
    model = new_model(tensorboard_log=str(tmp_path)).learn(128)
    model.learn(128, tb_log_name="mine")
    assert {path.name for path in tmp_path.iterdir()} == {"HybridGRPO_1", "mine_1"}


def test_an_env_with_another_number_of_envs_is_refused_as_by_sb3_and_the_old_one_goes_on() -> None:
    model = new_model()
    with pytest.raises(AssertionError, match=r"number of environments.*HybridGRPO\.load\(path, env\)"):
        model.set_env(make_vec_env(walk, n_envs=3))
    model.learn(128)
    assert model.num_timesteps == 128


def test_parameters_of_one_model_for_another() -> None:
    model, other = new_model().learn(32), new_model(seed=1)
    saved: Any = model.get_parameters()
    other.set_parameters(saved)
    saved["critic"] = {}
    assert_same(model, other)
    with pytest.raises(ValueError, match="invalid object name"):
        other.set_parameters(saved)


def test_what_is_left_out_of_a_file_and_what_is_put_in(tmp_path: Path) -> None:
    model = new_model().learn(32)
    model.save(tmp_path / "usual")
    model.save(tmp_path / "other", exclude=["gamma"], include=["rollout_buffer"])
    usual, other = (set(json.loads(zipfile.ZipFile(tmp_path / name).read("data"))) for name in ("usual.zip", "other.zip"))
    assert (usual - other, other - usual) == ({"gamma"}, {"rollout_buffer"})
    loaded = HybridGRPO.load(tmp_path / "other", device="cpu", custom_objects={"gamma": 0.5}, gamma=0.5)
    assert loaded.gamma == 0.5 and loaded.device == th.device("cpu")
    assert_same(loaded, model)


def test_the_env_of_a_model_serves_for_an_evaluation() -> None:
    model = new_model(walk(max_steps=6, bound=99)).learn(64)
    env = model.get_env()
    assert env is not None
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=3, return_episode_rewards=True)
    assert lengths == [6, 6, 6] and np.isfinite(rewards).all()
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps == 64 + 128


class Drawn(NoisyWalk):
    """Draws frames, and counts them."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    render_mode = "rgb_array"
    frames = 0

    def render(self) -> Any:
        Drawn.frames += 1
        return np.full((32, 32, 3), 127, dtype=np.uint8)


def test_a_video_of_the_training_shows_the_executed_member(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = VecVideoRecorder(DummyVecEnv([Drawn]), str(tmp_path), lambda step: step == 0, video_length=8)
    before = Drawn.frames
    HybridGRPO("MlpPolicy", env, **SMALL).learn(64)
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]
    assert Drawn.frames - before <= 18  # one a step and at the start, none of siblings


def test_packaging_for_the_hugging_face_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_sb3")
    pytest.importorskip("moviepy")
    push_to_hub = importlib.import_module("huggingface_sb3.push_to_hub")  # the package has a function of that name

    class Hub:
        """Takes what would be uploaded."""

        repo_id = "us/walk"

        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, **_: Any) -> "Hub":
            return self

        def upload_folder(self, folder_path: Path, **_: Any) -> None:
            shutil.copytree(folder_path, tmp_path / "uploaded")

    monkeypatch.setattr(push_to_hub, "HfApi", Hub)
    env = VecNormalize(DummyVecEnv([lambda: gym.wrappers.TimeLimit(Drawn(), 9)]))
    model = HybridGRPO("MlpPolicy", env, **SMALL).learn(32)
    push_to_hub.package_to_hub(model, "walk", "HybridGRPO", "CartPole-v1", env, "us/walk", n_eval_episodes=2, video_length=5)
    uploaded = tmp_path / "uploaded"
    assert {"walk.zip", "vec_normalize.pkl", "config.json", "results.json", "README.md"} <= set(os.listdir(uploaded))
    assert json.loads((uploaded / "config.json").read_text())["n_samples"] == 4
    assert_same(HybridGRPO.load(uploaded / "walk.zip"), model)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    callback = importlib.import_module("wandb.integration.sb3").WandbCallback
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    with wandb.init(project="walk", dir=str(tmp_path), sync_tensorboard=True) as run:
        watched = callback(model_save_path=str(tmp_path / "models"), model_save_freq=8, gradient_save_freq=1)
        model = new_model(tensorboard_log=str(tmp_path / "logs")).learn(64, callback=watched)
        assert (run.config["algo"], run.config["n_samples"]) == ("HybridGRPO", 4)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert_same(HybridGRPO.load(tmp_path / "models" / "model"), model)
