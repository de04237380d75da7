"""The entropy coefficient: fixed, scheduled, learned."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.entropy import EntropyCoefficient
from tests.toy_envs import walk

BOX = spaces.Box(-1, 1, (3,))
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}


def coefficient(
    ent_coef: Any, target: Any = "auto", space: spaces.Space[Any] = BOX, learning_rate: float = 0.1
) -> EntropyCoefficient:
    return EntropyCoefficient(ent_coef, target, space, learning_rate, "cpu")


def test_a_number_stays() -> None:
    fixed = coefficient(0.25)
    fixed.adapt(th.tensor(-100.0))
    assert [fixed.value(progress) for progress in (1.0, 0.5, 0.0)] == [0.25] * 3
    assert not fixed.changes


@pytest.mark.parametrize("schedule", ["lin_0.02", lambda progress: 0.02 * progress], ids=["word", "function"])
def test_a_schedule_follows_the_progress(schedule: Any) -> None:
    scheduled = coefficient(schedule)
    assert [scheduled.value(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([0.02, 0.01, 0.0])
    assert scheduled.changes


@pytest.mark.parametrize(("word", "start"), [("auto", 0.01), ("auto_0.3", 0.3)])
def test_a_learned_one_begins_where_it_is_told(word: str, start: float) -> None:
    assert coefficient(word).value(1.0) == pytest.approx(start)


def test_a_learned_one_rises_while_entropy_is_below_the_target_and_falls_above_it() -> None:
    learned = coefficient("auto", target=1.0)
    learned.adapt(th.tensor(0.5))
    raised = learned.value(1.0)
    assert raised > 0.01
    for _ in range(20):
        learned.adapt(th.tensor(1.5))
    assert learned.value(1.0) < raised


def test_a_step_is_that_of_adam_on_the_logarithm() -> None:
    learned, log_coef = coefficient("auto_0.5", target=1.0), th.tensor([math.log(0.5)], requires_grad=True)
    adam = th.optim.Adam([log_coef], lr=0.1)
    for entropy in (0.2, 0.7, 1.9):
        learned.adapt(th.tensor(entropy))
        adam.zero_grad()
        log_coef.grad = th.tensor([entropy - 1.0])
        adam.step()
    assert learned.value(1.0) == pytest.approx(math.exp(log_coef.item()))


@pytest.mark.parametrize(
    ("space", "target"),
    [
        (BOX, -3.0),
        (spaces.Discrete(8), 0.5 * math.log(8)),
        (spaces.MultiDiscrete([2, 3]), 0.5 * math.log(6)),
        (spaces.MultiBinary(4), 0.5 * math.log(16)),
    ],
    ids=str,
)
def test_targets_by_action_space(space: spaces.Space[Any], target: float) -> None:
    assert coefficient("auto", space=space).target == pytest.approx(target)


@pytest.mark.parametrize(
    ("ent_coef", "target", "message"),
    [
        ("automatic", "auto", "must be a number"),
        ("lin_", "auto", "must be a number"),
        ("auto_x", "auto", "must be a number"),
        (None, "auto", "must be a number"),
        (math.nan, "auto", "must be a number"),
        ("auto_0", "auto", "begins above 0"),
        ("auto", "high", "number of nats"),
        ("auto", math.inf, "number of nats"),
        (0.1, 2.0, "nothing would aim at it"),
        ("lin_0.1", 2.0, "nothing would aim at it"),
    ],
)
def test_what_it_may_not_be(ent_coef: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coefficient(ent_coef, target)


def test_a_learned_coefficient_holds_the_policy_at_its_target() -> None:
    """Without a reward to gain, entropy goes where the coefficient sends it: from 2.8 nats down to 1."""
    env = make_vec_env(lambda: walk(max_steps=50, bound=99), n_envs=2)
    model = HybridGRPO(
        "MlpPolicy",
        env,
        **{**SMALL, "n_epochs": 10},
        learning_rate=0.01,
        ent_coef="auto",
        target_entropy=1.0,
        reward_transform=np.zeros_like,
    )
    assert isinstance(model.policy.log_std, th.Tensor)

    def entropy() -> float:
        return float((0.5 + 0.5 * math.log(2 * math.pi) + model.policy.log_std.detach()).sum())

    assert entropy() == pytest.approx(2.84, abs=0.01)
    with th.no_grad():
        model.policy.log_std.fill_(-2.0)
    model.learn(3200)
    assert entropy() == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize(("ent_coef", "logged"), [(0.1, False), ("lin_0.1", True), ("auto", True)])
def test_it_is_logged_where_it_changes(ent_coef: Any, logged: bool) -> None:
    model = HybridGRPO("MlpPolicy", walk(), ent_coef=ent_coef, **SMALL).learn(16)
    seen: dict[str, Any] = {}
    model.logger.record = lambda key, value, *_, **__: seen.update({key: value})  # type: ignore[method-assign]
    model.train()
    assert ("train/ent_coef" in seen) == logged


@pytest.mark.parametrize("how", ["argument", "custom_objects", "parameters"])
def test_a_fixed_one_may_follow_a_learned_one(how: str, tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", walk(), ent_coef="auto", **SMALL).learn(64)
    model.save(tmp_path / "model")
    if how == "argument":
        fixed = HybridGRPO.load(tmp_path / "model", env=walk(), ent_coef=0.02)
    elif how == "custom_objects":
        fixed = HybridGRPO.load(tmp_path / "model", env=walk(), custom_objects={"ent_coef": 0.02})
    else:
        fixed = HybridGRPO("MlpPolicy", walk(), ent_coef=0.02, **SMALL)
        fixed.set_parameters(str(tmp_path / "model"))
    for one, other in zip(fixed.policy.parameters(), model.policy.parameters(), strict=True):
        assert th.equal(one, other)
    fixed.learn(16)
    assert fixed.entropy.value(1.0) == 0.02 and not fixed.entropy.changes


@pytest.mark.parametrize("as_file", [True, False])
def test_parameters_bring_the_optimiser_of_a_learned_one(as_file: bool, tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", walk(), ent_coef="auto", **SMALL).learn(64)
    model.save(tmp_path / "model")
    other = HybridGRPO("MlpPolicy", walk(), ent_coef="auto", **SMALL)
    other.set_parameters(str(tmp_path / "model") if as_file else model.get_parameters())  # type: ignore[arg-type]
    ours, theirs = model.entropy.optimizer, other.entropy.optimizer
    assert ours is not None and theirs is not None
    assert theirs.state_dict()["state"][0]["step"] == ours.state_dict()["state"][0]["step"] > 0


def test_what_was_learned_is_saved_and_goes_on(tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", walk(), ent_coef="auto", **SMALL).learn(64)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=walk())
    assert loaded.ent_coef == "auto"  # type: ignore[comparison-overlap]
    assert loaded.entropy.value(1.0) == model.entropy.value(1.0) != pytest.approx(0.01, abs=1e-7)
    ours, theirs = model.entropy.optimizer, loaded.entropy.optimizer
    assert ours is not None and theirs is not None
    assert theirs.state_dict()["state"][0]["step"] == ours.state_dict()["state"][0]["step"] > 0
    for one in (model, loaded):
        one.entropy.adapt(th.tensor(1.0))
    assert loaded.entropy.value(1.0) == model.entropy.value(1.0)
