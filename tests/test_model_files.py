"""Files that are no models, and models of PPO."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch as th
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO, MaskableHybridGRPO, RecurrentHybridGRPO
from tests.test_maskable import NeverTwice

SMALL: dict[str, Any] = {"n_steps": 32, "n_epochs": 1, "batch_size": 32, "seed": 0}
PAIRS: list[tuple[Any, Any, str, Any]] = [
    (PPO, HybridGRPO, "MlpPolicy", "CartPole-v1"),
    (PPO, HybridGRPO, "MlpPolicy", "Pendulum-v1"),
    (MaskablePPO, MaskableHybridGRPO, "MlpPolicy", NeverTwice),
    (RecurrentPPO, RecurrentHybridGRPO, "MlpLstmPolicy", "CartPole-v1"),
]


def tensors(model: Any) -> list[th.Tensor]:
    moments = model.policy.optimizer.state_dict()["state"].values()
    return [*model.policy.state_dict().values(), *(moment for state in moments for moment in state.values())]


@pytest.mark.parametrize(("theirs", "ours", "policy", "env_id"), PAIRS)
def test_training_goes_on_from_ppo(theirs: Any, ours: Any, policy: str, env_id: Any, tmp_path: Path) -> None:
    env = make_vec_env(env_id, 2, seed=0)
    ppo = theirs(policy, env, gamma=0.9, learning_rate=lambda progress: 1e-3 * progress, clip_range=0.1, **SMALL).learn(128)
    ppo.save(tmp_path / "ppo.zip")
    model = ours.from_ppo(tmp_path / "ppo", env=make_vec_env(env_id, 2, seed=0), n_samples=3, branch_horizon=8)
    for one, other in zip(tensors(model), tensors(ppo), strict=True):
        assert th.equal(one, other)
    assert (model.gamma, model.clip_range(1), model.lr_schedule(0.5)) == (0.9, 0.1, 5e-4)
    assert (model.n_samples, model.branch_horizon, model.n_steps) == (3, 8, 32)
    assert (model.num_timesteps, model.num_executed_steps) == (128, 128)
    model.learn(128, reset_num_timesteps=False)
    assert (model.num_timesteps, model.num_executed_steps) == (128 + 2 * 96, 128 + 2 * 32)
    model.save(tmp_path / "ours")
    again = ours.load(tmp_path / "ours")
    assert all(th.equal(one, other) for one, other in zip(tensors(again), tensors(model), strict=True))


def test_with_one_member_it_goes_on_as_ppo_does(tmp_path: Path) -> None:
    PPO("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), **SMALL).learn(128).save(tmp_path / "ppo")
    theirs = PPO.load(tmp_path / "ppo", env=make_vec_env("CartPole-v1", 2, seed=1))
    theirs.learn(128, reset_num_timesteps=False)
    ours = HybridGRPO.from_ppo(tmp_path / "ppo", env=make_vec_env("CartPole-v1", 2, seed=1), n_samples=1)
    ours.learn(128, reset_num_timesteps=False)
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        assert th.equal(one, other)


@pytest.mark.filterwarnings("ignore:Received n_steps")
def test_the_env_to_go_on_in_may_be_an_id(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", **SMALL).learn(32).save(tmp_path / "ppo")
    model = HybridGRPO.from_ppo(tmp_path / "ppo", "CartPole-v1")
    assert model.learn(64, reset_num_timesteps=False).num_timesteps >= 96
    with pytest.raises(ValueError, match="set_env"):
        HybridGRPO.from_ppo(tmp_path / "ppo").learn(64)


def test_open_files_are_left_where_they_were(tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", "CartPole-v1", **SMALL)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = HybridGRPO.load(file)
    assert all(th.equal(one, other) for one, other in zip(tensors(loaded), tensors(model), strict=True))


@pytest.mark.parametrize("ours", [HybridGRPO, MaskableHybridGRPO, RecurrentHybridGRPO])
def test_what_is_no_model_is_refused(ours: Any, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no model")
    model = HybridGRPO("MlpPolicy", "CartPole-v1", **SMALL)
    model.save(tmp_path / "model")
    whole = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(damaged)
    for name in ("text", "short", "damaged"):
        for load in (ours.load, ours.from_ppo):
            with pytest.raises(ValueError, match=r"wasn't a zip-file with a complete model.*earlier checkpoint"):
                load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        ours.load(tmp_path / "nothing")


def test_models_of_other_algorithms_are_refused(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "ppo")
    A2C("MlpPolicy", "CartPole-v1").save(tmp_path / "a2c")
    HybridGRPO("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"PPO saved it, go on from it with HybridGRPO\.from_ppo"):
        HybridGRPO.load(tmp_path / "ppo")
    with pytest.raises(ValueError, match=r"which was not saved by PPO\. Use the zip file"):
        HybridGRPO.from_ppo(tmp_path / "a2c")
    with pytest.raises(ValueError, match=r"has groups already\. Use HybridGRPO\.load"):
        HybridGRPO.from_ppo(tmp_path / "ours")
    with pytest.raises(TypeError, match="HybridGRPO has no argument n_smaples"):
        HybridGRPO.from_ppo(tmp_path / "ppo", n_smaples=4)
    for name in ("policy", "_init_setup_model"):
        with pytest.raises(TypeError, match=f"HybridGRPO has no argument {name}"):
            HybridGRPO.from_ppo(tmp_path / "ppo", None, "cpu", **{name: None})


@pytest.mark.parametrize(
    ("theirs", "ours", "policy"),
    [
        (MaskablePPO, HybridGRPO, "MlpPolicy"),
        (RecurrentPPO, HybridGRPO, "MlpLstmPolicy"),
        (PPO, MaskableHybridGRPO, "MlpPolicy"),
        (PPO, RecurrentHybridGRPO, "MlpPolicy"),
    ],
)
def test_a_model_of_another_variant_is_refused(theirs: Any, ours: Any, policy: str, tmp_path: Path) -> None:
    theirs(policy, "CartPole-v1", n_steps=16).save(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"was not saved by.*MaskableHybridGRPO goes on from MaskablePPO"):
        ours.from_ppo(tmp_path / "theirs")
