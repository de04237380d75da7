"""Siblings drawn from the tempered policy: what is drawn, how it is weighted, and that the gradient is still the policy's."""

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.advantages import gae_group, group_baseline, paper_advantage
from sb3_hybrid_grpo.buffers import HybridRolloutBuffer
from sb3_hybrid_grpo.clipped_update import Statistics
from sb3_hybrid_grpo.sampling import sample_actions
from tests import test_gradient_expectation as mdp
from tests.advantage_examples import Floats, fractions, quick, random_group
from tests.toy_envs import walk

SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 12, "n_epochs": 1, "seed": 0, "n_samples": 3, "branch_horizon": 1}
VECTOR = spaces.Box(-1, 1, (4,), dtype=np.float32)
ACTIONS: list[spaces.Space[Any]] = [
    spaces.Box(-9, 9, (2,), dtype=np.float32),
    spaces.Discrete(4),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
]


def make_policy(action_space: spaces.Space[Any], kind: type[ActorCriticPolicy] = ActorCriticPolicy) -> ActorCriticPolicy:
    """A policy with preferences, which SB3's fresh ones have not."""
    th.manual_seed(0)
    policy = kind(VECTOR, action_space, lambda _: 1e-3)
    with th.no_grad():
        policy.get_parameter("action_net.bias").normal_()
    return policy


# ---- what is drawn


def slow_probability(policy: ActorCriticPolicy, state: th.Tensor, action: th.Tensor, temperature: float) -> float:
    """π(a)^(1/τ) over its sum or integral, written out for each kind of action; dimensions are independent."""
    parameters = policy.action_net(policy.mlp_extractor.forward_actor(state[None]))[0].double()
    space = policy.action_space
    if isinstance(space, spaces.Box):
        variances = temperature * th.exp(2 * policy.log_std.double())  # N(m, σ²)^(1/τ) is proportional to N(m, τσ²)
        densities = th.exp(-((action - parameters) ** 2) / (2 * variances)) / th.sqrt(2 * math.pi * variances)
        return float(densities.prod())
    if isinstance(space, spaces.MultiBinary):
        ones = th.sigmoid(parameters)
        tempered = th.stack([(1 - ones) ** (1 / temperature), ones ** (1 / temperature)])
        tables = list((tempered / tempered.sum(dim=0)).T)
    else:
        sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()  # type: ignore[attr-defined]
        tempered_tables = [th.softmax(logits, dim=0) ** (1 / temperature) for logits in parameters.split(sizes)]
        tables = [table / table.sum() for table in tempered_tables]
    return math.prod(float(table[int(one)]) for table, one in zip(tables, action.flatten(), strict=True))


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda space: type(space).__name__)
def test_weights_are_the_ratio_of_probabilities(action_space: spaces.Space[Any], temperature: float) -> None:
    n_states, n_samples = 5, 6
    policy, states = make_policy(action_space), th.randn(n_states, 4)
    with th.no_grad():
        actions, _, log_prob, weights = sample_actions(policy, states, n_samples, temperature)
        assert weights is not None and (weights[:n_states] == 1).all() and (weights[n_states:] != 1).all()
        for row, (action, state) in enumerate(zip(actions, states.repeat(n_samples, 1), strict=True)):
            of_policy = slow_probability(policy, state, action, 1.0)
            assert log_prob[row].item() == pytest.approx(math.log(of_policy), abs=1e-5)
            if row >= n_states:
                assert weights[row].item() == pytest.approx(
                    of_policy / slow_probability(policy, state, action, temperature), rel=1e-4
                )


