"""Findings of checks, and the statistical tests behind them: Pearson's chi-square with an exact test of rare cells,
Bernstein's bound for sums, and tests without chance."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from sparsity_lab.generators.stream import Floats, Ints

SMALLEST_EXPECTED = 100.0
"""The least expected count of a cell in Pearson's test, which keeps the far tail close to nominal. Other cells are
called rare."""

_ENOUGH = 1000  # effective number of terms from which a sum counts as normal

_SURE = float(stats.norm.isf(0.01))  # standard errors above the threshold for detection with probability 99 %


@dataclass(frozen=True)
class Finding:
    """One test: its check and subject, statistic, p-value, and the smallest effect it can detect.

    Attributes:
        of: the property whose size ``effect`` gives, in words that name its unit.
        scale: standard error of the statistic in that unit; for a certain test, 1 / number of cases; None without
            cases.
        terms: the number of statistics of which this is the largest; for a chi-square test, its degrees of freedom.
        test: the kind of test: "normal", "chi-square", "rare" or "certain".
        expected: for a test of rare cells, the expected count of the most common one.
    """

    check: str
    subject: str
    statistic: float
    p_value: float
    of: str = ""
    scale: float | None = None
    terms: int = 1
    test: str = "normal"
    expected: float = 0.0

    def effect(self, threshold: float) -> float:
        """The smallest deviation that this test detects with 99 % probability, in the unit that ``of`` names; NaN if
        unknown. Cases of a certain test are independent, and other statistics are nearly normal."""
        if self.scale is None:
            return float("nan")
        if self.test == "certain":
            return float(-np.expm1(np.log(0.01) * self.scale))
        if self.test == "rare":
            # The smallest count that is rejected for the most common cell, and the Poisson mean for which 99 % are
            # as large.
            count = stats.poisson.isf(threshold / (2 * self.terms), self.expected) + 1
            return self.scale * float(special.gammaincinv(count, 0.99) - self.expected)
        if self.test == "chi-square":
            over = float(stats.chi2.isf(threshold, self.terms)) - self.terms
            # The noncentral chi-square has mean f + x and variance 2 (f + 2 x).
            f = self.terms
            root = _SURE + np.sqrt(_SURE**2 + over + f / 2)  # of f / 2 + x
            return self.scale * float(np.sqrt(max(0.0, root**2 - f / 2)))
        return self.scale * (float(np.sqrt(2 * np.log(2 * self.terms / threshold))) + _SURE)


def chi_square(check: str, subject: str, observed: Ints, expected: Floats, of: str = "") -> Iterator[Finding]:
    """Pearson's test of counts against expected counts. If an impossible cell occurs, p = 0.

    Rare cells are pooled into groups with a large enough expected count. Each rare cell is also tested alone. The
    effect is the relative change of the rarest cell that is not pooled.
    """
    observed, expected = observed.reshape(-1), expected.reshape(-1)
    impossible = expected <= 0
    if observed[impossible].any():
        yield Finding(check, f"{subject}: declared impossible", float(observed[impossible].sum()), 0.0)
        return
    order = np.argsort(expected[~impossible], kind="stable")
    observed, expected = observed[~impossible][order], expected[~impossible][order]
    # Small cells are grouped by their running total. The last group may be too small. Then it is merged with the
    # group before it, or with the smallest of the other cells.
    small = expected < SMALLEST_EXPECTED
    starts = np.cumsum(expected) - expected
    group = np.where(small, starts // (2 * SMALLEST_EXPECTED), np.arange(len(expected)) + len(expected))
    _, group = np.unique(group, return_inverse=True)
    if small.any() and expected[group == (last := group[small].max())].sum() < SMALLEST_EXPECTED:
        group[group == last] = last - 1 if last else min(1, group.max())
    _, group = np.unique(group, return_inverse=True)
    seen, wanted = np.bincount(group, weights=observed), np.bincount(group, weights=expected)
    if len(expected) == 1:
        yield certain(check, subject, True)  # only one value was possible, and only that one occurred
        return
    if len(wanted) > 1:
        statistic = float(((seen - wanted) ** 2 / wanted).sum())
        freedom = len(wanted) - 1
        rarest = float(wanted.min())
        # The other cells gain what this one loses.
        scale = float(np.sqrt((1 - rarest / wanted.sum()) / rarest))
        p_value = float(stats.chi2.sf(statistic, freedom))
        yield Finding(check, subject, statistic, p_value, of, scale, freedom, "chi-square")
    if small.any() and (N := int(observed.sum())):
        yield _rare(check, subject, observed[small], expected[small], N, of)


def _rare(check: str, subject: str, observed: Ints, expected: Floats, N: int, of: str) -> Finding:
    """The exact binomial test of each of the given cells, out of N cases: the smallest p-value, multiplied by the
    number of cells. The effect is the excess of the most common rare cell, as a share of all cases."""
    share = (expected / N).clip(max=1.0)
    p_values = np.minimum(special.bdtrc(observed - 1, N, share), special.bdtr(observed, N, share))
    i, terms = int(p_values.argmin()), len(p_values)
    p_value = float(min(1.0, 2 * terms * p_values[i]))
    of = of and f"{of.removesuffix(', relative')}, each rare one alone"
    most = float(expected.max())
    return Finding(
        check, f"{subject}: each rare one", float(observed[i]), p_value, of, 1 / N, terms, "rare", expected=most
    )


def contingency(check: str, subject: str, first: Ints, second: Ints) -> Iterator[Finding]:
    """Pearson's test of independence of two columns of small integers.

    The rarest values are left out until every expected count is at least ``SMALLEST_EXPECTED``. There is no finding
    if fewer than two values of either column are left.
    """
    height, width = int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1
    table = np.bincount(first * width + second, minlength=height * width).reshape(height, width).astype(np.float64)
    while min(table.shape) > 1:
        rows, columns = table.sum(axis=1), table.sum(axis=0)
        expected = np.outer(rows, columns) / max(1.0, table.sum())
        if expected.min() >= SMALLEST_EXPECTED:
            statistic = float(((table - expected) ** 2 / expected).sum())
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            of, scale = "contingency (root of the mean square)", 1 / float(np.sqrt(table.sum()))
            p_value = float(stats.chi2.sf(statistic, freedom))
            yield Finding(check, subject, statistic, p_value, of, scale, freedom, "chi-square")
            return
        if rows.min() <= columns.min():
            table = np.delete(table, rows.argmin(), axis=0)
        else:
            table = np.delete(table, columns.argmin(), axis=1)


def proportion(check: str, subject: str, hits: int, cases: int, declared: float, of: str) -> Finding:
    """The exact binomial test of independent cases, each a hit with the declared probability."""
    p_value = float(stats.binomtest(hits, cases, declared).pvalue)
    if declared in (0.0, 1.0):
        return Finding(check, subject, hits, p_value, of, 1 / max(1, cases), test="certain")
    return Finding(check, subject, hits, p_value, of, float(np.sqrt(declared * (1 - declared) / cases)))


def bernstein(z: Floats, bound: Floats, cases: Floats) -> Floats:
    """-log of Bernstein's bound exp(-z^2 / 2 / (1 + z M / (3 sqrt n))), with z in standard errors. It bounds the tail
    of a sum of n independent terms with mean 0, variance 1 and absolute value at most M."""
    z = np.abs(z)
    return np.asarray(z**2 / (2 + 2 * z * bound / (3 * np.sqrt(np.maximum(cases, 1)))))


def largest(
    check: str, subject: str, z: Floats, bound: Floats, cases: Floats, of: str, each: int = 1
) -> Iterator[Finding]:
    """One finding from many sums as in ``bernstein``: the least likely, with its bound multiplied by their number.
    Each sum counts ``each`` times."""
    if z.size:
        terms = each * z.size
        surprise = bernstein(z, bound, cases)
        i = np.unravel_index(int(surprise.argmax()), surprise.shape)
        p_value = float(min(1.0, 2 * terms * np.exp(-surprise[i])))
        scale = 1 / float(np.sqrt(max(1.0, np.broadcast_to(cases, z.shape)[i])))
        yield Finding(check, subject, float(np.abs(z[i])), p_value, of, scale, terms)


def certain(check: str, subject: str, holds: bool, violations: float = 0.0, cases: int = 0) -> Finding:
    """A test without chance: the property holds or does not. ``cases`` is the number of independent cases, if
    known."""
    scale = 1 / cases if cases else None
    return Finding(check, subject, violations, 1.0 if holds else 0.0, "rate of violations", scale, test="certain")


def mean(check: str, subject: str, values: Floats, declared: float | None) -> Iterator[Finding]:
    """The mean of independent values against its declared expectation."""
    if declared is None:
        return
    if np.ptp(values) < 1e-9:
        yield certain(check, subject, bool(abs(values[0] - declared) < 1e-9), float(values[0]))
    else:
        off = values - declared
        # The sum is not normal if a few values dominate it.
        if off @ off >= _ENOUGH * float((off**2).max()):
            scale = float(values.std() / np.sqrt(len(values)))
            p_value = float(2 * stats.norm.sf(abs(float(off.mean()) / scale)))
            yield Finding(check, subject, float(values.mean()), p_value, "mean over sequences", scale)


def spread(count: int, most: int) -> list[int]:
    """0 .. count - 1, or ``most`` of them at even distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []
