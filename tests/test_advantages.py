"""Advantage estimators: arrays worked out by hand, slow loops written from the equations, and SB3's own numbers."""

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_hybrid_grpo.advantages import gae_group, group_baseline, grpo_advantage, paper_advantage
from tests.advantage_examples import Branches, Group, fractions, groups, one_env, one_env_mask, quick, random_group


# ---- gae_group


def slow_gae(group: Group, gamma: float, gae_lambda: float) -> npt.NDArray[np.float64]:
    """The recursion, one number at a time."""
    n_steps, _, n_members = group.rewards_TEN.shape

    @cache
    def advantage(t: int, e: int, n: int) -> float:
        total = float(group.rewards_TEN[t, e, n] - group.values_TEN[t, e, n])
        if not group.terminated_TEN[t, e, n]:
            total += gamma * float(group.next_values_TEN[t, e, n])
        if t + 1 < n_steps and not group.cut_TEN[t, e, n]:
            followers = [n]
            if n == 0:
                followers += [m for m in range(1, n_members) if group.cut_TEN[t, e, m]]
            total += gamma * gae_lambda * math.fsum(advantage(t + 1, e, m) for m in followers) / len(followers)
        return total

    result = np.zeros(group.rewards_TEN.shape)
    for t, e, n in np.ndindex(*result.shape):
        result[t, e, n] = advantage(t, e, n)
    return result


@quick
@given(groups, fractions, fractions)
def test_gae_equals_slow_loop(group: Group, gamma: float, gae_lambda: float) -> None:
    expected_TEN = slow_gae(group, gamma, gae_lambda)
    np.testing.assert_allclose(gae_group(*group, gamma, gae_lambda), expected_TEN, rtol=1e-10, atol=1e-10)


def fork_example() -> Group:
    """Two members, three steps, a fork of the sibling after step 1; the sibling alone terminates at the end."""
    return Group(
        rewards_TEN=one_env([1, 2], [3, 4], [5, 7]),
        values_TEN=one_env([0, 0], [2, 2], [4, 4]),
        next_values_TEN=one_env([2, 2], [4, 6], [8, 100]),
        terminated_TEN=one_env_mask([0, 0], [0, 0], [0, 1]),
        cut_TEN=one_env_mask([0, 0], [0, 1], [0, 1]),
    )


def test_gae_literal_with_a_fork() -> None:
    # gamma = lambda = 0.5, so a trace weighs 0.25
    # delta_2 = 5 + 4 - 4 = 5 and, terminated, 7 - 4 = 3; no trace at the last step
    # delta_1 = 3 + 2 - 2 = 3 and 4 + 3 - 2 = 5
    # A_1 = 3 + 0.25 * mean(5, 3) = 4 for member 0, and 5 for the sibling, which was cut
    # delta_0 = 1 + 1 - 0 = 2 and 2 + 1 - 0 = 3; nobody is cut: A_0 = 2 + 0.25 * 4 and 3 + 0.25 * 5
    np.testing.assert_array_equal(gae_group(*fork_example(), 0.5, 0.5), one_env([3, 4.25], [4, 5], [5, 3]))


def test_gae_literal_sibling_that_restarts_alone() -> None:
    # Zero values, gamma = lambda = 1, reward 1, 10, 100 for the members at step 0, then 2, 20, 200.
    # Only member 1 is cut, so member 0 goes on with mean(2, 20) = 11; 200 belongs to another state
    zeros_TEN = np.zeros((2, 1, 3))
    never_TEN = np.zeros((2, 1, 3), dtype=bool)
    cut_TEN = one_env_mask([0, 1, 0], [0, 0, 0])
    advantages_TEN = gae_group(one_env([1, 10, 100], [2, 20, 200]), zeros_TEN, zeros_TEN, never_TEN, cut_TEN, 1.0, 1.0)
    np.testing.assert_array_equal(advantages_TEN, one_env([12, 10, 300], [2, 20, 200]))


def test_gae_literal_truncation_bootstraps_and_stops_the_trace() -> None:
    # gamma = 0.5. Step 0 is truncated: 1 + 0.5 * 8 - 2 = 3, and nothing of step 1's 1 + 0 - 0 = 1 flows back
    advantages_TEN = gae_group(
        one_env([1], [1]), one_env([2], [0]), one_env([8], [0]), one_env_mask([0], [0]), one_env_mask([1], [0]), 0.5, 1.0
    )
    np.testing.assert_array_equal(advantages_TEN, one_env([3], [1]))


