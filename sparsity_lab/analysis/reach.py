"""Reach: the largest evaluated length up to which a run holds, over the runs of an arm."""

from dataclasses import dataclass

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
    """

    median: float | None
    censored: int
    at_least: bool
    values: tuple[tuple[int, bool], ...] = ()

    def __str__(self) -> str:
        if self.median is None:
            return "–"
        return f"{'≥ ' if self.at_least else ''}{self.median:g}"


def reach_of(arm: Arm) -> Reach:
    """The reach of an arm; runs that never learned have none."""
    each = arm.learned_rows.unique(["run", "condition"]).select("reach", "censored").drop_nulls()
    values = tuple(sorted(each.iter_rows()))
    if not values:
        return Reach(None, 0, False)
    middle = values[(len(values) - 1) // 2 : len(values) // 2 + 1]
    median = sum(reach for reach, _ in middle) / len(middle)
    return Reach(median, sum(c for _, c in values), any(c for _, c in middle), values)
