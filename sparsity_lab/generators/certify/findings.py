"""What a check finds, and the tests that find it: Pearson's chi-square, and certainty."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["SMALLEST_EXPECTED", "Finding", "certain", "chi_square", "contingency"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SMALLEST_EXPECTED = 100.0
"""A cell of Pearson's test expects at least this many, to keep the far tail close to nominal."""


@dataclass(frozen=True)
class Finding:
    """One test: which check, of what, its statistic and p-value."""

    check: str
    subject: str
    statistic: float
    p_value: float


def chi_square(check: str, subject: str, observed: Ints, expected: Floats) -> Iterator[Finding]:
    """Pearson's test of counts against expectations; an impossible cell that occurs gives p = 0.

    Cells that expect too few are pooled into groups that expect enough. Nothing is found where that leaves one cell.
    """
    observed, expected = observed.reshape(-1), expected.reshape(-1)
    impossible = expected <= 0
    if observed[impossible].any():
        yield Finding(check, f"{subject}: declared impossible", float(observed[impossible].sum()), 0.0)
        return
    order = np.argsort(expected[~impossible], kind="stable")
    observed, expected = observed[~impossible][order], expected[~impossible][order]
    # Small cells are grouped by where they start in their running total. The last group may fall short, and takes
    # in the one before it, or the smallest of the other cells.
    small = expected < SMALLEST_EXPECTED
    starts = np.cumsum(expected) - expected
    group = np.where(small, starts // (2 * SMALLEST_EXPECTED), np.arange(len(expected)) + len(expected))
    _, group = np.unique(group, return_inverse=True)
    if small.any() and expected[group == (last := group[small].max())].sum() < SMALLEST_EXPECTED:
        group[group == last] = last - 1 if last else min(1, group.max())
    _, group = np.unique(group, return_inverse=True)
    seen, wanted = np.bincount(group, weights=observed), np.bincount(group, weights=expected)
    if len(expected) == 1:
        yield certain(check, subject, True)  # nothing else was possible, and nothing else came
    elif len(wanted) > 1:
        statistic = float(((seen - wanted) ** 2 / wanted).sum())
        yield Finding(check, subject, statistic, float(stats.chi2.sf(statistic, len(wanted) - 1)))


def contingency(check: str, subject: str, first: Ints, second: Ints) -> Iterator[Finding]:
    """Pearson's test of independence of two columns of small integers.

    The rarest values are left out until every cell expects ``SMALLEST_EXPECTED``; nothing is found where then fewer
    than two values of either column are left.
    """
    height, width = int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1
    table = np.bincount(first * width + second, minlength=height * width).reshape(height, width).astype(np.float64)
    while min(table.shape) > 1:
        rows, columns = table.sum(axis=1), table.sum(axis=0)
        expected = np.outer(rows, columns) / max(1.0, table.sum())
        if expected.min() >= SMALLEST_EXPECTED:
            statistic = float(((table - expected) ** 2 / expected).sum())
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            yield Finding(check, subject, statistic, float(stats.chi2.sf(statistic, freedom)))
            return
        if rows.min() <= columns.min():
            table = np.delete(table, rows.argmin(), axis=0)
        else:
            table = np.delete(table, columns.argmin(), axis=1)


def certain(check: str, subject: str, holds: bool, violations: float = 0.0) -> Finding:
    """A test that leaves nothing to chance."""
    return Finding(check, subject, violations, 1.0 if holds else 0.0)