@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda space: type(space).__name__)
def test_member_0_is_the_policys_and_its_siblings_are_not(action_space: spaces.Space[Any]) -> None:
    """Of equal random numbers, member 0 takes the action that it takes at temperature 1."""
    policy, states, drawn = make_policy(action_space), th.randn(400, 4), []
    for temperature in (1.0, 3.0):
        th.manual_seed(5)
        with th.no_grad():
            drawn.append(sample_actions(policy, states, 2, temperature)[0])
    assert th.equal(drawn[0][:400], drawn[1][:400])
    assert not th.equal(drawn[0][400:], drawn[1][400:])


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_siblings_are_drawn_from_the_tempered_policy(temperature: float) -> None:
    n_states = 40_000
    state, error = th.randn(1, 4), 4 / math.sqrt(n_states)
    with th.no_grad():
        policy = make_policy(ACTIONS[1])
        actions, *_ = sample_actions(policy, state.repeat(n_states, 1), 2, temperature)
        for members, tau in ((actions[:n_states], 1.0), (actions[n_states:], temperature)):
            for action in range(4):
                probability = slow_probability(policy, state[0], th.tensor(action), tau)
                assert (members == action).double().mean().item() == pytest.approx(probability, abs=error)
        policy = make_policy(ACTIONS[0])
        actions, *_ = sample_actions(policy, state.repeat(n_states, 1), 2, temperature)
        deviations = actions.reshape(2, n_states, 2).std(dim=1)
        assert deviations.flatten().tolist() == pytest.approx([1.0, 1.0, *[math.sqrt(temperature)] * 2], rel=error)


# ---- the gradient of the loss


REWARD_A = np.array([1.0, -1.0, 2.5])
LOGITS = th.tensor([0.9, 0.3, -0.8])
MEAN, LOG_STD, BEST = 0.3, -0.4, 1.0
WRONG_VALUE = 0.4


