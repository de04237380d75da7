"""The gradient-variance command: its statistics on gradients known exactly, its gradients beside SB3's, its files."""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO

from sb3_hybrid_grpo.advantages import gae_group, group_baseline
from sb3_hybrid_grpo.benchmark import gradient_variance
from sb3_hybrid_grpo.benchmark.gradient_rollouts import ESTIMATORS, Collector, Estimator, Gradients, Horizon, Size, estimate
from sb3_hybrid_grpo.benchmark.gradient_statistics import Comparison, Sample, compare
from sb3_hybrid_grpo.commands.cli import CommandError

Floats = npt.NDArray[np.float64]

WALK, DISCRETE_WALK = "GradientWalk-v0", "GradientDiscreteWalk-v0"
ENTRY = "tests.toy_envs:NoisyWalk"
gym.register(WALK, ENTRY, max_episode_steps=10)
gym.register(DISCRETE_WALK, ENTRY, max_episode_steps=10, kwargs={"action_space": spaces.Discrete(3), "bound": 0.3})
TINY = Size(n_groups=2, n_samples=2, n_steps=16, resamples=50)

DEVIATIONS: Floats = 1 / np.sqrt(1 + np.arange(20))
TRACE = float((DEVIATIONS**2).sum())
EXPECTED: Floats = np.concatenate([np.full(4, 0.5), np.zeros(16)])  # of length 1


def drawn(rng: np.random.Generator, n: int, mean: Floats = EXPECTED, scale: float = 1.0, resamples: int = 300) -> Sample:
    """n gradients of the given mean whose covariance has the trace scale² · TRACE."""
    return Sample(mean + scale * DEVIATIONS * rng.standard_normal((n, len(mean))), rng, resamples)


def orthogonal(length: float) -> Floats:
    bias = np.zeros(20)
    bias[10] = length
    return bias


def test_statistics_of_known_gradients() -> None:
    rng = np.random.default_rng(0)
    reference = drawn(rng, 3000)
    found = compare(drawn(rng, 3000, EXPECTED + orthogonal(0.5), scale=0.5), reference)
    assert found.trace == pytest.approx(TRACE / 4, rel=0.05)
    assert found.squared_norm == pytest.approx(1.25, rel=0.05)
    assert found.trace_ratio.value == pytest.approx(1 / 4, rel=0.05)
    assert found.noise_ratio.value == pytest.approx(1 / 4, rel=0.1)
    assert found.squared_bias.value == pytest.approx(0.25, rel=0.1)
    assert found.cosine == pytest.approx(1 / np.sqrt(1.25), rel=0.05)
    for interval in found[2:5]:
        assert interval.low < interval.value < interval.high


def test_noise_ratio_has_no_units() -> None:
    rng = np.random.default_rng(0)
    reference, own = drawn(rng, 200), rng.standard_normal((200, 20)) + EXPECTED
    plain, scaled = (compare(Sample(factor * own, np.random.default_rng(1), 300), reference) for factor in (1.0, 100.0))
    assert scaled.trace_ratio.value == pytest.approx(1e4 * plain.trace_ratio.value)
    assert scaled.noise_ratio == pytest.approx(plain.noise_ratio)
    assert scaled.cosine == pytest.approx(plain.cosine)


def test_squared_bias_is_right_on_average_for_few_gradients() -> None:
    rng = np.random.default_rng(0)
    unbiased: list[Comparison] = [compare(drawn(rng, 8, resamples=1), drawn(rng, 100, resamples=1)) for _ in range(400)]
    squares = np.array([one.squared_bias.value for one in unbiased])
    assert abs(squares.mean()) < 4 * squares.std() / 20  # the length of the mean's noise alone is TRACE / 8, about 0.4
    assert squares.std() < 0.4
    assert (squares < 0).mean() > 0.3
    assert np.mean([one.trace for one in unbiased]) == pytest.approx(TRACE, rel=0.05)
    assert np.mean([one.squared_norm for one in unbiased]) == pytest.approx(1.0, rel=0.1)


def test_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(100):
        found = compare(drawn(rng, 40, EXPECTED + orthogonal(0.5), scale=0.5), drawn(rng, 160))
        truth = (0.25, 0.25, 0.25)
        held.append([one.low <= true <= one.high for one, true in zip(found[2:5], truth, strict=True)])
    assert (np.mean(held, axis=0) >= 0.87).all()  # 0.95 less what 100 repeats and 40 rollouts leave to chance


def test_no_progress_along_the_reference() -> None:
    rng = np.random.default_rng(0)
    backwards = compare(drawn(rng, 400, -EXPECTED), drawn(rng, 400))
    assert backwards.noise_ratio.value == backwards.noise_ratio.high == np.inf
    assert backwards.cosine < -0.9
    assert backwards.squared_bias.value == pytest.approx(4.0, rel=0.2)
    drowned = compare(drawn(rng, 8), drawn(rng, 8, np.zeros(20)))
    assert not np.isnan([drowned.noise_ratio, drowned.squared_bias, drowned.trace_ratio]).any()


