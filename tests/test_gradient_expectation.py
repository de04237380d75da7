"""
The group estimator against a policy gradient known exactly.

A two-state, two-action problem of three steps. The group forks once, after the second one. Each step's noise shifts
the reward and decides the transition; the members of a group share it, or each has its own. Lambda is 1, so that a
wrong critic may cost variance but must not cost bias.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch as th

from sb3_hybrid_grpo.advantages import gae_group, group_baseline

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

N_GROUPS, N_MEMBERS, HORIZON, LAST_STEP_BEFORE_FORK = 60_000, 4, 3, 1
GAMMA = 0.9
THETA = np.array([0.4, -0.6])  # logit of action 1 in state 0 and in state 1, the same at all steps
REWARD_SA = np.array([[1.0, 0.0], [-0.5, 2.0]])
P_STATE_IS_ACTION = 0.8  # the next state is the action's number, or else the other one
# Wrong by different amounts in different states and at different times; row t is V of the states at time t
WRONG_VALUES_TS: Floats = np.array([[2.0, -1.0], [-1.5, 1.0], [0.5, -2.0], [0.0, 0.0]])


class Rollout(NamedTuple):
    states_TEN: npt.NDArray[np.int64]
    reached_TEN: npt.NDArray[np.int64]  # before the fork
    score_TENS: Floats  # gradient of the log probability of the action, by the two logits
    rewards_TEN: Floats
    terminated_TEN: Bools
    cut_TEN: Bools


def collect(shared_noise: bool, noise_scale: float = 2.0, fork: bool = True, seed: int = 0) -> Rollout:
    rng = np.random.default_rng(seed)
    shape_EN = (N_GROUPS, N_MEMBERS)
    noise_shape = (N_GROUPS, 1) if shared_noise else shape_EN
    state_EN = np.repeat(rng.integers(2, size=(N_GROUPS, 1)), N_MEMBERS, axis=1)
    states, reached, scores, rewards = [], [], [], []
    for t in range(HORIZON):
        probability_EN = 1 / (1 + np.exp(-THETA[state_EN]))
        action_EN = (rng.random(shape_EN) < probability_EN).astype(np.int64)
        next_EN = np.where(rng.random(noise_shape) < P_STATE_IS_ACTION, action_EN, 1 - action_EN)
        states.append(state_EN)
        reached.append(next_EN)
        scores.append(np.eye(2)[state_EN] * (action_EN - probability_EN)[..., None])
        rewards.append(REWARD_SA[state_EN, action_EN] + noise_scale * rng.standard_normal(noise_shape))
        forks_now = fork and t == LAST_STEP_BEFORE_FORK
        state_EN = np.repeat(next_EN[:, :1], N_MEMBERS, axis=1) if forks_now else next_EN
    terminated_TEN = np.zeros((HORIZON, *shape_EN), dtype=bool)
    terminated_TEN[-1] = True
    cut_TEN = terminated_TEN.copy()
    cut_TEN[LAST_STEP_BEFORE_FORK, :, 1:] = fork
    return Rollout(np.stack(states), np.stack(reached), np.stack(scores), np.stack(rewards), terminated_TEN, cut_TEN)


def exact_values_and_gradient() -> tuple[Floats, Floats]:
    """V_t(s) by backward induction, and the gradient of the mean of V_0(s) by differentiating through it."""
    theta = th.tensor(THETA, requires_grad=True)
    policy_SA = th.stack([1 - th.sigmoid(theta), th.sigmoid(theta)], dim=1)
    p = P_STATE_IS_ACTION
    transition_AS = th.tensor([[p, 1 - p], [1 - p, p]], dtype=th.float64)
    value_S = th.zeros(2, dtype=th.float64)
    values = [value_S]
    for _ in range(HORIZON):
        value_S = (policy_SA * (th.tensor(REWARD_SA) + GAMMA * transition_AS @ value_S)).sum(dim=1)
        values.insert(0, value_S)
    value_S.mean().backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    return th.stack(values).detach().numpy(), theta.grad.numpy()


EXACT_VALUES_TS, EXACT_GRADIENT_S = exact_values_and_gradient()


def values_right_at_the_fork() -> Floats:
    """Siblings' first segment ends in V of the state they reached: nobody could do without that one."""
    values_TS: Floats = WRONG_VALUES_TS.copy()
    values_TS[LAST_STEP_BEFORE_FORK + 1] = EXACT_VALUES_TS[LAST_STEP_BEFORE_FORK + 1]
    return values_TS


def advantages_with(rollout: Rollout, values_TS: Floats, cut_TEN: Bools | None = None) -> Floats:
    time = np.arange(HORIZON)[:, None, None]
    advantages_TEN = gae_group(
        rollout.rewards_TEN,
        values_TS[time, rollout.states_TEN],
        values_TS[time + 1, rollout.reached_TEN],
        rollout.terminated_TEN,
        rollout.cut_TEN if cut_TEN is None else cut_TEN,
        GAMMA,
        gae_lambda=1.0,
    )
    return advantages_TEN.astype(np.float64)


def gradients_of_groups(
    rollout: Rollout, advantages_TEN: npt.NDArray[np.floating[Any]], members: slice = slice(None)
) -> Floats:
    """One estimate of the policy gradient a group: mean over its members of sum_t gamma^t * score_t * A_t."""
    discount_T = GAMMA ** np.arange(HORIZON)
    terms_TENS = rollout.score_TENS * advantages_TEN[..., None]
    gradient_ES: Floats = np.einsum("t,tens->ens", discount_T, terms_TENS)[:, members].mean(axis=1)
    return gradient_ES