class Bandit(gym.Env[Any, Any]):
    """One state; the reward is of the action, and noise that a group shares."""

    def __init__(self, discrete: bool) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), dtype=np.float32)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-99, 99, (1,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        discrete = isinstance(self.action_space, spaces.Discrete)
        reward = REWARD_A[action] if discrete else -((float(action[0]) - BEST) ** 2)
        return np.zeros(1, np.float32), float(reward + self.np_random.normal()), False, False, {}


class Measured(HybridGRPO):
    """Takes no step of the optimiser: notes the gradient of the loss, by the policy's parameters and by V."""

    def train(self) -> None:
        (batch,) = self.rollout_buffer.get(self.batch_size)
        loss, _ = self._loss(batch, 0.2, None)
        names = ["action_net.bias", "value_net.bias"] + ["log_std"] * hasattr(self.policy, "log_std")
        of = [self.policy.get_parameter(name) for name in names]
        self.gradients: list[np.ndarray] = getattr(self, "gradients", [])
        self.gradients.append(th.cat(th.autograd.grad(loss, of)).numpy())


def measured(discrete: bool, rollouts: int = 60, **options: Any) -> Floats:
    """The gradients of as many rollouts, at ratio 1. The state is all zeros, and so the parameters are the biases."""
    shape: dict[str, Any] = {"n_steps": 8, "batch_size": 8 * 16 * 4, "n_samples": 4, "branch_horizon": 1, "gamma": 0.0}
    env = make_vec_env(lambda: Bandit(discrete), n_envs=16)
    model = Measured("MlpPolicy", env, seed=0, normalize_advantage=False, **{**shape, **options})
    with th.no_grad():
        model.policy.get_parameter("action_net.bias").copy_(LOGITS if discrete else th.tensor([MEAN]))
        model.policy.get_parameter("value_net.bias").fill_(WRONG_VALUE)
        if not discrete:
            model.policy.get_parameter("log_std").fill_(LOG_STD)
    model.learn(rollouts * 8 * 16)
    return np.stack(model.gradients)


def exact(discrete: bool) -> Floats:
    """The same of -E[R] and of half of (V - E[R])^2, which is vf_coef."""
    if discrete:
        policy_A = th.softmax(LOGITS.double(), dim=0).numpy()
        expected = policy_A @ REWARD_A
        return np.array([*(-policy_A * (REWARD_A - expected)), WRONG_VALUE - expected])
    # E[R] = -(m - best)^2 - σ^2
    variance = math.exp(2 * LOG_STD)
    return np.array([2 * (MEAN - BEST), WRONG_VALUE + (MEAN - BEST) ** 2 + variance, 2 * variance])


def standard_errors_off(gradients: Floats, expected: Floats) -> Floats:
    error = gradients.std(axis=0, ddof=1) / math.sqrt(len(gradients))
    off: Floats = np.abs(gradients.mean(axis=0) - expected) / error
    return off


@pytest.fixture
def unweighted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(HybridRolloutBuffer, "add_weights", lambda self, weights: None)
    yield


PROBLEMS = [(True, 2.0), (True, 0.5), (False, 2.0), (False, 0.75)]


@pytest.mark.parametrize(("discrete", "temperature"), PROBLEMS)
@pytest.mark.parametrize(
    "options",
    [{"group_baseline": 0.5}, {"group_baseline": "auto"}, {"advantage_estimator": "paper_per_sample"}],
    ids=lambda options: str(*options.values()),
)
def test_gradient_is_that_of_the_policy(discrete: bool, temperature: float, options: dict[str, Any]) -> None:
    gradients = measured(discrete, sampling_temperature=temperature, **options)
    assert (standard_errors_off(gradients, exact(discrete)) < 4).all()


@pytest.mark.parametrize(("discrete", "temperature"), PROBLEMS)
def test_gradient_of_the_papers_mean_is_that_of_the_policy(discrete: bool, temperature: float) -> None:
    """One N-th of it: the others' actions have a part of the advantage, and nothing to do with the own one."""
    gradients = measured(discrete, sampling_temperature=temperature, advantage_estimator="paper")
    expected = exact(discrete)
    expected[np.arange(len(expected)) != (3 if discrete else 1)] /= 4
    assert (standard_errors_off(gradients, expected) < 4).all()


@pytest.mark.parametrize(("discrete", "temperature"), PROBLEMS)
def test_control_without_weights_it_is_not(discrete: bool, temperature: float, unweighted: None) -> None:
    gradients = measured(discrete, sampling_temperature=temperature)
    assert standard_errors_off(gradients, exact(discrete)).max() > 12


def test_control_on_policy_it_is() -> None:
    assert (standard_errors_off(measured(True), exact(True)) < 4).all()


# ---- the estimators


def test_whole_traces_over_forks_are_unbiased() -> None:
    """
    The problem of test_gradient_expectation, with a fork at every step, and siblings of a temperature. Member 0's trace goes
    on with the group's weighted mean. V has to be right where a trace that counts ends: of member 0's mean, at step 2.
    """
    rollout, weights_TEN = tempered_rollout(0.4)
    time = np.arange(mdp.HORIZON)[:, None, None]

    def off(values_TS: Floats, members: slice, used_TEN: Floats | None) -> float:
        values_TEN, next_values_TEN = values_TS[time, rollout.states_TEN], values_TS[time + 1, rollout.reached_TEN]
        group = (rollout.rewards_TEN, values_TEN, next_values_TEN, rollout.terminated_TEN, rollout.cut_TEN)
        advantages_TEN = gae_group(*group, mdp.GAMMA, 1.0, weights_TEN=used_TEN)
        residual_TEN, _ = group_baseline(advantages_TEN, 0.5, used_TEN)
        return mdp.standard_errors_off(mdp.gradients_of_groups(rollout, weights_TEN * residual_TEN, members))

    right_at_step_2_TS = mdp.values_right_at_the_fork()
    assert off(right_at_step_2_TS, slice(1), weights_TEN) < mdp.UNBIASED_WITHIN
    assert off(mdp.EXACT_VALUES_TS, slice(None), weights_TEN) < mdp.UNBIASED_WITHIN
    # the loss's weights are there, and the estimators' are not
    assert off(right_at_step_2_TS, slice(1), None) > 3 * mdp.UNBIASED_WITHIN


def tempered_rollout(temperature: float) -> tuple[mdp.Rollout, Floats]:
    rng, shape_EN = np.random.default_rng(0), (mdp.N_GROUPS, mdp.N_MEMBERS)
    temperature_N = np.array([1.0, *[temperature] * (mdp.N_MEMBERS - 1)])
    state_EN = np.repeat(rng.integers(2, size=(mdp.N_GROUPS, 1)), mdp.N_MEMBERS, axis=1)
    columns: list[list[Any]] = [[], [], [], [], []]
    for _ in range(mdp.HORIZON):
        of_policy_EN, drawn_by_EN = (1 / (1 + np.exp(-mdp.THETA[state_EN] / tau)) for tau in (1.0, temperature_N))
        action_EN = (rng.random(shape_EN) < drawn_by_EN).astype(np.int64)
        next_EN = np.where(rng.random((mdp.N_GROUPS, 1)) < mdp.P_STATE_IS_ACTION, action_EN, 1 - action_EN)
        score_ENS = np.eye(2)[state_EN] * (action_EN - of_policy_EN)[..., None]
        weights_EN = np.where(action_EN == 1, of_policy_EN / drawn_by_EN, (1 - of_policy_EN) / (1 - drawn_by_EN))
        reward_EN = mdp.REWARD_SA[state_EN, action_EN]
        for column, array in zip(columns, (state_EN, next_EN, score_ENS, reward_EN, weights_EN), strict=True):
            column.append(array)
        state_EN = np.repeat(next_EN[:, :1], mdp.N_MEMBERS, axis=1)
    states_TEN, reached_TEN, score_TENS, rewards_TEN, weights_TEN = (np.stack(column) for column in columns)
    terminated_TEN = np.zeros(weights_TEN.shape, dtype=bool)
    terminated_TEN[-1] = True
    cut_TEN = terminated_TEN.copy()
    cut_TEN[:, :, 1:] = True
    return mdp.Rollout(states_TEN, reached_TEN, score_TENS, rewards_TEN, terminated_TEN, cut_TEN), weights_TEN


shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 4))
seeds = st.integers(0, 2**32 - 1)