@pytest.mark.parametrize("seed", range(5))
def test_one_member_is_sb3_to_the_last_bit(seed: int) -> None:
    n_steps, n_envs, gamma, gae_lambda = 64, 5, 0.99, 0.95
    group = random_group(seed, (n_steps, n_envs, 1), 0.1, np.float32)
    rng = np.random.default_rng(seed)
    last_values = rng.normal(0, 10, n_envs).astype(np.float32)
    values_TE = group.values_TEN[:, :, 0]
    done_TE = group.cut_TEN[:, :, 0]
    truncated_TE = done_TE & ~group.terminated_TEN[:, :, 0]
    assert truncated_TE.any() and group.terminated_TEN.any() and not done_TE.all()
    # Where the episode goes on, the next value is V of the next state; after a truncation it is V(terminal state)
    next_values_TE = np.where(done_TE, group.next_values_TEN[:, :, 0], np.concatenate([values_TE[1:], last_values[None]]))

    buffer = RolloutBuffer(
        n_steps, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), gamma=gamma, gae_lambda=gae_lambda, n_envs=n_envs
    )
    episode_starts = np.ones(n_envs)
    for t in range(n_steps):
        rewards = group.rewards_TEN[t, :, 0].copy()
        for e in np.flatnonzero(truncated_TE[t]):
            # as in OnPolicyAlgorithm.collect_rollouts, torch tensor included
            rewards[e] += gamma * th.tensor(next_values_TE[t, e])
        zeros = np.zeros((n_envs, 1))
        buffer.add(zeros, zeros, rewards, episode_starts, th.tensor(values_TE[t]), th.zeros(n_envs))
        episode_starts = done_TE[t]
    buffer.compute_returns_and_advantage(th.tensor(last_values), done_TE[-1])

    ours_TEN = gae_group(*group._replace(next_values_TEN=next_values_TE[..., None]), gamma, gae_lambda)
    assert ours_TEN.dtype == np.float32
    np.testing.assert_array_equal(ours_TEN[:, :, 0], buffer.advantages)


@quick
@given(groups, st.integers(0, 2**32 - 1))
def test_order_of_siblings_does_not_matter(group: Group, seed: int) -> None:
    n_members = group.rewards_TEN.shape[2]
    order = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(n_members - 1)])
    reordered = Group._make(array[:, :, order] for array in group)
    expected_TEN = gae_group(*group, 0.9, 0.8)[:, :, order]
    np.testing.assert_allclose(gae_group(*reordered, 0.9, 0.8), expected_TEN, rtol=1e-10, atol=1e-10)


def test_gae_leaves_its_arguments_alone() -> None:
    group = random_group(0, (6, 2, 3), 0.3)
    copies = [array.copy() for array in group]
    gae_group(*group, 0.9, 0.8)
    paper_advantage(*group, 0.9)
    grpo_advantage(group.rewards_TEN, group.cut_TEN, 0.9)
    group_baseline(group.rewards_TEN, "auto")
    for array, copy in zip(group, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# ---- grpo_advantage


def test_grpo_literal_one_step_segments() -> None:
    # (0, 2, 4): mean 2, population std sqrt(8 / 3); (-1, 1, 0): mean 0, std sqrt(2 / 3). All siblings are cut
    # at once, so that nothing flows back in time
    expected_TEN = one_env([-2, 0, 2], [-1, 1, 0]) / np.sqrt(one_env([8 / 3], [2 / 3]))
    advantages_TEN = grpo_advantage(one_env([0, 2, 4], [-1, 1, 0]), one_env_mask([0, 1, 1], [0, 1, 1]), 0.9)
    np.testing.assert_allclose(advantages_TEN, expected_TEN, rtol=1e-7)


def test_grpo_literal_longer_segments() -> None:
    # Two rewards that differ have z = -1 and 1, whatever their size. gamma = 0.5.
    # Fork of the whole group after step 1: step 2 stands alone, A_2 = z = (1, -1)
    # A_1 = z = (-1, 1); A_0 = z + 0.5 * A_1 = (-1 - 0.5, 1 + 0.5)
    rewards_TEN = one_env([3, 5], [0, 100], [2, 1])
    cut_TEN = one_env_mask([0, 0], [0, 1], [0, 0])
    advantages_TEN = grpo_advantage(rewards_TEN, cut_TEN, 0.5)
    np.testing.assert_allclose(advantages_TEN, one_env([-1.5, 1.5], [-1, 1], [1, -1]), rtol=1e-6)


def test_grpo_literal_one_of_two_siblings_cut() -> None:
    # z of (0, 1, -1) is (0, s, -s) with s = 1 / sqrt(2 / 3). Only member 1 is cut after step 0: gamma = 1 gives
    # A_0 = (0 + 0, s, -s - s): member 0 and member 2 go on
    s = math.sqrt(1.5)
    advantages_TEN = grpo_advantage(one_env([0, 1, -1], [0, 1, -1]), one_env_mask([0, 1, 0], [0, 0, 0]), 1.0)
    np.testing.assert_allclose(advantages_TEN, one_env([0, s, -2 * s], [0, s, -s]), rtol=1e-7)


@pytest.mark.parametrize("reward", [0.1, -1000.1, 1e8 / 3])
def test_grpo_of_equal_rewards_is_zero(reward: float) -> None:
    """The mean of equal numbers is not always that number; divided by a std just as tiny, the error would be of order 1."""
    rewards_TEN = np.full((2, 3, 7), reward, dtype=np.float32)
    assert not grpo_advantage(rewards_TEN, np.zeros((2, 3, 7), dtype=bool), 0.9).any()


def slow_grpo(group: Group, gamma: float) -> npt.NDArray[np.float64]:
    n_steps, n_envs, n_members = group.rewards_TEN.shape
    result = np.zeros(group.rewards_TEN.shape)
    for e in range(n_envs):
        for n in range(n_members):
            following = 0.0
            for t in reversed(range(n_steps)):
                rewards = [float(reward) for reward in group.rewards_TEN[t, e]]
                mean = math.fsum(rewards) / n_members
                std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / n_members)
                ends = group.cut_TEN[t, e, n] or (n == 0 and all(group.cut_TEN[t, e, 1:]))
                following = (rewards[n] - mean) / (std + 1e-8) + (0.0 if ends else gamma * following)
                result[t, e, n] = following
    return result


