"""Intervals over groups: targets of one sequence depend on each other, so that sequences are what is counted.

A share of sums has Student's interval, a quantile, which has no such form, the percentile bootstrap of whole groups.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from sparsity_lab.analysis.statistics import Interval

Floats = NDArray[np.float64]

RESAMPLES = 1000
FEWEST_GROUPS = 6
"""From fewer there is no interval: none between two of five groups covers a median with 95 %, for 1 - 2 / 2^5 is
0.94."""


def ratio_over_groups(above: Floats, below: Floats, groups: NDArray[np.int64]) -> Interval:
    """R = Σ above / Σ below with its 95 % interval, none from fewer than ``FEWEST_GROUPS``; ``below`` is positive.

    With a_g and b_g the sums over one of n groups, the interval is Student's of a quotient of means, to first order:

        R ± t sqrt(n / (n - 1) Σ (a_g - R b_g)²) / Σ b_g,   t the 97.5 % quantile with n - 1 degrees of freedom.
    """
    if not len(below):
        return Interval(None, None, None, 0)
    index, count = _indexed(groups)
    a, b = (np.bincount(index, weights=values, minlength=count) for values in (above, below))
    ratio = float(a.sum() / b.sum())
    if count < FEWEST_GROUPS:
        return Interval(ratio, None, None, count)
    error = float(np.sqrt(count / (count - 1) * ((a - ratio * b) ** 2).sum()) / b.sum())
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return Interval(ratio, ratio - half, ratio + half, count)


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

    estimate = float(quantile(np.ones((1, count)))[0])
    if count < FEWEST_GROUPS:
        return Interval(estimate, None, None, count)
    generator = np.random.Generator(np.random.PCG64(seed))
    weights: Float[np.ndarray, "R count"] = generator.multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    ).astype(np.float64)
    low, high = np.quantile(quantile(weights), [0.025, 0.975])
    return Interval(estimate, float(low), float(high), count)


def _indexed(groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    different, index = np.unique(groups, return_inverse=True)
    return index, len(different)