def random_weights(seed: int, shape: tuple[int, int, int]) -> Floats:
    weights_TEN: Floats = np.random.default_rng(seed).gamma(1.0, size=shape)
    weights_TEN[:, :, 0] = 1.0
    return weights_TEN


@quick
@given(seeds, shapes, fractions, fractions)
def test_weighted_gae_equals_slow_loop(seed: int, shape: tuple[int, int, int], gamma: float, gae_lambda: float) -> None:
    group, weights_TEN = random_group(seed, shape, 0.2), random_weights(seed, shape)
    group.cut_TEN[:, :, 1:] = True
    delta_TEN = group.rewards_TEN + gamma * group.next_values_TEN * ~group.terminated_TEN - group.values_TEN
    expected_TEN = delta_TEN.copy()
    n_steps, n_envs, n_members = shape
    for e in range(n_envs):
        for t in reversed(range(n_steps - 1)):
            if not group.cut_TEN[t, e, 0]:
                terms = [weights_TEN[t + 1, e, m] * expected_TEN[t + 1, e, m] for m in range(n_members)]
                expected_TEN[t, e, 0] += gamma * gae_lambda * math.fsum(terms) / n_members
    result_TEN = gae_group(*group, gamma, gae_lambda, weights_TEN=weights_TEN)
    np.testing.assert_allclose(result_TEN, expected_TEN, rtol=1e-10, atol=1e-10)


