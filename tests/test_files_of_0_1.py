"""
Models that version 0.1 saved. The files in tests/data were made with that version (commit 37b6863), each by

    HybridGRPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=32, n_epochs=1, seed=0, policy_kwargs={"net_arch": [2]},
               **options).learn(32).save(...)

with branch_horizon=4 and reward_transform="scale" (hybrid_0_1), branch_horizon="free" (free_0_1), branch_horizon=1 and
sampling_temperature=2.0 (tempered_0_1), ent_coef="auto" (learned_entropy_0_1).
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_hybrid_grpo import HybridGRPO

DATA = Path(__file__).with_name("data")


def test_a_model_goes_on_with_updates_of_its_size_and_one_notice() -> None:
    with pytest.warns(
        UserWarning, match=r"version 0\.1.*num_timesteps is 128 instead of 32.*n_steps 64 instead of 16"
    ) as caught:
        model = HybridGRPO.load(DATA / "hybrid_0_1", env=None)
    assert len(caught) == 1 and caught[0].filename == __file__
    action, _ = model.predict(np.array([1.0, 0.0, 0.0], np.float32), deterministic=True)
    assert action.shape == (1,)
    with pytest.warns(UserWarning, match="version 0.1"):
        model = HybridGRPO.load(DATA / "hybrid_0_1", env=model.env or _pendulum())
    assert (model.num_timesteps, model.num_executed_steps, model.n_steps) == (128, 32, 64)
    assert model.reward_statistics["scale"].returns.count > 128  # type: ignore[union-attr]
    model.learn(64, reset_num_timesteps=False)
    assert (model.num_timesteps, model.num_executed_steps, model._n_updates) == (192, 48, 3)


def test_saved_again_it_is_like_any_other(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="version 0.1"):
        HybridGRPO.load(DATA / "hybrid_0_1", n_steps=128).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = HybridGRPO.load(tmp_path / "model", env=_pendulum())
    assert (model.num_timesteps, model.n_steps) == (128, 128)
    assert not {"num_simulator_steps", "sampling_temperature", "target_entropy"} & vars(model).keys()


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("free_0_1", {"branch_horizon": "auto"}, "branch_horizon='free', which was removed: .* n_samples times the envs"),
        ("tempered_0_1", {"sampling_temperature": 1.0}, r"sampling_temperature=2\.0, which was removed"),
    ],
)
def test_an_argument_that_is_gone_is_refused_and_can_be_replaced(name: str, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridGRPO.load(DATA / name)
    with pytest.warns(UserWarning, match="version 0.1"):
        model = HybridGRPO.load(DATA / name, env=_pendulum(), **option)
    assert model.learn(64, reset_num_timesteps=False).num_timesteps == 192


def test_a_learned_entropy_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ent_coef='auto'.* were removed"):
        HybridGRPO.load(DATA / "learned_entropy_0_1")
    with pytest.raises(ValueError, match=r"a learned entropy coefficient, which was removed\. Load it with version 0\.1"):
        HybridGRPO.load(DATA / "learned_entropy_0_1", ent_coef=0.01)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"branch_horizon": "free"}, "Received branch_horizon='free', which was removed: .* use n_samples=1"),
        ({"sampling_temperature": 2.0}, r"Received sampling_temperature=2\.0, which was removed: .* ent_coef"),
        ({"ent_coef": "auto"}, "Received ent_coef='auto': .* Use a number, as with PPO"),
        ({"ent_coef": lambda left: 0.01 * left}, "Received ent_coef=<function .* Use a number, as with PPO"),
        ({"target_entropy": "auto"}, "and target_entropy: .* Use a number"),
    ],
)
def test_arguments_that_are_gone_say_what_to_use(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridGRPO("MlpPolicy", "Pendulum-v1", **option)


def _pendulum() -> Any:
    return HybridGRPO("MlpPolicy", "Pendulum-v1", n_samples=1).get_env()