def collected(
    horizon: Horizon, env_id: str = WALK, seed: int = 3, estimators: Sequence[Estimator] | None = None
) -> tuple[Collector, list[Gradients]]:
    """A rollout, and what estimators make of it."""
    collector = Collector(env_id, horizon, TINY, seed)
    return collector, collector.collect([Estimator("", horizon)] if estimators is None else estimators)


def ppo_gradient(collector: Collector, normalize: bool) -> npt.NDArray[np.float32]:
    """The gradient that SB3's own update computes of the rollout, in one minibatch."""
    arguments: dict[str, Any] = {"n_steps": TINY.n_steps, "batch_size": TINY.simulator_steps, "n_epochs": 1, "vf_coef": 0.0}
    arguments |= {"max_grad_norm": 1e9, "normalize_advantage": normalize, "device": "cpu"}
    ppo = PPO("MlpPolicy", collector.env, **arguments)
    ppo.policy.load_state_dict(collector.model.policy.state_dict())
    ppo._setup_learn(1)
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        setattr(ppo.rollout_buffer, name, getattr(collector.model.rollout_buffer, name).copy())
    ppo.rollout_buffer.full = True
    ppo.train()
    actor = ("mlp_extractor.policy_net", "action_net", "log_std")
    gradients = [parameter.grad for name, parameter in ppo.policy.named_parameters() if name.startswith(actor)]
    return th.cat([one.flatten() for one in gradients if one is not None]).numpy()


