r"""
Advantage estimators for groups of trajectories: pure numpy, no state.

The suffix of an array names its axes: ``TEN`` is (T steps, E envs, N members of the group).
Member 0 is the executed one, members 1 to N-1 are its siblings.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_hybrid_grpo.transforms import group

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


class Baseline(NamedTuple):
    """
    What :func:`group_baseline` subtracted, for logging.

    :param beta: weight of the leave-one-out mean: 0 is the critic's baseline alone, 1 the whole group mean
    :param variance_removed: ``1 - Var(A - beta * b) / Var(A)``, at most 1;
        negative where a fixed ``beta`` added variance
    """

    beta: float
    variance_removed: float


def gae_group(
    rewards_TEN: FloatArray,
    values_TEN: FloatArray,
    next_values_TEN: FloatArray,
    terminated_TEN: BoolArray,
    cut_TEN: BoolArray,
    gamma: float,
    gae_lambda: float,
) -> FloatArray:
    r"""
    Generalized Advantage Estimation (GAE, https://arxiv.org/abs/1506.02438) for every member of every group.

    .. math::
        \delta_t = r_t + \gamma V(s'_t) (1 - terminated_t) - V(s_t), \qquad
        A_t = \delta_t + \gamma \lambda (1 - cut_t) A_{t+1}

    A sibling that is cut at t starts t+1 as a copy of member 0. If member 0 itself goes on, all of them act
    in the same state at t+1. Member 0's trace then takes the mean of :math:`A_{t+1}` over itself and these siblings.
    The mean has less variance. It is unbiased if V is right: a sibling's advantage bootstraps from V
    at the sibling's next cut, while member 0's trace goes on.
    With N = 1 the result is plain GAE, bit for bit as Stable-Baselines3 computes it.

    :param rewards_TEN: rewards, shape (T, E, N), after any reward transform
    :param values_TEN: V of the state at t, in units of discounted reward
    :param next_values_TEN: V of the next state, before any reset or fork; ignored where terminated
    :param terminated_TEN: the episode ended in a terminal state; a truncation does not count and bootstraps
    :param cut_TEN: the member does not go on at t+1: its episode ended (terminated or truncated),
        or, for siblings, a fork replaced it; the last step always counts as a cut
    :param gamma: discount factor, in [0, 1]
    :param gae_lambda: decay of the trace, in [0, 1]: 0 is the one-step TD error, 1 the discounted return minus V
    :return: advantages, shape (T, E, N), dtype of the inputs
    :raises ValueError: if the shapes differ or are not (T, E, N)
    """
    _check_shapes(rewards_TEN, values_TEN, next_values_TEN, terminated_TEN, cut_TEN)
    delta_TEN = _one_step_returns(rewards_TEN, next_values_TEN, terminated_TEN, gamma) - values_TEN
    return _discounted_sums(delta_TEN, cut_TEN, gamma * gae_lambda, forks=True)


def paper_advantage(
    rewards_TEN: FloatArray,
    values_TEN: FloatArray,
    next_values_TEN: FloatArray,
    terminated_TEN: BoolArray,
    starts_TEN: BoolArray,
    gamma: float,
    per_sample: bool = False,
) -> tuple[FloatArray, FloatArray]:
    r"""
    Advantage of Hybrid GRPO (https://arxiv.org/abs/2502.01652, hierarchical multi-step sub-sampling):
    one number for all N branches of a macro-step T. A macro-step is the n steps from one fork to the next.

    .. math::
        A_T = \frac{1}{N} \sum_{m=1}^{N} [\sum_{k<n} \gamma^k f(R^m_{T+k}) + \gamma^n V(s^m_{T+n}) - V(s_T)]

    All n actions of a branch get this advantage. With ``per_sample`` each branch gets its own bracket instead of the mean.
    A branch that ends early has a smaller n. A terminal state has V = 0;
    a truncation and the end of the rollout bootstrap from V of the next state. With a fork at every step, n = 1.

    The mean is over the branches that start in the same state at the same time. If only some siblings fork,
    their mean includes the rest of member 0's branch, which passes through the same state.
    Member 0's own branch goes on until all siblings fork at once.
    Branches that are under way when the rollout begins count as one macro-step; each subtracts V of its own state.
    The two parts of such a macro-step, in two rollouts, add up to the equation: :math:`A + \gamma^j A'`.

    The critic's target is the discounted return to the end of the branch, bootstrapped with V there.
    At the start of a branch it is V + A, the mean over the branches that start in that state.

    :param rewards_TEN: rewards, shape (T, E, N), after the reward transform f
    :param values_TEN: V of the state at t, in units of discounted reward
    :param next_values_TEN: V of the next state, before any reset or fork; ignored where terminated
    :param terminated_TEN: the episode ended in a terminal state; a truncation does not count and bootstraps
    :param starts_TEN: an episode or, for siblings, a fork from member 0 starts at t:
        ``cut_TEN`` of :func:`gae_group`, one step later. With N = 1 every step is a macro-step of its own
    :param gamma: discount factor, in [0, 1]
    :param per_sample: each branch keeps its own advantage
    :return: advantages and targets for the critic, shape (T, E, N), dtype of the inputs
    :raises ValueError: if the shapes differ or are not (T, E, N)
    """
    _check_shapes(rewards_TEN, values_TEN, next_values_TEN, terminated_TEN, starts_TEN)
    starts_TEN = np.copy(starts_TEN)  # keeps the memory layout, and with it the order in which numpy adds
    starts_TEN[:, :, 0] |= starts_TEN[:, :, 1:].all(axis=2)
    returns_TEN = _one_step_returns(rewards_TEN, next_values_TEN, terminated_TEN, gamma)
    for t in reversed(range(len(returns_TEN) - 1)):
        returns_TEN[t] = np.where(starts_TEN[t + 1], returns_TEN[t], rewards_TEN[t] + gamma * returns_TEN[t + 1])

    advantages_TEN = returns_TEN - values_TEN
    if not per_sample:
        in_one_state_TEN = np.copy(starts_TEN)
        in_one_state_TEN[:, :, 0] = True
        means_TEN = _mean_over(advantages_TEN, in_one_state_TEN)
        advantages_TEN = np.where(starts_TEN, means_TEN, _mean_over(advantages_TEN, ~starts_TEN))
        returns_TEN = np.where(starts_TEN, values_TEN + advantages_TEN, returns_TEN)
    for t in range(1, len(advantages_TEN)):
        advantages_TEN[t] = np.where(starts_TEN[t], advantages_TEN[t], advantages_TEN[t - 1])
    return advantages_TEN, returns_TEN


def grpo_advantage(rewards_TEN: FloatArray, cut_TEN: BoolArray, gamma: float) -> FloatArray:
    r"""
    Group-relative advantage of GRPO (https://arxiv.org/abs/2402.03300, outcome and process supervision): no critic.

    .. math::
        A^n_t = \frac{R^n_t - mean_m R^m_t}{std_m R^m_t + 10^{-8}} + \gamma (1 - end^n_t) A^n_{t+1}

    A sibling's segment ends where the sibling is cut. Member 0's segment ends where member 0 is cut,
    and where all its siblings are cut: a fork of the whole group starts a new comparison.
    With a fork at every step the advantage is the standardised reward itself.

    :param rewards_TEN: rewards, shape (T, E, N), after any reward transform; with N = 1 there is nothing
        to compare with and the result is zero
    :param cut_TEN: the member does not go on at t+1, as in :func:`gae_group`
    :param gamma: discount factor within a segment, in [0, 1]
    :return: advantages, shape (T, E, N), in standard deviations, dtype of the rewards
    :raises ValueError: if the shapes differ or are not (T, E, N)
    """
    _check_shapes(rewards_TEN, cut_TEN)
    end_TEN = cut_TEN.copy()
    end_TEN[:, :, 0] |= cut_TEN[:, :, 1:].all(axis=2)
    return _discounted_sums(group(rewards_TEN), end_TEN, gamma, forks=False)


def group_baseline(advantages_TEN: FloatArray, beta: float | Literal["auto"]) -> tuple[FloatArray, Baseline]:
    r"""
    Subtract a share of the other members' mean advantage: all members meet the same noise, which V cannot predict.

    .. math::
        b^i = \frac{1}{N-1} \sum_{m \neq i} A^m, \qquad A^i \leftarrow A^i - \beta b^i

    The mean leaves member i out, as in RLOO (https://openreview.net/forum?id=r1lgTGL5DE), so that the member's own action
    cannot change :math:`b^i`. This keeps the policy gradient unbiased, with one exception: when member 0's episode ends,
    its siblings are cut and bootstrap from V, so an error of V there makes :math:`b^0` depend on member 0's actions.
    ``"auto"`` takes the beta in [0, 1] that leaves the least variance over the rollout,
    :math:`clip(Cov(A, b) / Var(b), 0, 1)`, and 0 where :math:`Var(b) = 0`.

    :param advantages_TEN: advantages of all members, shape (T, E, N), N of 2 or more
    :param beta: share to subtract, in [0, 1], or ``"auto"``
    :return: the new advantages (same shape and dtype), and the :class:`Baseline`
    :raises ValueError: if the shape is not (T, E, N)
    """
    _check_shapes(advantages_TEN)
    others_TEN = (advantages_TEN.sum(axis=2, keepdims=True) - advantages_TEN) / (advantages_TEN.shape[2] - 1)
    weight = _least_variance_beta(advantages_TEN, others_TEN) if beta == "auto" else float(beta)
    residual_TEN = advantages_TEN - weight * others_TEN
    variance = float(np.square(_centred(advantages_TEN)).mean())
    removed = 0.0 if variance == 0.0 else 1.0 - float(np.square(_centred(residual_TEN)).mean()) / variance
    return residual_TEN, Baseline(beta=weight, variance_removed=removed)


def _one_step_returns(
    rewards_TEN: FloatArray, next_values_TEN: FloatArray, terminated_TEN: BoolArray, gamma: float
) -> FloatArray:
    """r + gamma * V(s') * (1 - terminated), rounded as in Stable-Baselines3."""
    terminated_mask_TEN: FloatArray = terminated_TEN.astype(rewards_TEN.dtype)
    return rewards_TEN + gamma * next_values_TEN * (1 - terminated_mask_TEN)


def _discounted_sums(delta_TEN: FloatArray, cut_TEN: BoolArray, decay: float, forks: bool) -> FloatArray:
    """A_t = delta_t + decay * (1 - cut_t) * A_{t+1}. With forks, members that are cut start t+1 in member 0's state."""
    goes_on_TEN = 1 - cut_TEN.astype(delta_TEN.dtype)
    sums_TEN = np.empty_like(delta_TEN)
    next_EN = np.zeros(delta_TEN.shape[1:], dtype=delta_TEN.dtype)
    for t in reversed(range(len(delta_TEN))):
        if forks:  # member 0's A_{t+1} is the mean over all who start t+1 in its state
            starts_EN = cut_TEN[t].copy()
            starts_EN[:, 0] = True
            next_EN[:, :1] = _mean_over(next_EN, starts_EN)
        # Stable-Baselines3's order of factors: another one rounds differently
        next_EN = sums_TEN[t] = delta_TEN[t] + decay * goes_on_TEN[t] * next_EN
    return sums_TEN


def _mean_over(array: FloatArray, members: BoolArray) -> FloatArray:
    """Mean over the marked members along the last axis, which is kept; 0 where none is marked."""
    counts = np.maximum(members.sum(axis=-1, keepdims=True), 1).astype(array.dtype)
    means: FloatArray = np.where(members, array, 0).sum(axis=-1, keepdims=True) / counts
    return means


def _least_variance_beta(advantages_TEN: FloatArray, others_TEN: FloatArray) -> float:
    """Slope of the regression of A on b, kept within [0, 1]; 0 where b does not vary."""
    centred_TEN = _centred(others_TEN)
    variance = float(np.square(centred_TEN).mean())
    slope = 0.0 if variance == 0.0 else float((_centred(advantages_TEN) * centred_TEN).mean()) / variance
    return min(max(slope, 0.0), 1.0)


def _centred(array: FloatArray) -> npt.NDArray[np.float64]:
    """Subtract the mean, in float64. Equal numbers give exact zeros, although their mean may be rounded."""
    offsets: npt.NDArray[np.float64] = array.astype(np.float64) - float(array.flat[0])
    offsets -= offsets.mean()
    return offsets


def _check_shapes(*arrays: FloatArray | BoolArray) -> None:
    """Refuse wrong shapes, which numpy would silently broadcast to wrong numbers."""
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 3 or len(set(shapes)) > 1:
        raise ValueError(f"Received arrays of {shapes}: all must have the same shape (T steps, E envs, N members).")
