"""The two intervals that figures and tables show, as plain functions of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sparsity_lab.settings import SettingError

__all__ = ["Interval", "bootstrap_median", "mean_interval"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        estimate: the median or mean; None without values.
        low, high: ends of the interval; None with fewer than two values, because one value says nothing about the
            spread between runs.
        count: number of values.
    """

    estimate: float | None
    low: float | None
    high: float | None
    count: int

    @property
    def decided(self) -> bool:
        """True if there is an interval and 0 lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def bootstrap_median(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The median with its percentile-bootstrap interval over ``values``.

    The same seed gives the same resamples for every sequence of the same size, so that one bootstrap over runs is
    shared by all lengths of a curve. With n values the interval never leaves their range: with two or three runs it
    is close to the range itself.

    Raises:
        SettingError: confidence outside (0, 1), or fewer than one resample.
    """
    _check_confidence(confidence)
    if resamples < 1:
        raise SettingError("resamples", "a whole number of at least 1", resamples)
    # Sorted, so that the order of the runs does not matter.
    sample = np.sort(np.asarray(values, dtype=np.float64))
    if sample.size == 0:
        return Interval(None, None, None, 0)
    median = float(np.median(sample))
    if sample.size == 1:
        return Interval(median, None, None, 1)
    chosen = np.random.Generator(np.random.PCG64(seed)).integers(sample.size, size=(resamples, sample.size))
    medians = np.median(sample[chosen], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(median, float(low), float(high), sample.size)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean with Student's interval, mean ± t s / sqrt(n), where t is the quantile with n - 1 degrees of freedom.

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
