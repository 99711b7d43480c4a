"""What a check finds, and the tests that find it: Pearson's chi-square, and certainty."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Finding", "certain", "chi_square", "contingency"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SMALLEST_EXPECTED = 20.0


@dataclass(frozen=True)
class Finding:
    """One test: which check, of what, its statistic and p-value."""

    check: str
    subject: str
    statistic: float
    p_value: float


def chi_square(check: str, subject: str, observed: Ints, expected: Floats) -> Finding:
    """Pearson's test of counts against expectations; an impossible cell that occurs gives p = 0."""
    observed, expected = observed.reshape(-1), expected.reshape(-1)
    impossible = expected <= 0
    if observed[impossible].any():
        return Finding(check, f"{subject}: declared impossible", float(observed[impossible].sum()), 0.0)
    order = np.argsort(expected[~impossible])
    observed, expected = observed[~impossible][order].astype(np.float64), expected[~impossible][order]
    small = int(np.searchsorted(expected, _SMALLEST_EXPECTED))
    while small and small < len(expected) and expected[:small].sum() < _SMALLEST_EXPECTED:
        small += 1
    if small:
        observed = np.append(observed[small:], observed[:small].sum())
        expected = np.append(expected[small:], expected[:small].sum())
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    if freedom < 1:
        return certain(check, subject, abs(statistic) < 1e-6)
    return Finding(check, subject, statistic, float(stats.chi2.sf(statistic, freedom)))


def contingency(check: str, subject: str, first: Ints, second: Ints) -> Iterator[Finding]:
    """Pearson's test of independence of two columns of small integers.

    Values too rare for their cells to be expected at least five times are left out; nothing is found where then
    fewer than two values of either are left.
    """
    table = np.zeros((int(first.max()) + 1, int(second.max()) + 1), dtype=np.int64)
    np.add.at(table, (first, second), 1)
    total = max(1, int(table.sum()))
    rarest = max(1.0, _SMALLEST_EXPECTED / 4 * total / max(1, int(table.sum(axis=1).max())))
    table = table[:, table.sum(axis=0) >= rarest]
    rarest = _SMALLEST_EXPECTED / 4 * total / max(1, int(table.sum(axis=0).min(initial=total)))
    table = table[table.sum(axis=1) >= rarest]
    if min(table.shape) < 2:
        return
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    yield Finding(check, subject, statistic, float(stats.chi2.sf(statistic, freedom)))


def certain(check: str, subject: str, holds: bool, violations: float = 0.0) -> Finding:
    """A test that leaves nothing to chance."""
    return Finding(check, subject, violations, 1.0 if holds else 0.0)
