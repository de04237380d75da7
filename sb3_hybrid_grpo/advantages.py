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

    A sibling that is cut at t starts t+1 as a copy of member 0. Where member 0 itself goes on,
    its :math:`A_{t+1}` is therefore the mean over member 0 and all siblings cut at t:
    they take their next action in the same state. That lowers the variance. The expectation stays the same
    as far as V is right where those siblings are cut in their turn: their advantage ends in V there,
    while member 0's own goes on.
    With N = 1 the result is plain GAE, to the last bit that of Stable-Baselines3.

    :param rewards_TEN: rewards, shape (T, E, N), after any reward transform
    :param values_TEN: V of the state acted in, in units of discounted reward
    :param next_values_TEN: V of the state reached, before any reset or fork; ignored where terminated
    :param terminated_TEN: the episode ended in a terminal state; a truncation is not one and bootstraps
    :param cut_TEN: the member does not go on at t+1: its episode ended (terminated or truncated),
        or, for siblings, a fork dropped it; the last step is a cut for everyone, whatever is given
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
    one number for all N branches of a macro-step T, which is a fork and the n steps up to the next one.

    .. math::
        A_T = \frac{1}{N} \sum_{m=1}^{N} [\sum_{k<n} \gamma^k f(R^m_{T+k}) + \gamma^n V(s^m_{T+n}) - V(s_T)]

    All n actions of a branch get it; ``per_sample`` keeps each branch's own bracket instead of the mean.
    A branch that ends early has an n of its own: after a terminal state without V, after a truncation and
    at the end of the rollout with V of the state reached. With a fork at every step, n = 1.

    The mean is over the branches that leave one state at one time. A sibling that forks alone leaves the state that
    member 0 passes through: its mean is over the siblings that fork there and the rest of member 0's branch,
    which itself goes on until all siblings fork at once.
    The members in mid-branch when the rollout begins count as one macro-step, each less the V of its own state:
    the parts of a macro-step on either side, :math:`A + \gamma^j A'`, add up to the equation.

    The critic's target is the discounted rest of the branch, V where it ends included;
    where a branch starts it is V + A, the mean over the branches that leave that state.

    :param rewards_TEN: rewards, shape (T, E, N), after the reward transform f
    :param values_TEN: V of the state acted in, in units of discounted reward
    :param next_values_TEN: V of the state reached, before any reset or fork; ignored where terminated
    :param terminated_TEN: the episode ended in a terminal state; a truncation is not one and bootstraps
    :param starts_TEN: the member did not come here by itself: its episode starts, or, for siblings, it was forked
        from member 0; that is ``cut_TEN`` of :func:`gae_group` one step later.
        With N = 1 there is no fork to tell where a macro-step ends: each is one step
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

    A sibling's segment ends where it is cut. Member 0's ends where it is cut, and where all its siblings are:
    the fork of the whole group starts a new comparison.
    With a fork at every step this is the standardised reward itself.

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
    Subtract a share of the other members' mean advantage: they live through the same noise, which V cannot foresee.

    .. math::
        b^i = \frac{1}{N-1} \sum_{m \neq i} A^m, \qquad A^i \leftarrow A^i - \beta b^i

    Leaving member i out keeps the policy gradient unbiased: its action has no influence on :math:`b^i`, with one exception.
    Where member 0's episode ends, its siblings are cut, and :math:`b^0` depends on that end as far as V is wrong there.
    ``"auto"`` takes the beta in [0, 1] that leaves the least variance over the rollout,
    :math:`clip(Cov(A, b) / Var(b), 0, 1)`, and 0 where :math:`Var(b) = 0`
    (the leave-one-out mean is that of RLOO, https://openreview.net/forum?id=r1lgTGL5DE).

    :param advantages_TEN: advantages of all members, shape (T, E, N), N of 2 or more
    :param beta: share to subtract, in [0, 1], or ``"auto"``
    :return: the new advantages (same shape and dtype), and what was subtracted
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
        # The order of these factors is that of Stable-Baselines3: another one rounds differently
        next_EN = sums_TEN[t] = delta_TEN[t] + decay * goes_on_TEN[t] * next_EN
    return sums_TEN


def _mean_over(array: FloatArray, members: BoolArray) -> FloatArray:
    """Mean over these members (the last axis, which stays, of length 1); 0 without any."""
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
    """Minus the mean, in float64; exactly zero for equal numbers, whose mean may be rounded."""
    offsets: npt.NDArray[np.float64] = array.astype(np.float64) - float(array.flat[0])
    offsets -= offsets.mean()
    return offsets


def _check_shapes(*arrays: FloatArray | BoolArray) -> None:
    """Numpy would broadcast a wrong shape into a wrong number without a word."""
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 3 or len(set(shapes)) > 1:
        raise ValueError(f"Received arrays of {shapes}: all must have the same shape (T steps, E envs, N members).")
