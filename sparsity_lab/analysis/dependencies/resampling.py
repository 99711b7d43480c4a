"""Percentile bootstrap over groups: targets of one sequence depend on each other, so sequences are drawn."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from sparsity_lab.analysis.statistics import Interval

__all__ = ["quantile_over_groups", "ratio_over_groups"]

Floats = NDArray[np.float64]

RESAMPLES = 1000
FEWEST_GROUPS = 6
"""With fewer, no interval between two of the groups covers a median with 95 %: 1 - 2 / 2^5 is 0.94."""


def ratio_over_groups(above: Floats, below: Floats, groups: NDArray[np.int64], seed: int = 0) -> Interval:
    """Σ above / Σ below with its 95 % interval, none from fewer than ``FEWEST_GROUPS``; ``below`` is positive."""
    if not len(below):
        return Interval(None, None, None, 0)
    index, count = _indexed(groups)
    sums = np.stack([np.bincount(index, weights=values, minlength=count) for values in (above, below)])

    def ratio(weights: Floats) -> Floats:
        numerator, denominator = sums @ weights.T
        return np.asarray(numerator / denominator)

    return _interval(ratio, count, seed)


def quantile_over_groups(
    values: NDArray[np.generic], groups: NDArray[np.int64], level: float, seed: int = 0
) -> Interval:
    """The smallest value that at least this share of all values do not exceed, with its 95 % interval."""
    if not len(values):
        return Interval(None, None, None, 0)
    index, count = _indexed(groups)
    different, place = np.unique(values, return_inverse=True)
    table = np.zeros((count, len(different)))
    np.add.at(table, (index, place), 1.0)

    def quantile(weights: Floats) -> Floats:
        cumulative = np.cumsum(weights @ table, axis=1)
        reached = cumulative >= level * cumulative[:, -1:] - 1e-9
        return np.asarray(different[reached.argmax(axis=1)], dtype=np.float64)

    return _interval(quantile, count, seed)


def _indexed(groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    different, index = np.unique(groups, return_inverse=True)
    return index, len(different)


def _interval(
    statistic: Callable[[Floats], Floats],
    count: int,
    seed: int,
) -> Interval:
    """Of a function from (R, count) weights of the groups to (R,) values."""
    estimate = float(statistic(np.ones((1, count)))[0])
    if count < FEWEST_GROUPS:
        return Interval(estimate, None, None, count)
    generator = np.random.Generator(np.random.PCG64(seed))
    weights: Float[np.ndarray, "R count"] = generator.multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    ).astype(np.float64)
    low, high = np.quantile(statistic(weights), [0.025, 0.975])
    return Interval(estimate, float(low), float(high), count)
