"""ρ: the variance of a grouped rollout's policy gradient over that of independent steps, and the scores that it is made of."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_hybrid_grpo import HybridGRPO, MaskableHybridGRPO, RecurrentHybridGRPO
from sb3_hybrid_grpo.advantages import group_baseline
from sb3_hybrid_grpo.gradient_variance import GradientVariances, gradient_variances
from sb3_hybrid_grpo.policy_scores import measured_variances, scores_and_features, scores_of
from tests.toy_envs import NoisyWalk, walk


def slowly(scores: Any, features: Any, advantages: Any, plain: Any, forks: Any) -> GradientVariances | None:
    """The definition, number by number."""
    n_steps, n_envs, n_members = advantages.shape
    units: list[list[tuple[int, int]]] = []
    for e in range(n_envs):
        for t in range(n_steps):
            if t == 0 or forks[t, e]:
                units.append([])
            units[-1].append((t, e))
    fewest = 2 if len(units) == 1 and n_steps > 1 else 1
    parts: list[list[tuple[int, int]]] = []
    for unit in units:
        n_parts = max(math.ceil(len(unit) / 64), fewest)
        bounds = [len(unit) * i // n_parts for i in range(n_parts + 1)]
        parts += [unit[start:end] for start, end in itertools.pairwise(bounds)]
    units = parts
    if len(units) < 2:
        return None

    def gradient(unit: Any, m: int, a: Any) -> Any:
        total = sum(a[t, e, m] * np.outer(scores[t, e, m], features[t, e, m]) for t, e in unit)
        return total.ravel() / np.sqrt(len(unit))

    def variance(rows: Any) -> float:
        return float(sum(np.var([row[i] for row in rows], ddof=1) for i in range(len(rows[0]))))

    grouped = variance([np.mean([gradient(unit, m, advantages) for m in range(n_members)], axis=0) for unit in units])
    alone = np.mean([variance([gradient(unit, m, plain) for unit in units]) for m in range(n_members)])
    return GradientVariances(grouped, alone / n_members, len(units))


@given(
    st.tuples(st.integers(1, 6) | st.integers(60, 200), st.integers(1, 6), st.integers(2, 4), *[st.integers(1, 3)] * 2),
    st.sampled_from([0.4, 0.01, 0.0]),
    st.integers(0, 2**32 - 1),
)
def test_equals_a_slow_loop(sizes: tuple[int, ...], share_of_forks: float, seed: int) -> None:
    n_steps, n_envs, n_members, n_parameters, n_features = sizes
    random = np.random.default_rng(seed)
    scores = random.normal(size=(n_steps, n_envs, n_members, n_parameters))
    features = random.normal(size=(n_steps, n_envs, n_members, n_features))
    advantages, plain = random.normal(size=(2, n_steps, n_envs, n_members))
    forks = random.random((n_steps, n_envs)) < share_of_forks
    ours, theirs = (one(scores, features, advantages, plain, forks) for one in (gradient_variances, slowly))
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def ratio_of(common: float, own: float, baseline: Any, n_members: int = 4) -> float:
    """ρ of advantages that are a common noise plus one of each member's own, of independent actions."""
    random = np.random.default_rng(0)
    shape = (4000, 1, n_members)
    plain = common * random.normal(size=(4000, 1, 1)) + own * random.normal(size=shape)
    scores, features = random.normal(size=(*shape, 2)), np.ones((*shape, 1))
    advantages = plain if baseline is None else group_baseline(plain, baseline)[0]
    found = gradient_variances(scores, features, advantages, plain, np.ones(shape[:2], dtype=bool))
    assert found is not None
    return found.grouped / found.independent


@pytest.mark.parametrize("n_members", [2, 4, 8])
@pytest.mark.parametrize(("common", "own"), [(0.0, 1.0), (1.0, 1.0), (3.0, 1.0)])
def test_known_ratios(common: float, own: float, n_members: int) -> None:
    """
    Without a baseline members give N independent estimates. With the mean of N - 1 others and the best β the variance of an
    advantage falls from C + S to C + S - C² / (C + S / (N - 1)), for C of the common noise and S of a member's own.
    """
    assert ratio_of(common, own, None, n_members) == pytest.approx(1, abs=0.1)
    c, s = common**2, own**2
    expected = (c + s - c**2 / (c + s / (n_members - 1))) / (c + s)
    assert ratio_of(common, own, "auto", n_members) == pytest.approx(expected, rel=0.12)


def test_common_noise_alone_is_removed_whole() -> None:
    assert ratio_of(1.0, 0.0, "auto") == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (3,)), spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_gradients_of_log_probabilities(space: spaces.Space[Any], masked: bool) -> None:
    if masked and isinstance(space, spaces.Box):
        return
    th.manual_seed(0)
    made: Any = make_masked_proba_distribution(space) if masked else make_proba_distribution(space)
    n = {"Box": 3, "Discrete": 4, "MultiDiscrete": 5, "MultiBinary": 6 if masked else 3}[type(space).__name__]
    parameters = th.randn(5, n, requires_grad=True)
    distribution = made.proba_distribution(*((parameters, th.zeros(3)) if isinstance(space, spaces.Box) else (parameters,)))
    if masked:
        distribution = made.proba_distribution(action_logits=parameters)
        masks = np.ones((5, n), dtype=bool)
        masks[:, 0] = False
        distribution.apply_masking(masks)
    actions = distribution.sample().detach().float()
    (expected,) = th.autograd.grad(distribution.log_prob(actions).sum(), parameters)
    found = scores_of(distribution, actions.reshape(5, -1))
    assert found is not None
    if masked:  # the logits of masked actions get no gradient
        found = th.where(th.as_tensor(masks), found, th.zeros(()))
    th.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def grouped(algorithm: Any = HybridGRPO, env: Any = walk, **kwargs: Any) -> Any:
    options = {"n_steps": 128, "n_samples": 4, "branch_horizon": 8, "n_epochs": 1, "batch_size": 64, "seed": 0, **kwargs}
    policy = options.pop("policy", "MlpPolicy")
    return algorithm(policy, make_vec_env(env, n_envs=2), **options)


class NoLastLayer(ActorCriticPolicy):
    """Has its last layer under another name."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.last = self.action_net
        del self.action_net

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.last(latent_pi), self.log_std)


def test_features_are_what_the_last_layer_sees() -> None:
    model = grouped()
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    buffer, policy = model.rollout_buffer, model.policy
    scores, features = scores_and_features(policy, buffer, model._distribution_of)  # type: ignore[misc]
    assert scores.shape == (32, 8, 2) and features.shape == (32, 8, 64)
    with th.no_grad():
        latent = policy.mlp_extractor.forward_actor(policy.extract_features(th.as_tensor(buffer.observations[3])))
    np.testing.assert_allclose(features[3], latent.numpy(), rtol=1e-5, atol=1e-6)
    assert measured_variances(policy, buffer, model._distribution_of) is not None


def test_a_critic_that_is_off_by_a_constant_changes_the_ratio_of_advantages_with_their_mean_alone() -> None:
    model = grouped()
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    buffer, found = model.rollout_buffer, []
    for offset in (0.0, 50.0):
        buffer.advantages, buffer.plain_TEN = buffer.advantages + 0.1 * offset, buffer.plain_TEN + offset
        for centred in (False, True):
            variances = measured_variances(model.policy, buffer, model._distribution_of, centred)
            assert variances is not None
            found.append(variances.grouped / variances.independent)
    assert found[3] == pytest.approx(found[1], rel=1e-3)
    assert found[2] < 0.1 * found[1]


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (HybridGRPO, {}),
        (HybridGRPO, {"branch_horizon": 1}),
        (HybridGRPO, {"use_sde": True}),
        (HybridGRPO, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        (HybridGRPO, {"policy": NoLastLayer}),
        (HybridGRPO, {"policy_kwargs": {"activation_fn": nn.ReLU, "net_arch": []}}),
        (RecurrentHybridGRPO, {"policy": "MlpLstmPolicy"}),
    ],
)
def test_is_logged_for_policies_of_every_kind(algorithm: Any, options: dict[str, Any]) -> None:
    model = grouped(algorithm, **options).learn(512)
    ratio = model.logger.name_to_value["train/gradient_variance_ratio"] if model.logger.name_to_value else None
    assert ratio is None or ratio > 0
    assert model.auto_grouping.ratio is not None and 0 < model.auto_grouping.ratio < 10


def test_is_logged_of_rollouts_that_measured_it_alone() -> None:
    model = grouped(HybridGRPO, n_steps=64, batch_size=16).learn(64)
    assert "train/gradient_variance_ratio" in model.logger.name_to_value
    model._learn_grouping(n_members=1)  # a single rollout
    model.logger.name_to_value.clear()
    model.train()
    assert "train/gradient_variance_ratio" not in model.logger.name_to_value


class MaskedWalk(NoisyWalk):
    """A walk with three actions, of which the first is never valid."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(3))

    def action_masks(self) -> np.ndarray:
        return np.array([False, True, True])


def test_masks_are_those_of_the_rollout() -> None:
    model = grouped(MaskableHybridGRPO, MaskedWalk)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    scores, _ = scores_and_features(model.policy, model.rollout_buffer, model._distribution_of)  # type: ignore[misc]
    np.testing.assert_allclose(scores[..., 0], 0, atol=1e-6)
    assert (np.abs(scores[..., 1:]) > 0.1).all()
