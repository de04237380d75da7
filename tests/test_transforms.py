"""Reward transforms: what they give, and what a faulty one is turned into."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_hybrid_grpo.transforms import NAMED_TRANSFORMS, apply_transform, resolve_transform

Floats = npt.NDArray[np.floating[Any]]


def rewards_of(*numbers: float, dtype: type = np.float32) -> Floats:
    return np.array(numbers, dtype=dtype).reshape(1, 1, -1)


def test_none_is_raw_rewards() -> None:
    assert resolve_transform(None) is None
    rewards_TEN = rewards_of(1.0, -3.0, math.nan)
    np.testing.assert_array_equal(apply_transform(None, rewards_TEN), rewards_TEN)


def test_tanh_literal() -> None:
    # tanh(x) = (e^2x - 1) / (e^2x + 1): for x = ln 3 / 2 that is (3 - 1) / (3 + 1), for x = ln 2 it is (4 - 1) / (4 + 1)
    rewards_TEN = rewards_of(0.0, math.log(3) / 2, -math.log(2), 1000.0)
    result_TEN = apply_transform(resolve_transform("tanh"), rewards_TEN)
    np.testing.assert_allclose(result_TEN, rewards_of(0.0, 0.5, -0.6, 1.0), rtol=1e-6)
    assert result_TEN.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.floats(-1e3, 1e3, allow_nan=False)
    )
)
def test_tanh_equals_slow_loop(rewards_TEN: npt.NDArray[np.float64]) -> None:
    result_TEN = apply_transform(resolve_transform("tanh"), rewards_TEN)
    assert result_TEN.shape == rewards_TEN.shape
    assert result_TEN.ravel().tolist() == pytest.approx([math.tanh(x) for x in rewards_TEN.ravel().tolist()], rel=1e-12)


def test_a_function_is_used_as_it_is() -> None:
    def halve(rewards_TEN: Floats) -> Floats:
        return rewards_TEN / 2

    assert resolve_transform(halve) is halve
    np.testing.assert_array_equal(apply_transform(halve, rewards_of(2.0, -6.0)), rewards_of(1.0, -3.0))


@pytest.mark.parametrize("function", [np.log, np.sqrt, np.reciprocal], ids=["log", "sqrt", "reciprocal"])
def test_functions_for_positive_rewards_are_accepted(function: Any) -> None:
    assert resolve_transform(function) is function


def test_every_name_is_accepted_and_keeps_dtype_and_shape() -> None:
    assert "tanh" in NAMED_TRANSFORMS
    for name in NAMED_TRANSFORMS:
        result_TEN = apply_transform(resolve_transform(name), rewards_of(-2.0, 0.0, 3.0))
        assert result_TEN.dtype == np.float32 and result_TEN.shape == (1, 1, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_whatever_the_function_returns(dtype: type) -> None:
    for function in (lambda r: r.astype(np.float64), lambda r: r > 0, lambda r: r.tolist()):
        result_TEN = apply_transform(function, rewards_of(1.0, -1.0, dtype=dtype))
        assert isinstance(result_TEN, np.ndarray) and result_TEN.dtype == dtype


def test_stored_rewards_stay_raw_when_the_function_works_in_place() -> None:
    def clip_in_place(rewards_TEN: Floats) -> Floats:
        return np.clip(rewards_TEN, -1, 1, out=rewards_TEN)

    rewards_TEN = rewards_of(5.0, -0.5)
    np.testing.assert_array_equal(apply_transform(clip_in_place, rewards_TEN), rewards_of(1.0, -0.5))
    np.testing.assert_array_equal(rewards_TEN, rewards_of(5.0, -0.5))


@pytest.mark.parametrize("spec", ["tahn", "", 3, ["tanh"]])
def test_unknown_transform_is_named_along_with_what_exists(spec: Any) -> None:
    with pytest.raises(ValueError) as error:
        resolve_transform(spec)
    assert repr(spec) in str(error.value)
    assert "None" in str(error.value) and "'tanh'" in str(error.value)


def test_changed_shape_is_found_before_training() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 2\) into \(2, 1\).*one number per reward"):
        resolve_transform(lambda rewards_TEN: rewards_TEN.mean(axis=2))


def test_changed_shape_is_found_in_training() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2\) into \(2,\)"):
        apply_transform(lambda rewards_TEN: rewards_TEN.ravel(), rewards_of(1.0, 2.0))


def test_nan_is_found_before_training() -> None:
    with pytest.raises(ValueError, match=r"NaN or infinity for 4 of 4 rewards"):
        resolve_transform(lambda rewards_TEN: np.sqrt(-rewards_TEN))


@pytest.mark.filterwarnings("error")
def test_nan_in_training_is_counted_with_an_example_and_the_fix() -> None:
    with pytest.raises(ValueError, match=r"NaN or infinity for 2 of 3 rewards, for example for -4\.0: .*clip"):
        apply_transform(np.sqrt, rewards_of(9.0, -4.0, -1.0))


def test_nan_that_was_there_before_is_not_the_functions_fault() -> None:
    result_TEN = apply_transform(np.sqrt, rewards_of(9.0, math.nan))
    np.testing.assert_array_equal(result_TEN, rewards_of(3.0, math.nan))
