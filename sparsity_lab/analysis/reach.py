"""Reach: the largest evaluated length up to which a run holds, over the runs of an arm."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sparsity_lab.analysis.runs import ArmRuns
from sparsity_lab.analysis.statistics import median_rank


@dataclass(frozen=True)
class Reach:
    """Reach of an arm over its learned runs.

    Attributes:
        median: the median reach, or the largest number that it is known to be at least; None if no run learned.
        censored: number of runs that held up to the end of the grid, whose reach is only known to be at least that.
        at_least: True if the median itself depends on the true reach of a censored run.
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
        """From (reach, censored) of each run that learned, with the interval of the sign test (``median_interval``).

        That interval needs only the order of the values. A censored run may have any true reach from the end of its
        own grid on, which need not be where other grids end. So the sorted true values are at least the sorted
        observed ones, and at most the sorted ones with every censored value at infinity. The median and the lower end
        use the first order, the upper end the second. With one grid for all, both orders are the same.
        """
        seen = tuple(sorted(values))
        n = len(seen)
        if not n:
            return cls(None, 0, False)
        least = [reach for reach, _ in seen]
        most = sorted(math.inf if censored else reach for reach, censored in seen)
        middle = slice((n - 1) // 2, n // 2 + 1)
        median, at_least = sum(least[middle]) / len(least[middle]), least[middle] != most[middle]
        found = cls(median, sum(censored for _, censored in seen), at_least, seen)
        if n == 1:
            return found
        rank, coverage = median_rank(n, confidence)
        open_ended = most[-rank] == math.inf
        high = least[-rank] if open_ended else int(most[-rank])
        return replace(found, low=least[rank - 1], high=high, high_at_least=open_ended, coverage=coverage)

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


def reach_of(arm: ArmRuns, confidence: float = 0.95) -> Reach:
    """The reach of an arm; runs that never learned have none."""
    each = arm.learned_rows.unique(["run", "condition"]).select("reach", "censored").drop_nulls()
    return Reach.of(each.iter_rows(), confidence)