@quick
@given(seeds, shapes, fractions, st.booleans())
def test_weighted_paper_equals_slow_loop(seed: int, shape: tuple[int, int, int], gamma: float, per_sample: bool) -> None:
    group, weights_TEN = random_group(seed, shape, 0.2), random_weights(seed, shape)
    starts_TEN = np.ones(shape, dtype=bool)
    starts_TEN[:, :, 0] = np.random.default_rng(seed).random(shape[:2]) < 0.3
    advantages_TEN, returns_TEN = paper_advantage(*group[:4], starts_TEN, gamma, per_sample, weights_TEN)
    brackets_TEN = group.rewards_TEN + gamma * group.next_values_TEN * ~group.terminated_TEN - group.values_TEN
    for t, e, n in np.ndindex(*shape):
        others = [weights_TEN[t, e, m] * brackets_TEN[t, e, m] for m in range(shape[2]) if m != n]
        expected = brackets_TEN[t, e, n]
        if not per_sample:
            expected = (expected + math.fsum(others)) / shape[2]
        assert advantages_TEN[t, e, n] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert returns_TEN[t, e, n] == pytest.approx(group.values_TEN[t, e, n] + expected, rel=1e-9, abs=1e-9)


@quick
@given(seeds, shapes, st.sampled_from([0.0, 0.4, 1.0, "auto"]))
def test_weighted_baseline_equals_slow_loop(seed: int, shape: tuple[int, int, int], beta: Any) -> None:
    advantages_TEN, weights_TEN = random_group(seed, shape, 0.2).rewards_TEN, random_weights(seed, shape)
    residual_TEN, baseline = group_baseline(advantages_TEN, beta, weights_TEN)
    others_TEN = np.zeros(shape)
    for t, e, n in np.ndindex(*shape):
        terms = [weights_TEN[t, e, m] * advantages_TEN[t, e, m] for m in range(shape[2]) if m != n]
        others_TEN[t, e, n] = math.fsum(terms) / len(terms)
    if beta == "auto":
        beta = np.cov(advantages_TEN.ravel(), others_TEN.ravel(), ddof=0)[0, 1] / others_TEN.var()
    assert baseline.beta == pytest.approx(min(max(beta, 0.0), 1.0), abs=1e-9)
    np.testing.assert_allclose(residual_TEN, advantages_TEN - baseline.beta * others_TEN, rtol=1e-9, atol=1e-9)
    assert baseline.variance_removed == pytest.approx(1 - residual_TEN.var() / advantages_TEN.var(), abs=1e-9)


def test_weights_of_one_change_no_bit() -> None:
    group = random_group(0, (9, 2, 4), 0.3, np.float32)
    group.cut_TEN[:, :, 1:] = True
    ones_TEN = np.ones((9, 2, 4), np.float32)
    gae = [gae_group(*group, 0.9, 0.8, weights_TEN=weights_TEN) for weights_TEN in (None, ones_TEN)]
    paper = [paper_advantage(*group, 0.9, weights_TEN=weights_TEN)[0] for weights_TEN in (None, ones_TEN)]
    baseline = [group_baseline(group.rewards_TEN, "auto", weights_TEN)[0] for weights_TEN in (None, ones_TEN)]
    for without, with_ones in (gae, paper, baseline):
        assert with_ones.dtype == np.float32
        np.testing.assert_array_equal(without, with_ones)


@pytest.mark.parametrize("function", [gae_group, paper_advantage])
def test_weights_of_another_shape_are_refused(function: Any) -> None:
    arguments = (*random_group(0, (4, 2, 3), 0.3), 0.9, 0.8)[: 7 if function is gae_group else 6]
    with pytest.raises(ValueError, match="same shape"):
        function(*arguments, weights_TEN=np.ones((4, 2, 1)))
    with pytest.raises(ValueError, match="same shape"):
        group_baseline(np.ones((4, 2, 3)), 0.5, np.ones((4, 2, 1)))


# ---- the algorithm


def trained(**options: Any) -> HybridGRPO:
    return HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2, seed=0), **{**SMALL, **options}).learn(32)