@pytest.mark.parametrize("env_id", [WALK, DISCRETE_WALK])
def test_gradient_is_that_of_ppo(env_id: str) -> None:
    collector, (own,) = collected(None, env_id)
    assert np.abs(own.plain).max() > 1e-3
    np.testing.assert_allclose(own.plain, ppo_gradient(collector, normalize=False), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(own.normalised, ppo_gradient(collector, normalize=True), rtol=1e-4, atol=1e-7)
    assert np.isnan(own.baseline.beta)


@pytest.mark.parametrize("horizon", [1, 4])
def test_gradient_of_groups_is_the_sum_over_their_members(horizon: int) -> None:
    collector, (own,) = collected(horizon)
    buffer, policy = collector.model.rollout_buffer, collector.model.policy
    loss = th.zeros(())
    for t, column in np.ndindex(buffer.advantages.shape):
        obs = th.as_tensor(buffer.observations[t, column][None])
        _, log_prob, _ = policy.evaluate_actions(obs, th.as_tensor(buffer.actions[t, column][None]))
        loss = loss - log_prob.sum() * float(buffer.advantages[t, column]) / buffer.advantages.size
    loss.backward()  # type: ignore[no-untyped-call]
    slow = [parameter.grad for name, parameter in policy.named_parameters() if "policy_net" in name or "action_net" in name]
    log_std_grad = policy.get_parameter("log_std").grad
    assert log_std_grad is not None
    expected = th.cat([log_std_grad, *(one.flatten() for one in slow if one is not None)]).numpy()
    np.testing.assert_allclose(own.plain, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("horizon", [None, 1, 4, "episode"])
def test_advantages_estimated_anew_are_those_of_the_rollout(horizon: Horizon) -> None:
    collector, _ = collected(horizon, estimators=[])
    buffer = collector.model.rollout_buffer
    before, baseline = buffer.advantages.copy(), buffer.baseline
    for estimator in (*(one for one in ESTIMATORS if one.horizon == horizon), Estimator("", horizon)):
        estimate(buffer, estimator, collector.locals["values"], collector.locals["dones"])
    np.testing.assert_array_equal(buffer.advantages, before)
    assert horizon is None or buffer.baseline == baseline


@pytest.mark.parametrize("horizon", [1, 4])
def test_own_trace_is_gae_of_every_member_alone(horizon: int) -> None:
    collector, _ = collected(horizon, estimators=[])
    buffer, last, dones = collector.model.rollout_buffer, collector.locals["values"], collector.locals["dones"]
    group_mean = buffer.advantages.copy()
    following = np.concatenate([buffer.values[1:], last.numpy().reshape(1, -1)])
    next_values = np.where(buffer.cut, buffer.next_values, following)
    columns = (buffer.rewards, buffer.values, next_values, buffer.terminated, buffer.cut)
    rewards, values, reached, terminated, cut = (column[..., None] for column in columns)  # as many groups of one member
    traces = gae_group(rewards, values, reached, terminated, cut, buffer.gamma, buffer.gae_lambda)[..., 0]
    expected_TEN, baseline = group_baseline(buffer.as_TEN(traces), "auto")
    found = estimate(buffer, Estimator("own trace", horizon, own_trace=True), last, dones)
    np.testing.assert_allclose(buffer.as_TEN(found), expected_TEN, rtol=1e-5, atol=1e-7)
    assert buffer.baseline == pytest.approx(baseline)
    assert not np.allclose(found, group_mean)


def test_rollouts_start_at_random_points_and_siblings_in_member_0s_state() -> None:
    starts = []
    for horizon in (None, 4):
        collector = Collector(WALK, horizon, TINY, seed=0)
        for _ in range(15):
            collector.collect([])
            first = collector.model.rollout_buffer.observations[0].reshape(-1, TINY.n_groups, 2)
            assert horizon is None or (first[1:] == first[:1]).all()
            starts.append(first[0])
    assert len(np.unique(np.concatenate(starts), axis=0)) == 60  # no rollout starts where another one did


def test_envs_are_at_random_points_of_their_episodes() -> None:
    collector, steps_done = Collector(WALK, None, TINY, seed=0), set()
    for _ in range(30):
        collector.model._last_obs = collector.env.reset()
        collector._on_training_start()
        steps_done |= {len(rewards) for rewards in collector.env.get_attr("rewards")}  # of Monitor's episode in progress
        places = np.array(collector.env.get_attr("place"), dtype=np.float32)
        np.testing.assert_array_equal(np.asarray(collector.model._last_obs), np.asarray(collector.env.normalize_obs(places)))
    assert steps_done == set(range(10))


def test_seed_decides_everything() -> None:
    same, again, other = (collected(4, seed=seed)[1][0].plain for seed in (3, 3, 4))
    np.testing.assert_array_equal(same, again)
    assert not np.allclose(same, other)


def options(folder: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gradient_variance.add_arguments(parser)
    few = ["--env", WALK, "--budget", "256", "--rollouts", "8", "--reference-rollouts", "9"]
    return parser.parse_args([*few, "--output", str(folder), *arguments])


def rows_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "gradient_variance.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_reports_every_estimator_on_every_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert gradient_variance.run(options(folder), TINY) == 0
    assert str(folder / "README.md") in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "gradient_variance.csv", "gradient_variance.json", "gradient_variance.png"}
    rows = rows_in(folder)
    assert [(row["env"], row["stage"], row["estimator"], row["advantages"]) for row in rows] == [
        (WALK, stage, estimator.name, advantages)
        for stage in ("start", "middle", "end")
        for estimator in ESTIMATORS
        for advantages in ("plain", "normalised")
    ]
    assert [row["trained_steps"] for row in rows[:: 2 * len(ESTIMATORS)]] == ["0", "64", "256"]
    assert {(row["rollouts"], row["simulator_steps"]) for row in rows} == {("8", "64")}
    units = {estimator.name: estimator.same_units for estimator in ESTIMATORS}
    for row in rows:
        assert float(row["trace"]) > 0 and float(row["noise_ratio"]) > 0
        assert bool(row["relative_bias"]) == (units[row["estimator"]] and row["advantages"] == "plain")
        assert bool(row["beta"]) == row["estimator"].startswith("hybrid")
        if row["estimator"] == "hybrid K=64, β=1":
            assert float(row["beta"]) == 1
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page.count("\n| PPO ") == 3 and "nan" not in page
    settings = json.loads((folder / "gradient_variance.json").read_text(encoding="utf-8"))
    assert settings["budget"] == 256 and settings["rollout"]["n_steps"] == 16 and settings["made_with"][0]["torch"]


def test_ctrl_c_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, stages = gradient_variance.measure, []

    def interrupted(env_id: str, frozen: Any, *rest: Any) -> Any:
        stages.append(frozen.stage)
        if len(stages) == 2:
            raise KeyboardInterrupt
        return measure(env_id, frozen, *rest)

    monkeypatch.setattr(gradient_variance, "measure", interrupted)
    assert gradient_variance.run(options(tmp_path), TINY) == 130
    assert {row["stage"] for row in rows_in(tmp_path)} == {"start"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "NoSuchEnv-v0"], "NoSuchEnv-v0"),
        (["--env", "tests.toy_envs:Unbranchable-v0"], "Unbranchable-v0.*another process"),
        (["--env", "FrozenLake-v1"], r"Discrete\(16\), needed are vectors"),
        (["--budget", "191"], "received 191, needs at least 192"),
        (["--rollouts", "7"], "--rollouts received 7, needs at least 8"),
        (["--reference-rollouts", "7"], "--reference-rollouts received 7, needs at least 8"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(CommandError, match=message):
        gradient_variance.run(options(folder, *arguments), TINY)
    assert not folder.exists()


def test_a_page_of_others_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(CommandError, match="would be lost"):
        gradient_variance.run(options(tmp_path), TINY)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"
