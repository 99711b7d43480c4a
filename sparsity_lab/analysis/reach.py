"""Reach: the largest evaluated length up to which a run holds, over the runs of an arm."""

from collections.abc import Iterable
from dataclasses import dataclass

from scipy import stats

from sparsity_lab.analysis.runs import Arm

__all__ = ["Reach", "reach_of"]


@dataclass(frozen=True)
class Reach:
    """Reach of an arm over its learned runs.

    Attributes:
        median: the median reach; None if no run learned.
        censored: number of runs that held up to the end of the grid, whose reach is only known to be at least that.
        at_least: True if the median itself rests on a censored run.
        values: reach of each learned run, ascending, those censored last among equals.
        low, high: ends of an interval for the median; None with fewer than two runs.
        high_at_least: True if the upper end is a censored run, so that the interval has no upper end.
        coverage: the probability with which such an interval covers the median, at least.
    """

    median: float | None
    censored: int
    at_least: bool
    values: tuple[tuple[int, bool], ...] = ()
    low: int | None = None
    high: int | None = None
    high_at_least: bool = False
    coverage: float | None = None

    @classmethod
    def of(cls, values: Iterable[tuple[int, bool]], confidence: float = 0.95) -> "Reach":
        """From (reach, censored) of each run that learned.

        The interval is that of the sign test, which needs only the order of the values and so can do with censored
        ones: from the r-th smallest to the r-th largest, where r is the largest with

            coverage = 1 - 2 P(Binomial(n, 1/2) < r) >= confidence,

        and the whole range with a smaller coverage, 1 - 2 / 2^n, where there are too few runs for that.
        """
        ordered = tuple(sorted(values))
        n = len(ordered)
        if not n:
            return cls(None, 0, False)
        middle = ordered[(n - 1) // 2 : n // 2 + 1]
        median = sum(reach for reach, _ in middle) / len(middle)
        found = cls(median, sum(c for _, c in ordered), any(c for _, c in middle), ordered)
        if n == 1:
            return found
        rank = max([1, *(r for r in range(1, (n + 1) // 2 + 1) if _coverage(n, r) >= confidence)])
        (low, _), (high, censored) = ordered[rank - 1], ordered[n - rank]
        return cls(median, found.censored, found.at_least, ordered, low, high, censored, _coverage(n, rank))

    @property
    def interval(self) -> str:
        """``[24, ≥ 96] (75 %)``: the interval and its coverage."""
        if self.coverage is None:
            return "–"
        return f"[{self.low}, {'≥ ' if self.high_at_least else ''}{self.high}] ({self.coverage:.0%})"

    def __str__(self) -> str:
        if self.median is None:
            return "–"
        return f"{'≥ ' if self.at_least else ''}{self.median:g}"


def reach_of(arm: Arm, confidence: float = 0.95) -> Reach:
    """The reach of an arm; runs that never learned have none."""
    each = arm.learned_rows.unique(["run", "condition"]).select("reach", "censored").drop_nulls()
    return Reach.of(each.iter_rows(), confidence)


def _coverage(n: int, rank: int) -> float:
    return float(1 - 2 * stats.binom.cdf(rank - 1, n, 0.5))