def parameters(model: HybridGRPO) -> list[np.ndarray]:
    return [parameter.detach().numpy() for parameter in model.policy.parameters()]


@pytest.mark.parametrize("estimator", ["hybrid", "paper", "grpo"])
def test_temperature_one_is_the_limit_of_others(estimator: Any) -> None:
    """At 1 itself nothing is weighted; close to it, by almost 1."""
    plain, explicit, close = (
        trained(advantage_estimator=estimator, **options)
        for options in ({}, {"sampling_temperature": 1}, {"sampling_temperature": 1.00001})
    )
    for one, other in zip(parameters(plain), parameters(explicit), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(parameters(plain), parameters(close), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert (plain.rollout_buffer.weights == 1).all() and (close.rollout_buffer.weights != 1).any()  # type: ignore[attr-defined]


def test_the_largest_weight_is_logged_where_there_are_weights() -> None:
    plain, tempered = trained(), trained(sampling_temperature=2.0)
    assert "train/sampling_weight_max" not in plain.logger.name_to_value
    weights = tempered.rollout_buffer.weights  # type: ignore[attr-defined]
    assert tempered.logger.name_to_value["train/sampling_weight_max"] == weights.max() > 1
    assert (weights.reshape(8, 3, 2)[:, 0] == 1).all()


def test_grpo_weights_its_loss() -> None:
    class Noted(HybridGRPO):
        def train(self) -> None:
            batch: Any = next(self.rollout_buffer.get(48))
            statistics = Statistics(*self._loss(batch, 0.2, None)[1])
            expected = -(batch.weights * batch.advantages).mean()
            assert statistics.policy_gradient_loss.item() == pytest.approx(expected.item(), abs=1e-6)
            assert expected.item() != pytest.approx(-batch.advantages.mean().item(), abs=1e-4)

    env = make_vec_env(walk, n_envs=2, seed=0)
    options = {**SMALL, "batch_size": 48, "advantage_estimator": "grpo", "normalize_advantage": False}
    Noted("MlpPolicy", env, sampling_temperature=2.0, **options).learn(16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_temperature": 0}, "greater than 0"),
        ({"sampling_temperature": -1.0}, "greater than 0"),
        ({"sampling_temperature": math.inf}, "greater than 0"),
        ({"sampling_temperature": math.nan}, "greater than 0"),
        ({"sampling_temperature": "2"}, "greater than 0"),
        ({"sampling_temperature": True}, "greater than 0"),
        ({"branch_horizon": 2}, "the states of another policy"),
        ({"branch_horizon": "free"}, "the states of another policy"),
        ({"n_samples": 1}, "there must be some"),
        ({"action_selection": "greedy"}, "an action of a sibling may be executed"),
        ({"use_sde": True}, "kept over many steps"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"Received sampling_temperature=.*{message}"):
        HybridGRPO("MlpPolicy", walk(), **{**SMALL, "sampling_temperature": 2.0, **changes})


class Squashed(ActorCriticPolicy):
    """A tanh of a Gaussian, which SB3 has for gSDE alone."""

    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = SquashedDiagGaussianDistribution(2)
        super()._build(lr_schedule)


class OwnPass(ActorCriticPolicy):
    """Who knows what it draws from?"""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        return super().forward(obs, True)


@pytest.mark.parametrize(
    ("policy", "message"), [(Squashed, "SquashedDiagGaussianDistribution: only these"), (OwnPass, "OwnPass, which overrides")]
)
def test_a_policy_that_cannot_be_tempered_is_refused_before_training(policy: Any, message: str) -> None:
    HybridGRPO(policy, walk(), **SMALL)
    with pytest.raises(ValueError, match=message):
        HybridGRPO(policy, walk(), **SMALL, sampling_temperature=2.0)


def test_weights_of_infinite_variance_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="infinite variance"):
        HybridGRPO("MlpPolicy", walk(), **SMALL, sampling_temperature=0.5)