@quick
@given(groups, fractions)
def test_grpo_equals_slow_loop(group: Group, gamma: float) -> None:
    result_TEN = grpo_advantage(group.rewards_TEN, group.cut_TEN, gamma)
    np.testing.assert_allclose(result_TEN, slow_grpo(group, gamma), rtol=1e-8, atol=1e-8)


# ---- group_baseline


def test_baseline_literal() -> None:
    # b leaves the own one out: of (1, 2, 6), b = (4, 3.5, 1.5); A - 0.5 b = (-1, 0.25, 5.25).
    # Var(A) = 41 / 3 - 9 = 14 / 3; residuals have mean 1.5, squares 1, 0.0625, 27.5625:
    # variance 28.625 / 3 - 2.25 = 21.875 / 3; removed is 1 - 21.875 / 14 = -0.5625, for within one group
    # the leave-one-out mean runs against A
    residual_TEN, baseline = group_baseline(one_env([1, 2, 6]), 0.5)
    np.testing.assert_allclose(residual_TEN, one_env([-1, 0.25, 5.25]), rtol=1e-15)
    assert baseline == pytest.approx((0.5, -0.5625))


def test_baseline_literal_learned() -> None:
    # Two members, two steps: A = (0, 1), (2, 3); b = (1, 0), (3, 2). Mean of both is 1.5.
    # A - mean = (-1.5, -0.5), (0.5, 1.5), b - mean = (-0.5, -1.5), (1.5, 0.5): Cov = 3 / 4, Var = 5 / 4, beta = 0.6
    # residual = (-0.6, 1), (0.2, 1.8); of the variance, the share Cov^2 / (Var(A) Var(b)) = 0.36 is gone
    residual_TEN, baseline = group_baseline(one_env([0, 1], [2, 3]), "auto")
    np.testing.assert_allclose(residual_TEN, one_env([-0.6, 1], [0.2, 1.8]), rtol=1e-12)
    assert baseline == pytest.approx((0.6, 0.36))


def test_baseline_learned_is_one_for_pure_noise_and_zero_against_the_grain() -> None:
    # Members that agree: all variance goes, and nothing is left
    residual_TEN, baseline = group_baseline(one_env([1, 1], [5, 5]), "auto")
    assert not residual_TEN.any() and baseline == (1.0, 1.0)
    # Members that are opposites: b = -A, the regression says -1, the clip 0
    residual_TEN, baseline = group_baseline(one_env([1, -1], [-2, 2]), "auto")
    np.testing.assert_array_equal(residual_TEN, one_env([1, -1], [-2, 2]))
    assert baseline == (0.0, 0.0)