def standard_errors_off(gradient_ES: Floats) -> float:
    """Distance of the mean estimate from the exact gradient, in standard errors, in the worst component."""
    error_S = gradient_ES.std(axis=0) / np.sqrt(len(gradient_ES))
    return float(np.max(np.abs(gradient_ES.mean(axis=0) - EXACT_GRADIENT_S) / error_S))


UNBIASED_WITHIN = 4.0


@pytest.fixture(scope="module")
def shared() -> Rollout:
    return collect(shared_noise=True)


@pytest.fixture(scope="module")
def separate() -> Rollout:
    return collect(shared_noise=False)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("noise", ["shared", "separate"])
def test_whole_group_is_unbiased(noise: str, beta: float, request: pytest.FixtureRequest) -> None:
    rollout: Rollout = request.getfixturevalue(noise)
    advantages_TEN, _ = group_baseline(advantages_with(rollout, values_right_at_the_fork()), beta)
    gradient_ES = gradients_of_groups(rollout, advantages_TEN)
    assert standard_errors_off(gradient_ES) < UNBIASED_WITHIN
    # and the check has the power to see an error of a tenth of the gradient
    assert np.all(gradient_ES.std(axis=0) / np.sqrt(N_GROUPS) * UNBIASED_WITHIN < 0.1 * np.abs(EXACT_GRADIENT_S))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_member_0_is_unbiased_across_the_fork_with_a_critic_wrong_everywhere(shared: Rollout, beta: float) -> None:
    advantages_TEN, _ = group_baseline(advantages_with(shared, WRONG_VALUES_TS), beta)
    assert standard_errors_off(gradients_of_groups(shared, advantages_TEN, slice(1))) < UNBIASED_WITHIN


def test_control_own_advantage_in_the_baseline_is_seen(shared: Rollout) -> None:
    advantages_TEN = advantages_with(shared, values_right_at_the_fork())
    biased_TEN = advantages_TEN - advantages_TEN.mean(axis=2, keepdims=True)
    assert standard_errors_off(gradients_of_groups(shared, biased_TEN)) > 3 * UNBIASED_WITHIN


def test_control_sibling_trace_that_is_not_cut_is_seen(shared: Rollout) -> None:
    """After the fork siblings live in a state that member 0 chose: left in, that ties their advantage to its action."""
    advantages_TEN = advantages_with(shared, WRONG_VALUES_TS, cut_TEN=shared.terminated_TEN)
    biased_TEN, _ = group_baseline(advantages_TEN, 1.0)
    assert standard_errors_off(gradients_of_groups(shared, biased_TEN, slice(1))) > 3 * UNBIASED_WITHIN


def test_control_mean_over_members_in_different_states_is_seen(shared: Rollout) -> None:
    """A fork claimed where there was none mixes other states' futures into member 0's trace."""
    cut_TEN = shared.cut_TEN.copy()
    cut_TEN[0, :, 1:] = True
    gradient_ES = gradients_of_groups(shared, advantages_with(shared, WRONG_VALUES_TS, cut_TEN), slice(1))
    assert standard_errors_off(gradient_ES) > 3 * UNBIASED_WITHIN


def test_control_trace_dropped_at_the_fork_is_seen(shared: Rollout) -> None:
    cut_TEN = shared.cut_TEN.copy()
    cut_TEN[LAST_STEP_BEFORE_FORK] = True
    gradient_ES = gradients_of_groups(shared, advantages_with(shared, WRONG_VALUES_TS, cut_TEN), slice(1))
    assert standard_errors_off(gradient_ES) > 3 * UNBIASED_WITHIN


def variance_ratio(rollout: Rollout) -> float:
    """Variance of the gradient estimate with the whole group baseline, over that with none."""
    advantages_TEN = advantages_with(rollout, EXACT_VALUES_TS)
    with_baseline_TEN, _ = group_baseline(advantages_TEN, 1.0)
    variance, with_baseline = (
        gradients_of_groups(rollout, array_TEN).var(axis=0).sum() for array_TEN in (advantages_TEN, with_baseline_TEN)
    )
    return float(with_baseline / variance)


def test_baseline_removes_variance_only_where_noise_is_shared() -> None:
    assert variance_ratio(collect(shared_noise=True, noise_scale=4.0, fork=False)) < 0.15
    assert variance_ratio(collect(shared_noise=False, noise_scale=4.0, fork=False)) > 1.0


def test_baseline_removes_less_of_it_with_a_fork() -> None:
    """What member 0 meets after the fork is in its trace of the time before, but in no sibling's."""
    assert 0.15 < variance_ratio(collect(shared_noise=True, noise_scale=4.0)) < 0.3
    assert variance_ratio(collect(shared_noise=False, noise_scale=4.0)) > 1.0


def test_learned_beta_tells_shared_noise_from_separate_noise(shared: Rollout, separate: Rollout) -> None:
    _, with_shared = group_baseline(advantages_with(shared, EXACT_VALUES_TS), "auto")
    _, with_separate = group_baseline(advantages_with(separate, EXACT_VALUES_TS), "auto")
    assert with_shared.beta > 0.8
    assert with_shared.variance_removed > 0.5
    assert with_separate.beta < 0.1
    assert with_separate.variance_removed < 0.02


def test_group_mean_at_the_fork_lowers_the_variance_of_member_0(separate: Rollout) -> None:
    grouped_TEN = advantages_with(separate, EXACT_VALUES_TS)
    cut_alone_TEN = separate.terminated_TEN  # member 0 goes on with its own trace
    alone_TEN = advantages_with(separate, EXACT_VALUES_TS, cut_alone_TEN)
    grouped = gradients_of_groups(separate, grouped_TEN, slice(1)).var(axis=0).sum()
    alone = gradients_of_groups(separate, alone_TEN, slice(1)).var(axis=0).sum()
    assert grouped < 0.9 * alone
