"""The paper's estimator: literals, a slow loop written from the equation, and what must hold of it."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_hybrid_grpo.advantages import paper_advantage
from tests.advantage_examples import Branches, Floats, Group, fractions, groups, one_env, one_env_mask, quick, random_group


def branches_of(group: Group, seed: int) -> Branches:
    """Who is cut starts at the next step; at the first one some start, some go on from the rollout before."""
    rng = np.random.default_rng(seed)
    _, n_envs, n_members = group.cut_TEN.shape
    first_EN = rng.random((n_envs, n_members)) < rng.choice([0.0, 0.4, 1.0])
    first_EN[:, 0] = rng.random(n_envs) < 0.2
    first_EN |= first_EN[:, :1]
    return Branches(*group[:4], starts_TEN=np.concatenate([first_EN[None], group.cut_TEN[:-1]]))


branches = st.builds(branches_of, groups, st.integers(0, 2**32 - 1))


def test_paper_literal_one_step() -> None:
    # gamma = 0.5: delta = 1 + 0.5 * 4 - 2 = 1, and terminated 3 - 2 = 1, and 6 + 0.5 * 2 - 2 = 5: mean 7 / 3
    advantages_TEN, returns_TEN = paper_advantage(
        one_env([1, 3, 6]), one_env([2, 2, 2]), one_env([4, 9, 2]), one_env_mask([0, 1, 0]), one_env_mask([0, 1, 1]), 0.5
    )
    np.testing.assert_allclose(advantages_TEN, one_env([7 / 3, 7 / 3, 7 / 3]), rtol=1e-15)
    np.testing.assert_allclose(returns_TEN, one_env([13 / 3, 13 / 3, 13 / 3]), rtol=1e-15)


def check_paper(example: Branches, gamma: float, *expected: npt.NDArray[np.float64]) -> None:
    """Expected are advantages and returns of "paper", then of "paper_per_sample"."""
    results = (*paper_advantage(*example, gamma), *paper_advantage(*example, gamma, per_sample=True))
    for result_TEN, expected_TEN in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result_TEN, expected_TEN)


def test_paper_literal_two_steps() -> None:
    # gamma = 0.5, two macro-steps of n = 2: the sibling forks at steps 0 and 2. V between forks (99) counts for nothing.
    # First: 1 + 0.5 * 4 + 0.25 * 4 - 2 = 2 and 2 + 0.5 * 8 + 0.25 * 8 - 2 = 6, mean 4
    # Second: 1 + 0.5 * 2 + 0.25 * 8 - 3 = 1 and 3 + 0.5 * 6 + 0.25 * 4 - 3 = 4, mean 2.5
    # Targets at forks V + A = 6 and 5.5, or 2 + 2, 2 + 6, 3 + 1 and 3 + 4;
    # between forks the rest: 4 + 0.5 * 4, 8 + 0.5 * 8, and 2 + 0.5 * 8, 6 + 0.5 * 4
    example = Branches(
        rewards_TEN=one_env([1, 2], [4, 8], [1, 3], [2, 6]),
        values_TEN=one_env([2, 2], [99, 99], [3, 3], [99, 99]),
        next_values_TEN=one_env([99, 99], [4, 8], [99, 99], [8, 4]),
        terminated_TEN=one_env_mask([0, 0], [0, 0], [0, 0], [0, 0]),
        starts_TEN=one_env_mask([0, 1], [0, 0], [0, 1], [0, 0]),
    )
    check_paper(
        example,
        0.5,
        one_env([4, 4], [4, 4], [2.5, 2.5], [2.5, 2.5]),
        one_env([6, 6], [6, 12], [5.5, 5.5], [6, 8]),
        one_env([2, 6], [2, 6], [1, 4], [1, 4]),
        one_env([4, 8], [6, 12], [4, 7], [6, 8]),
    )


def test_paper_literal_three_steps_with_siblings_that_end() -> None:
    # gamma = 0.5, n = 3. Member 1 terminates at once and forks alone at step 1; member 2 is truncated at step 1, V = 4,
    # and forks alone at step 2. Discounted rests of the branches, V where they end included:
    # step 2: 4 + 0.5 * 8 = 8, 8 + 0.5 * 16 = 16, 2 + 0.5 * 4 = 4
    # step 1: 4 + 0.5 * 8 = 8, 2 + 0.5 * 16 = 10, 8 + 0.5 * 4 = 10; step 0: 8 + 0.5 * 8 = 12, 6, 4 + 0.5 * 10 = 9
    # Less V where they start: 11, 5 and 8 from step 0, mean 8. From step 1, member 1 has 10 - 2 = 8, and member 0,
    # on its way, 8 - 2 = 6: mean 7. From step 2, member 2 has 4 - 3 = 1, member 0 has 8 - 3 = 5: mean 3
    example = Branches(
        rewards_TEN=one_env([8, 6, 4], [4, 2, 8], [4, 8, 2]),
        values_TEN=one_env([1, 1, 1], [2, 2, 99], [3, 99, 3]),
        next_values_TEN=one_env([2, 99, 99], [3, 99, 4], [8, 16, 4]),
        terminated_TEN=one_env_mask([0, 1, 0], [0, 0, 0], [0, 0, 0]),
        starts_TEN=one_env_mask([1, 1, 1], [0, 1, 0], [0, 0, 1]),
    )
    check_paper(
        example,
        0.5,
        one_env([8, 8, 8], [8, 7, 8], [8, 7, 3]),
        one_env([9, 9, 9], [8, 9, 10], [8, 16, 6]),
        one_env([11, 5, 8], [11, 8, 8], [11, 8, 1]),
        one_env([12, 6, 9], [8, 10, 10], [8, 16, 4]),
    )


def test_paper_literal_rollout_that_begins_in_mid_branch() -> None:
    # gamma = 0.5. Only member 2 forks at step 0. Rests: 4 + 0.5 * 8 = 8, 8 + 0 and 4 + 0.5 * 4 = 6 at step 1,
    # 2 + 0.5 * 8 = 6, 4 + 0.5 * 8 = 8 and 8 + 0.5 * 6 = 11 at step 0; less the V of their own states 5, 3 and 10.
    # Members 0 and 1 share the mean 4; member 2 shares member 0's state, mean 7.5
    example = Branches(
        rewards_TEN=one_env([2, 4, 8], [4, 8, 4]),
        values_TEN=one_env([1, 5, 1], [99, 99, 99]),
        next_values_TEN=one_env([99, 99, 99], [8, 0, 4]),
        terminated_TEN=one_env_mask([0, 0, 0], [0, 0, 0]),
        starts_TEN=one_env_mask([0, 0, 1], [0, 0, 0]),
    )
    check_paper(
        example,
        0.5,
        one_env([4, 4, 7.5], [4, 4, 7.5]),
        one_env([6, 8, 8.5], [8, 8, 6]),
        one_env([5, 3, 10], [5, 3, 10]),
        one_env([6, 8, 11], [8, 8, 6]),
    )


def slow_paper(example: Branches, gamma: float, per_sample: bool) -> tuple[Floats, Floats]:
    """The equation, branch by branch: each is walked from where it starts to where it ends."""
    rewards, values, next_values, terminated, starts = (array.tolist() for array in example)
    n_steps, n_envs, n_members = example.rewards_TEN.shape
    advantages_TEN, returns_TEN = np.zeros(example.rewards_TEN.shape), np.zeros(example.rewards_TEN.shape)

    def begins(t: int, e: int, n: int) -> bool:
        return bool(starts[t][e][n] or (n == 0 and all(starts[t][e][1:])))

    def n_step_return(t: int, e: int, n: int) -> float:
        terms, k = [], 0
        while True:
            terms.append(gamma**k * rewards[t + k][e][n])
            k += 1
            if t + k == n_steps or begins(t + k, e, n):
                break
        if not terminated[t + k - 1][e][n]:
            terms.append(gamma**k * next_values[t + k - 1][e][n])
        return math.fsum(terms)

    def macro_step(t: int, e: int, n: int) -> list[int]:
        if per_sample:
            return [n]
        if begins(t, e, n):
            return [m for m in range(n_members) if m == 0 or begins(t, e, m)]
        return [m for m in range(n_members) if not begins(t, e, m)]

    for e, n in np.ndindex(n_envs, n_members):
        for t in range(n_steps):
            returns_TEN[t, e, n] = n_step_return(t, e, n)
            if t == 0 or begins(t, e, n):
                brackets = [n_step_return(t, e, m) - values[t][e][m] for m in macro_step(t, e, n)]
                advantage = math.fsum(brackets) / len(brackets)
                if begins(t, e, n):
                    returns_TEN[t, e, n] = values[t][e][n] + advantage
            advantages_TEN[t, e, n] = advantage
    return advantages_TEN, returns_TEN


@quick
@given(branches, fractions, st.booleans())
def test_paper_equals_slow_loop(example: Branches, gamma: float, per_sample: bool) -> None:
    results = paper_advantage(*example, gamma, per_sample)
    for result_TEN, expected_TEN in zip(results, slow_paper(example, gamma, per_sample), strict=True):
        np.testing.assert_allclose(result_TEN, expected_TEN, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_members", [1, 2, 5, 8, 21])
@pytest.mark.parametrize("layout", [(0, 1, 2), (0, 2, 1)])
def test_paper_with_a_fork_at_every_step_is_the_one_step_equation_to_the_last_bit(
    dtype: type, n_members: int, layout: tuple[int, int, int]
) -> None:
    """Whatever the memory layout is: buffers hand over views of arrays (T, N, E)."""
    random = branches_of(random_group(1, (50, 3, n_members), 0.2, dtype), seed=2)
    random.starts_TEN[:, :, 1:] = True
    example = Branches._make(array.transpose(layout).copy().transpose(layout) for array in random)
    following_TEN = 0.97 * example.next_values_TEN * (1 - example.terminated_TEN.astype(dtype))
    delta_TEN = example.rewards_TEN + following_TEN - example.values_TEN
    expected_TEN = np.repeat(delta_TEN.mean(axis=2, keepdims=True), n_members, axis=2)

    advantages_TEN, returns_TEN = paper_advantage(*example, 0.97)
    np.testing.assert_array_equal(advantages_TEN, expected_TEN)
    np.testing.assert_array_equal(returns_TEN, example.values_TEN + expected_TEN)
    advantages_TEN, _ = paper_advantage(*example, 0.97, per_sample=True)
    np.testing.assert_array_equal(advantages_TEN, delta_TEN)


@quick
@given(branches, fractions, st.booleans())
def test_paper_of_a_perfect_critic_is_zero(example: Branches, gamma: float, per_sample: bool) -> None:
    """Whatever a branch is cut by, V where it ends stands for all that would follow."""
    next_values_TEN = example.next_values_TEN.copy()
    next_values_TEN[:-1] = np.where(example.starts_TEN[1:], next_values_TEN[:-1], example.values_TEN[1:])
    rewards_TEN = example.values_TEN - gamma * next_values_TEN * ~example.terminated_TEN
    perfect = example._replace(rewards_TEN=rewards_TEN, next_values_TEN=next_values_TEN)
    advantages_TEN, returns_TEN = paper_advantage(*perfect, gamma, per_sample)
    np.testing.assert_allclose(advantages_TEN, 0, atol=1e-9)
    np.testing.assert_allclose(returns_TEN, example.values_TEN, rtol=1e-9, atol=1e-9)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), fractions, st.booleans())
def test_paper_parts_of_a_macro_step_in_two_rollouts_add_up(
    seed: int, steps_before: int, gamma: float, per_sample: bool
) -> None:
    whole = branches_of(random_group(seed, (6, 2, 3), 0.0), seed)
    whole.starts_TEN[:] = False
    whole.starts_TEN[0, :, 1:] = True
    whole.next_values_TEN[:-1] = whole.values_TEN[1:]
    before = Branches._make(array[:steps_before] for array in whole)
    after = Branches._make(array[steps_before:] for array in whole)
    advantages_TEN, returns_TEN = paper_advantage(*whole, gamma, per_sample)
    before_TEN, _ = paper_advantage(*before, gamma, per_sample)
    after_TEN, returns_after_TEN = paper_advantage(*after, gamma, per_sample)
    sum_EN = before_TEN[0] + gamma**steps_before * after_TEN[0]
    np.testing.assert_allclose(sum_EN, advantages_TEN[0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(returns_after_TEN, returns_TEN[steps_before:], rtol=1e-10, atol=1e-10)


@quick
@given(branches, st.integers(0, 2**32 - 1), st.booleans())
def test_paper_order_of_siblings_does_not_matter(example: Branches, seed: int, per_sample: bool) -> None:
    order = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(example.rewards_TEN.shape[2] - 1)])
    reordered = Branches._make(array[:, :, order] for array in example)
    results = paper_advantage(*reordered, 0.9, per_sample)
    for result_TEN, expected_TEN in zip(results, paper_advantage(*example, 0.9, per_sample), strict=True):
        np.testing.assert_allclose(result_TEN, expected_TEN[:, :, order], rtol=1e-10, atol=1e-10)