@pytest.mark.parametrize("advantage", [0.0, 0.1, 1e8 / 3])
def test_baseline_of_equal_advantages_removes_nothing(advantage: float) -> None:
    """The rounding error of their mean is no variance to learn from."""
    advantages_TEN = np.full((3, 7, 3), advantage)
    residual_TEN, baseline = group_baseline(advantages_TEN, "auto")
    np.testing.assert_array_equal(residual_TEN, advantages_TEN)
    assert baseline == (0.0, 0.0)


several_members = groups.filter(lambda group: group.rewards_TEN.shape[2] > 1)


@quick
@given(several_members, st.sampled_from([0.0, 0.4, 1.0, "auto"]))
def test_baseline_equals_slow_loop(group: Group, beta: Any) -> None:
    array_TEN = group.rewards_TEN
    residual_TEN, baseline = group_baseline(array_TEN, beta)
    own, others, left = [], [], []
    for t, e, n in np.ndindex(*array_TEN.shape):
        rest = [float(array_TEN[t, e, m]) for m in range(array_TEN.shape[2]) if m != n]
        own.append(float(array_TEN[t, e, n]))
        others.append(math.fsum(rest) / len(rest))
        left.append(float(residual_TEN[t, e, n]))
    mean_own, mean_others, mean_left = (math.fsum(numbers) / len(numbers) for numbers in (own, others, left))
    if beta == "auto":
        covariance = math.fsum((a - mean_own) * (b - mean_others) for a, b in zip(own, others, strict=True))
        variance = math.fsum((b - mean_others) ** 2 for b in others)
        beta = min(max(covariance / variance, 0.0), 1.0)
    assert baseline.beta == pytest.approx(beta, rel=1e-9, abs=1e-9)
    assert left == pytest.approx([a - beta * b for a, b in zip(own, others, strict=True)], rel=1e-8, abs=1e-8)
    kept = math.fsum((x - mean_left) ** 2 for x in left) / math.fsum((a - mean_own) ** 2 for a in own)
    assert baseline.variance_removed == pytest.approx(1 - kept, rel=1e-8, abs=1e-8)


@quick
@given(several_members)
def test_learned_beta_is_the_best_in_its_range(group: Group) -> None:
    # A part shared by the group, so that the best beta is often inside the range
    advantages_TEN = group.rewards_TEN + 2 * group.values_TEN[:, :, :1]
    _, learned = group_baseline(advantages_TEN, "auto")
    assert 0.0 <= learned.beta <= 1.0
    for beta in np.linspace(0, 1, 11):
        _, fixed = group_baseline(advantages_TEN, float(beta))
        assert learned.variance_removed >= fixed.variance_removed - 1e-9


@quick
@given(several_members)
def test_whole_group_mean_leaves_nothing_common(group: Group) -> None:
    residual_TEN, _ = group_baseline(group.rewards_TEN, 1.0)
    np.testing.assert_allclose(residual_TEN.sum(axis=2), 0.0, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype: type) -> None:
    group = random_group(0, (5, 2, 3), 0.3, dtype)
    assert gae_group(*group, 0.9, 0.8).dtype == dtype
    for per_sample in (False, True):
        assert [array.dtype for array in paper_advantage(*group, 0.9, per_sample)] == [dtype, dtype]
    assert grpo_advantage(group.rewards_TEN, group.cut_TEN, 0.9).dtype == dtype
    assert group_baseline(group.rewards_TEN, "auto")[0].dtype == dtype
    assert group_baseline(group.rewards_TEN, 0.5)[0].dtype == dtype


# ---- errors


@pytest.mark.parametrize("position", range(5))
def test_shapes_that_numpy_would_broadcast_are_rejected(position: int) -> None:
    arrays: list[Any] = list(random_group(0, (4, 2, 3), 0.3))
    arrays[position] = arrays[position][:, :, :1]
    with pytest.raises(ValueError, match=r"\(4, 2, 1\).*same shape"):
        gae_group(*Group._make(arrays), 0.9, 0.8)
    with pytest.raises(ValueError, match=r"\(4, 2, 1\).*same shape"):
        paper_advantage(*Branches._make(arrays), 0.9)


def test_arrays_without_member_axis_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\).*N members"):
        grpo_advantage(np.zeros((4, 2)), np.zeros((4, 2), dtype=bool), 0.9)
    with pytest.raises(ValueError, match=r"\(4, 2\).*N members"):
        group_baseline(np.zeros((4, 2)), 0.5)
