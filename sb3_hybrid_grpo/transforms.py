"""
Reward transforms f(R): applied to a whole rollout of rewards just before advantages are estimated.

The stored rewards stay raw. Only the estimator sees f(R), and f sees only rewards, never a bootstrapped value.
The suffix of an array names its axes: ``TEN`` is (T steps, E envs, N members of the group), member 0 the executed one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
RewardFunction = Callable[[FloatArray], FloatArray]
RewardTransform = str | RewardFunction | Sequence[str | RewardFunction]
"""A name, a function, a callable object, or a sequence of these, applied in order."""

EPSILON = 1e-8
CLIP_AT = 10.0


def clip(rewards_TEN: FloatArray) -> FloatArray:
    """
    Clip to [-10, 10], the range of Stable-Baselines3's VecNormalize.

    :param rewards_TEN: rewards
    :return: rewards within the range
    """
    return np.clip(rewards_TEN, -CLIP_AT, CLIP_AT)


def symlog(rewards_TEN: FloatArray) -> FloatArray:
    r"""
    Logarithm on both sides of zero (DreamerV3, https://arxiv.org/abs/2301.04104): :math:`sign(R) \log(1 + |R|)`.

    :param rewards_TEN: rewards
    :return: about R where R is small, about the signed logarithm of its size where R is large
    """
    logarithms_TEN: FloatArray = np.sign(rewards_TEN) * np.log1p(np.abs(rewards_TEN))
    return logarithms_TEN


def group(rewards_TEN: FloatArray) -> FloatArray:
    r"""
    Standardise within the N members at every step, as GRPO does (https://arxiv.org/abs/2402.03300).

    .. math::
        f(R^n_t) = \frac{R^n_t - mean_m R^m_t}{std_m R^m_t + 10^{-8}}

    :param rewards_TEN: rewards, shape (T, E, N), N of 2 or more
    :return: standard deviations above the group's mean; zero where all N are equal
    """
    # Relative to member 0, so that the mean of equal rewards is exact
    offsets_TEN = rewards_TEN - rewards_TEN[:, :, :1]
    centred_TEN = offsets_TEN - offsets_TEN.mean(axis=2, keepdims=True)
    standardized_TEN: FloatArray = centred_TEN / (offsets_TEN.std(axis=2, keepdims=True) + EPSILON)
    return standardized_TEN


@dataclass
class Moments:
    """
    Mean and (population) variance of all numbers so far.

    :param count: how many numbers; an initial count above 0 is the weight of the initial mean and variance
    :param mean: their mean
    :param variance: their variance
    """

    count: float = 0.0
    mean: float = 0.0
    variance: float = 1.0

    def include(self, numbers: npt.NDArray[np.float64]) -> None:
        r"""
        Merge a batch of n numbers with mean m and variance v (Chan, Golub and LeVeque,
        https://en.wikipedia.org/wiki/Algorithms_for_calculating_variance#Parallel_algorithm).

        .. math::
            \delta = m - \mu, \quad c' = c + n, \qquad
            \mu' = \mu + \delta \frac{n}{c'}, \qquad
            \sigma'^2 = \frac{c \sigma^2 + n v + \delta^2 c n / c'}{c'}

        :param numbers: any shape, at least one number
        """
        # Relative to one of them, so that the mean of equal numbers is exact
        offsets = numbers - numbers.flat[0]
        n, total = numbers.size, self.count + numbers.size
        delta = float(numbers.flat[0] + offsets.mean()) - self.mean
        squares = self.count * self.variance + n * float(offsets.var()) + delta**2 * self.count * (n / total)
        self.count, self.mean, self.variance = total, self.mean + delta * (n / total), squares / total


@dataclass
class Normalize:
    r"""
    :math:`(R - \mu) / (\sigma + 10^{-8})`, with mean and standard deviation of all members' rewards in all rollouts so far
    (adaptive normalisation of https://arxiv.org/abs/2502.01652). No clipping. No change before the first rollout.

    :param rewards: statistics of the rewards
    """

    rewards: Moments = field(default_factory=Moments)

    def learn(self, rewards_TEN: FloatArray, starts_TEN: BoolArray, gamma: float) -> None:
        """Include a rollout in the statistics. For the arguments see :meth:`Transform.__call__`."""
        self.rewards.include(rewards_TEN.astype(np.float64))

    def __call__(self, rewards_TEN: FloatArray) -> FloatArray:
        return (rewards_TEN.astype(np.float64) - self.rewards.mean) / (math.sqrt(self.rewards.variance) + EPSILON)


@dataclass
class Scale:
    r"""
    Divide rewards by the standard deviation of the discounted return so far. Signs stay. No clipping.

    .. math::
        G_t = \gamma G_{t-1} + R_t, \qquad f(R_t) = \frac{R_t}{\sqrt{Var(G) + 10^{-8}}}

    Each member's G goes on from rollout to rollout. G is 0 where an episode begins, and a forked sibling takes member 0's G.
    With N = 1, Var(G) equals VecNormalize's after the same steps. VecNormalize divides each reward by its estimate at that
    step; this transform divides all rewards of a rollout by the estimate at the end of the rollout.

    :param returns: statistics of G; like VecNormalize's, they begin with the weight of 1e-4 numbers of variance 1
    :param returns_EN: the present G of each member
    """

    returns: Moments = field(default_factory=lambda: Moments(count=1e-4))
    returns_EN: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))

    def learn(self, rewards_TEN: FloatArray, starts_TEN: BoolArray, gamma: float) -> None:
        """Include a rollout in the statistics. For the arguments see :meth:`Transform.__call__`."""
        n_steps, n_envs, n_members = rewards_TEN.shape
        returns_TEN = np.empty((n_steps, n_envs, n_members))
        returns_EN = self.returns_EN
        if returns_EN.shape != (n_envs, n_members):  # new siblings take member 0's G; with other envs, G is 0
            of_member_0 = returns_EN[:, :1] if len(returns_EN) == n_envs else np.zeros((n_envs, 1))
            returns_EN = np.repeat(of_member_0, n_members, axis=1)
        for t, starts_EN in enumerate(starts_TEN):
            origin_E1 = np.where(starts_EN[:, :1], 0.0, returns_EN[:, :1])
            returns_EN = gamma * np.where(starts_EN, origin_E1, returns_EN) + rewards_TEN[t]
            returns_TEN[t] = returns_EN
        self.returns_EN = returns_EN
        self.returns.include(returns_TEN)

    def __call__(self, rewards_TEN: FloatArray) -> FloatArray:
        return rewards_TEN.astype(np.float64) / math.sqrt(self.returns.variance + EPSILON)


Part = Normalize | Scale
"""A named transform that learns from every rollout."""

#: The named transforms: functions, and classes that learn from every rollout.
FUNCTIONS: dict[str, RewardFunction] = {
    # The choice of Hybrid GRPO's paper (https://arxiv.org/abs/2502.01652): rewards of any size end up in (-1, 1)
    "tanh": np.tanh,
    "clip": clip,
    "symlog": symlog,
    "group": group,
}
ADAPTIVE: dict[str, type[Part]] = {"normalize": Normalize, "scale": Scale}


class Transform:
    """
    f(R). A function is tried once on a small array, so that a mistake shows before training. A callable object is not: a call
    may change its state.

    :param spec: None for raw rewards; a name out of ``FUNCTIONS`` or ``ADAPTIVE``; a function from an array of rewards of
        shape (T steps, E envs, N members) to an array of the same shape, or an object that can be called like one; or a list
        of these, applied one after the other
    :param n_samples: N, the number of members of a group
    :param statistics: ``statistics`` of an earlier transform, for example of a saved model. A named transform goes on with
        its own if the names before it are the same. None: all begin anew. A user's object keeps its own state
    :raises ValueError: if a name or type is unknown, or if a function changes the shape or gives NaN
    """

    def __init__(self, spec: RewardTransform | None, n_samples: int, statistics: Mapping[str, Part] | None = None) -> None:
        parts: Sequence[Any] = spec if isinstance(spec, list | tuple) else [] if spec is None else [spec]
        if not parts and spec is not None:
            raise ValueError(f"Received reward_transform={spec!r}, which has no transform in it. Use None for raw rewards.")
        known = [*FUNCTIONS, *ADAPTIVE]
        for one in parts:
            if not callable(one) and not (isinstance(one, str) and one in known):
                raise ValueError(
                    f"Received reward_transform={spec!r}{'' if one is spec else f', where {one!r} is unknown'}. Use one of "
                    f"{', '.join(map(repr, known))}, any function from an array of rewards to an array of the same shape, a "
                    "list of these, or None alone for raw rewards."
                )
        self.names = tuple(one if isinstance(one, str) else getattr(one, "__name__", type(one).__name__) for one in parts)
        self.statistics: dict[str, Part] = {}
        """The transforms that learn. Each key lists the names of all transforms up to this one."""
        self.functions: list[RewardFunction] = []
        for index, one in enumerate(parts):
            if isinstance(one, str) and one in ADAPTIVE:
                place = ", ".join(self.names[: index + 1])
                self.statistics[place] = one = (statistics or {}).get(place) or ADAPTIVE[one]()
            self.functions.append(FUNCTIONS[one] if isinstance(one, str) else one)
        # Ones, because a user may take the log or the square root of rewards that are always positive
        ones_TEN = np.ones((2, 1, n_samples), dtype=np.float32)
        for name, function in zip(self.names, self.functions, strict=True):
            if isinstance(function, type(clip) | np.ufunc):  # others may have a state
                _applied(name, function, ones_TEN)

    def __call__(self, rewards_TEN: FloatArray, starts_TEN: BoolArray, gamma: float, learn: bool = True) -> FloatArray:
        """
        Transform rewards.

        :param rewards_TEN: Raw rewards, shape (T, E, N); never written to
        :param starts_TEN: The member's trace starts with this step: a new episode or, for siblings, a fork
        :param gamma: Discount factor
        :param learn: Whether to include the rewards in the statistics of f before f is applied. True once for every rollout,
            with all its rewards, in order. False: the statistics are used as they are
        :return: Transformed rewards, same shape and dtype
        :raises ValueError: if a function of f changes the shape, or gives NaN or infinity for rewards that are finite numbers
        """
        for number, (name, function) in enumerate(zip(self.names, self.functions, strict=True), start=1):
            if learn and isinstance(function, Part):
                function.learn(rewards_TEN, starts_TEN, gamma)
            label = name if len(self.names) == 1 else f"{name} (number {number} of {len(self.names)})"
            rewards_TEN = _applied(label, function, rewards_TEN)
        return rewards_TEN


def _applied(label: str, function: RewardFunction, rewards_TEN: FloatArray) -> FloatArray:
    # A copy, because f may work in place. Numpy's warnings are silenced: an error below says the same
    with np.errstate(all="ignore"):
        transformed_TEN: FloatArray = np.asarray(function(rewards_TEN.copy())).astype(rewards_TEN.dtype, copy=False)
    if transformed_TEN.shape != rewards_TEN.shape:
        raise ValueError(
            f"The reward transform {label} turned shape {rewards_TEN.shape} into {transformed_TEN.shape}: "
            "it must work element by element, or keep reduced axes (keepdims=True) and return one number per reward."
        )
    bad_TEN = ~np.isfinite(transformed_TEN) & np.isfinite(rewards_TEN)
    if bad_TEN.any():
        raise ValueError(
            f"The reward transform {label} gave NaN or infinity for {bad_TEN.sum()} of {bad_TEN.size} rewards, "
            f"for example for {float(rewards_TEN[bad_TEN][0])!r}: make it defined for every reward of the env "
            "(clip the input of a log or square root, add a small number to a divisor)."
        )
    return transformed_TEN
