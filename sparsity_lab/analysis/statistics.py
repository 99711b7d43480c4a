"""The intervals that figures and tables show, as plain functions of numbers.

Targets of one sequence depend on each other. Groups are the unit there: a share of sums has Student's interval over
them. A quantile has no such form, and gets the percentile bootstrap of whole groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sparsity_lab.settings import SettingError

Floats = NDArray[np.float64]

_RESAMPLES = 1000
FEWEST_GROUPS = 6
"""From fewer there is no interval: none between two of five groups covers a median with 95 %, for 1 - 2 / 2^5 is
0.94."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; without values, nothing.

    >>> mean_interval([0.1, 0.2, 0.3]).count
    3

    Attributes:
        estimate: the median or mean; None without values.
        low, high: ends of the interval; None with fewer than two values, because one value says nothing about the
            spread between runs.
        count: number of values.
        coverage: the probability with which such an interval covers what is estimated, at least, where it is not the
            confidence that was asked for: one of ``median_interval``.
    """

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    count: int = 0
    coverage: float | None = None

    @property
    def decided(self) -> bool:
        """True if there is an interval and 0 lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def columns(self, name: str, ends: str = "") -> dict[str, float | None]:
        """The estimate under this name and both ends, a part of a frame's row.

        >>> mean_interval([0.5]).columns("loss", "loss_")
        {'loss': 0.5, 'loss_low': None, 'loss_high': None}
        """
        return {name: self.estimate, f"{ends}low": self.low, f"{ends}high": self.high}


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median with the interval of the sign test: from the r-th smallest to the r-th largest (``median_rank``).

    It assumes only independent draws from one distribution, and reports its coverage. With five values or fewer, no
    interval between two of them covers the median with 95 %. It is then their whole range, and covers 50 %, 75 %,
    87.5 % and 93.75 % with two, three, four and five values.

    >>> median_interval([3.0, 1.0, 2.0])
    Interval(estimate=2.0, low=1.0, high=3.0, count=3, coverage=0.75)

    Raises:
        SettingError: confidence outside (0, 1).
    """
    _check_confidence(confidence)
    ordered = sorted(map(float, values))
    if len(ordered) < 2:
        return Interval(next(iter(ordered), None), count=len(ordered))
    median = float(np.median(ordered))
    rank, coverage = median_rank(len(ordered), confidence)
    return Interval(median, ordered[rank - 1], ordered[-rank], len(ordered), coverage)


def median_rank(count: int, confidence: float) -> tuple[int, float]:
    """r and the coverage of the interval from the r-th smallest to the r-th largest of ``count`` values, where r is
    the largest with

        coverage = 1 - 2 P(Binomial(count, 1/2) < r) >= confidence,

    and 1, the whole range with a smaller coverage, 1 - 2 / 2^count, where there are too few values for that.
    """
    ways = list(accumulate(math.comb(count, below) for below in range((count + 1) // 2)))
    covers = [1 - 2 * fewer / 2**count for fewer in ways]
    enough = [rank for rank, coverage in enumerate(covers, 1) if coverage >= confidence]
    rank = max(enough, default=1)
    return rank, covers[rank - 1]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean with Student's interval, mean ± t s / sqrt(n), where t is the quantile with n - 1 degrees of freedom.

    >>> found = mean_interval([0.1, 0.2, 0.3])
    >>> found.low < found.estimate < found.high
    True

    Raises:
        SettingError: confidence outside (0, 1).
    """
    _check_confidence(confidence)
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return Interval(next(iter(sample.tolist()), None), count=sample.size)
    mean = float(sample.mean())
    quantile = float(stats.t.ppf((1 + confidence) / 2, sample.size - 1))
    half = quantile * float(sample.std(ddof=1)) / float(np.sqrt(sample.size))
    return Interval(mean, mean - half, mean + half, sample.size)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SettingError("confidence", "a number between 0 and 1", confidence)


def ratio_over_groups(above: Floats, below: Floats, groups: NDArray[np.int64]) -> Interval:
    """R = Σ above / Σ below with its 95 % interval, none from fewer than ``FEWEST_GROUPS``; ``below`` is positive.

    With a_g and b_g the sums over one of n groups, the interval is Student's of a quotient of means, to first order:

        R ± t sqrt(n / (n - 1) Σ (a_g - R b_g)²) / Σ b_g,   t the 97.5 % quantile with n - 1 degrees of freedom.
    """
    if not len(below):
        return Interval()
    index, count = _numbered(groups)
    a, b = (np.bincount(index, weights=values, minlength=count) for values in (above, below))
    ratio = float(a.sum() / b.sum())
    if count < FEWEST_GROUPS:
        return Interval(ratio, count=count)
    error = float(np.sqrt(count / (count - 1) * ((a - ratio * b) ** 2).sum()) / b.sum())
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return Interval(ratio, ratio - half, ratio + half, count)


def quantile_over_groups(
    values: NDArray[np.generic], groups: NDArray[np.int64], level: float, seed: int = 0
) -> Interval:
    """The smallest value that at least this share of all values do not exceed, with its 95 % interval."""
    if not len(values):
        return Interval()
    index, count = _numbered(groups)
    different, place = np.unique(values, return_inverse=True)
    table = np.zeros((count, len(different)))
    np.add.at(table, (index, place), 1.0)

    def quantile(weights: Floats) -> Floats:
        cumulative = np.cumsum(weights @ table, axis=1)
        reached = cumulative >= level * cumulative[:, -1:] - 1e-9
        return np.asarray(different[reached.argmax(axis=1)], dtype=np.float64)

    estimate = float(quantile(np.ones((1, count)))[0])
    if count < FEWEST_GROUPS:
        return Interval(estimate, count=count)
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = generator.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)
    low, high = np.quantile(quantile(weights), [0.025, 0.975])
    return Interval(estimate, float(low), float(high), count)


def _numbered(groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    different, index = np.unique(groups, return_inverse=True)
    return index, len(different)
