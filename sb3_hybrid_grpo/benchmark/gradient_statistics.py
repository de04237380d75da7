"""
Variance and bias of a gradient estimator, from independent estimates: pure numpy.

The suffix of an array names its axes: ``RP`` is (R rollouts, P parameters), ``BR`` is (B rows of weights, R rollouts).
The squared length of a mean of R noisy gradients is on average too large by ``tr Cov / R``. This excess is subtracted from all
squared lengths here. They are unbiased then, and may be negative. Intervals are 95 % bootstrap intervals over rollouts.
Resampling adds the same noise a second time, so the excess is subtracted twice in the bootstrap's own rows.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and its interval; the upper end is infinite if the data give no bound."""

    value: float
    low: float
    high: float


class Sample:
    """
    Independent gradients of one estimator, from 2 rollouts or more. Row 0 of an array that ends in ``_B`` is the estimate
    itself, the other rows are the bootstrap's, which ``rng`` draws.
    """

    def __init__(self, gradients_RP: npt.NDArray[np.floating], rng: np.random.Generator, resamples: int = 2000) -> None:
        self.gradients_RP = gradients_RP.astype(np.float64)
        n = len(self.gradients_RP)
        drawn_BR = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
        self.weights_BR: FloatArray = np.concatenate([np.full((1, n), 1 / n), drawn_BR])
        gram_RR = self.gradients_RP @ self.gradients_RP.T
        mean_of_squares_B = self.weights_BR @ np.diag(gram_RR)
        square_of_mean_B = np.einsum("br,br->b", self.weights_BR @ gram_RR, self.weights_BR)
        self.trace_B: FloatArray = (mean_of_squares_B - square_of_mean_B) * n / (n - 1)  # of the covariance of one gradient
        self.noise_of_mean_B: FloatArray = self.trace_B / n
        self.noise_of_mean_B[1:] += self.trace_B[0] / n
        self.raw_square_of_mean_B: FloatArray = square_of_mean_B
        self.squared_norm_B: FloatArray = square_of_mean_B - self.noise_of_mean_B  # of the expected gradient

    def product(self, other: "Sample") -> FloatArray:
        """Scalar products of the expected gradients of two estimators from different rollouts, shape (B,)."""
        products_RR = self.gradients_RP @ other.gradients_RP.T
        product_B: FloatArray = np.einsum("br,br->b", self.weights_BR @ products_RR, other.weights_BR)
        return product_B


class Comparison(NamedTuple):
    """
    One estimator compared with the reference. For ``noise_ratio`` the gradient is first scaled, so that its expected component
    along the reference's expected gradient has that gradient's length: noise per progress, without units.
    """

    trace: float  # tr Cov of one gradient, in squared units of the gradient
    squared_norm: float  # ‖E g‖², in the same units; may be negative if noise dominates
    trace_ratio: Interval  # tr Cov over the reference's tr Cov: for estimators in the same units
    noise_ratio: Interval
    squared_bias: Interval  # ‖E g − E reference‖² / ‖E reference‖²: for estimators in the same units
    cosine: float  # between the two expected gradients; NaN if a squared norm is negative; by chance a little beyond 1


def compare(own: Sample, reference: Sample) -> Comparison:
    """Compare an estimator with the reference, which has other rollouts of the same size, and as many resamples."""
    product_B = own.product(reference)
    distance_B = own.raw_square_of_mean_B - 2 * product_B + reference.raw_square_of_mean_B
    squared_distance_B = distance_B - own.noise_of_mean_B - reference.noise_of_mean_B
    trace_ratio_B = own.trace_B / reference.trace_B
    known_B = reference.squared_norm_B > 0
    share_B = np.full_like(product_B, np.nan)
    np.divide(product_B, reference.squared_norm_B, out=share_B, where=known_B)
    noise_ratio_B = np.full_like(product_B, np.inf)  # no progress along the reference, or no reference
    np.divide(trace_ratio_B, share_B**2, out=noise_ratio_B, where=known_B & (share_B > 0))
    bias_B = np.full_like(product_B, np.inf)
    np.divide(squared_distance_B, reference.squared_norm_B, out=bias_B, where=known_B)
    squares = float(own.squared_norm_B[0]) * float(reference.squared_norm_B[0])
    cosine = float(product_B[0] / np.sqrt(squares)) if own.squared_norm_B[0] > 0 and known_B[0] else float("nan")
    trace_ratio, noise_ratio, bias = map(_interval, (trace_ratio_B, noise_ratio_B, bias_B))
    return Comparison(float(own.trace_B[0]), float(own.squared_norm_B[0]), trace_ratio, noise_ratio, bias, cosine)


def _interval(rows_B: FloatArray) -> Interval:
    # an order statistic without interpolation, because some rows may be infinite
    low, high = np.quantile(rows_B[1:], (0.025, 0.975), method="inverted_cdf")
    return Interval(float(rows_B[0]), float(low), float(high))
