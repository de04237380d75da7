"""
Reward transforms f(R): applied to a whole rollout of rewards just before advantages are estimated.

The stored rewards stay raw; only the estimator sees f(R).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
RewardTransform = Callable[[FloatArray], FloatArray]

#: The transforms that have a name.
NAMED_TRANSFORMS: dict[str, RewardTransform] = {
    # The paper's own choice (https://arxiv.org/abs/2502.01652): rewards of any size end up in (-1, 1)
    "tanh": np.tanh,
}


def resolve_transform(spec: str | RewardTransform | None) -> RewardTransform | None:
    """
    The transform that the user asked for, tried once on a small array so that a mistake shows before training.

    :param spec: None for raw rewards, a name out of ``NAMED_TRANSFORMS``, or a function from an array of rewards
        of shape (T steps, E envs, N members) to an array of the same shape
    :return: the function, or None for raw rewards
    :raises ValueError: if the name or type is unknown, or if the function changes the shape or gives NaN
    """
    if spec is None:
        return None
    if isinstance(spec, str) and spec in NAMED_TRANSFORMS:
        return NAMED_TRANSFORMS[spec]
    if not callable(spec):
        names = ", ".join(repr(name) for name in NAMED_TRANSFORMS)
        raise ValueError(
            f"Received reward_transform={spec!r}: there are None (raw rewards), {names}, "
            "or any function from an array of rewards to an array of the same shape."
        )
    # Ones, because a log or a square root is right for an env that has positive rewards only
    apply_transform(spec, np.ones((2, 1, 2), dtype=np.float32))
    return spec


def apply_transform(transform: RewardTransform | None, rewards_TEN: FloatArray) -> FloatArray:
    """
    f(R), with what a faulty f would do to the rollout turned into an error.

    :param transform: f, or None for raw rewards
    :param rewards_TEN: raw rewards, shape (T steps, E envs, N members); never written to
    :return: transformed rewards, same shape and dtype
    :raises ValueError: if f changes the shape, or gives NaN or infinity for a reward that is a finite number
    """
    if transform is None:
        return rewards_TEN
    # A copy, because f may work in place. Numpy's warnings are silenced: what they warn of is an error below
    with np.errstate(all="ignore"):
        transformed_TEN = np.asarray(transform(rewards_TEN.copy()))
    if transformed_TEN.shape != rewards_TEN.shape:
        raise ValueError(
            f"The reward transform turned shape {rewards_TEN.shape} into {transformed_TEN.shape}: "
            "it must work element by element, or keep reduced axes (keepdims=True) and return one number per reward."
        )
    bad_TEN = ~np.isfinite(transformed_TEN) & np.isfinite(rewards_TEN)
    if bad_TEN.any():
        raise ValueError(
            f"The reward transform gave NaN or infinity for {bad_TEN.sum()} of {bad_TEN.size} rewards, "
            f"for example for {float(rewards_TEN[bad_TEN][0])!r}: make it defined for every reward of the env "
            "(clip the input of a log or square root, add a small number to a divisor)."
        )
    return transformed_TEN.astype(rewards_TEN.dtype, copy=False)
