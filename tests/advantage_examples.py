"""Groups of random numbers, and arrays written by hand, for the tests of estimators."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


class Group(NamedTuple):
    """Arguments of ``gae_group`` up to gamma."""

    rewards_TEN: Floats
    values_TEN: Floats
    next_values_TEN: Floats
    terminated_TEN: Bools
    cut_TEN: Bools


class Branches(NamedTuple):
    """Arguments of ``paper_advantage`` up to gamma."""

    rewards_TEN: Floats
    values_TEN: Floats
    next_values_TEN: Floats
    terminated_TEN: Bools
    starts_TEN: Bools


def random_group(seed: int, shape: tuple[int, int, int], cut_rate: float, dtype: type = np.float64) -> Group:
    """Any siblings may be cut; where member 0 is, all are, as in every real rollout. All that terminate are cut."""
    rng = np.random.default_rng(seed)

    def numbers() -> Floats:
        return rng.normal(0, 10, shape).astype(dtype)

    cut_TEN = rng.random(shape) < cut_rate
    # Forks of the whole group are common in practice and would hardly ever come up by chance
    cut_TEN[:, :, 1:] |= rng.random((*shape[:2], 1)) < cut_rate
    cut_TEN |= cut_TEN[:, :, :1]
    terminated_TEN = cut_TEN & (rng.random(shape) < 0.5)
    return Group(numbers(), numbers(), numbers(), terminated_TEN, cut_TEN)


def one_env(*rows: list[float]) -> npt.NDArray[np.float64]:
    """Rows are time steps, columns members."""
    return np.array(rows, dtype=np.float64)[:, None, :]


def one_env_mask(*rows: list[int]) -> Bools:
    return np.array(rows, dtype=bool)[:, None, :]


groups = st.builds(
    random_group,
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4)),
    cut_rate=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
fractions = st.sampled_from([0.0, 0.3, 0.95, 1.0])
quick = settings(max_examples=80, deadline=None)
