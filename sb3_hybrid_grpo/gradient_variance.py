r"""
Variance of the policy gradient in a grouped rollout and in as many independent steps: pure numpy, no state.

The suffix of an array names its axes: ``TEN`` is (T steps, E envs, N members of the group).
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
LONGEST_UNIT = 64


class GradientVariances(NamedTuple):
    """
    Variances of a policy gradient estimate: each is the trace of its covariance matrix.

    :param grouped: Variance with a group of N members and the group baseline
    :param independent: Variance with N independent members and the critic's baseline alone
    :param n_units: Number of units that both were estimated from, see :func:`gradient_variances`
    """

    grouped: float
    independent: float
    n_units: int


def gradient_variances(
    scores_TENA: FloatArray,
    features_TENH: FloatArray,
    advantages_TEN: FloatArray,
    plain_TEN: FloatArray,
    forks_TE: npt.NDArray[np.bool_],
) -> GradientVariances | None:
    r"""
    Estimate both variances from one grouped rollout.

    A unit u is a time between two forks of a whole group in one env, in equal parts if it is longer than 64 steps. If this
    gives only one unit, its halves are the units. The gradient of member m in it, by the actor's last layer, is

    .. math::
        g_{u,m}(A) = \frac{1}{\sqrt{L_u}} \sum_{t \in u} A_t^m \; score(a_t^m) \otimes features(s_t^m)

    with the length :math:`L_u`, whose root gives units of different lengths the same scale. With A the advantages after the
    group baseline and :math:`A^0` before it,

    .. math::
        grouped = Var_u\Big(\frac{1}{N}\sum_m g_{u,m}(A)\Big), \qquad
        independent = \frac{1}{N} \cdot \frac{1}{N}\sum_m Var_u\big(g_{u,m}(A^0)\big)

    ρ = grouped / independent, after each is averaged over rollouts (an average of ratios would be biased). Independent steps
    need 1/ρ times the samples for an equally good gradient. ρ is 1 for independent members without a group baseline. It is
    near 0 where noise moves the returns of all members alike, so that the group baseline removes most of the variance.

    :param scores_TENA: Gradient of the log-probability of each action with respect to the A parameters of its distribution
    :param features_TENH: The H inputs of the actor's last layer; ones of shape (T, E, N, 1) if they are unknown
    :param advantages_TEN: Advantages after the group baseline
    :param plain_TEN: Advantages before it
    :param forks_TE: Steps at which all siblings of an env have just forked
    :return: The variances; None with fewer than two units
    """
    grouped, independent = [], []
    n_steps, n_envs = forks_TE.shape
    fewest = 2 if n_envs == 1 and not forks_TE[1:].any() else 1
    for e in range(n_envs):
        edges = [*np.flatnonzero(forks_TE[:, e] | (np.arange(n_steps) == 0)), n_steps]
        spans = [np.linspace(a, b, max(-(-(b - a) // LONGEST_UNIT), fewest) + 1).astype(int) for a, b in pairwise(edges)]
        for start, end in (unit for span in spans for unit in pairwise(np.unique(span))):
            scores, features = scores_TENA[start:end, e], features_TENH[start:end, e]
            both = np.stack([advantages_TEN[start:end, e], plain_TEN[start:end, e]])
            gradients = np.einsum("xtn,tna,tnh->xnah", both, scores, features, optimize=True) / np.sqrt(end - start)
            grouped.append(gradients[0].mean(axis=0).ravel())
            independent.append(gradients[1].reshape(gradients.shape[1], -1))
    if len(grouped) < 2:
        return None
    n_members = advantages_TEN.shape[2]
    return GradientVariances(_trace(np.array(grouped)), _trace(np.array(independent)) / n_members**2, len(grouped))


def _trace(estimates: FloatArray) -> float:
    """Trace of the covariance over the first axis, summed over all others."""
    return float(((estimates - estimates.mean(axis=0)) ** 2).sum(dtype=np.float64) / (len(estimates) - 1))
