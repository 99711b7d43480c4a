"""The two intervals that figures and tables show, as plain functions of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from scipy import stats

from sparsity_lab.settings import SettingError


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

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

    estimate: float | None
    low: float | None
    high: float | None
    count: int
    coverage: float | None = None

    @property
    def decided(self) -> bool:
        """True if there is an interval and 0 lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


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
    if not ordered:
        return Interval(None, None, None, 0)
    median = float(np.median(ordered))
    if len(ordered) == 1:
        return Interval(median, None, None, 1)
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
    if sample.size == 0:
        return Interval(None, None, None, 0)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, None, None, 1)
    quantile = float(stats.t.ppf((1 + confidence) / 2, sample.size - 1))
    half = quantile * float(sample.std(ddof=1)) / float(np.sqrt(sample.size))
    return Interval(mean, mean - half, mean + half, sample.size)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SettingError("confidence", "a number between 0 and 1", confidence)
