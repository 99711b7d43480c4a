"""E-values: evidence that stays valid when seeds are added until a claim is decided.

An e-process E_1, E_2, ... is a number >= 0 after each seed. Its expectation is at most 1 at any stopping time while
the null hypothesis is true. So P(E ever reaches 1 / alpha) <= alpha, for any number of looks (Ville's inequality).

There are three e-processes, each valid for one kind of outcome:

- ``bounded_mean``: outcomes in a range that is fixed in advance, such as differences of accuracies. It bets on the
  mean, and assumes nothing else about the distribution (Waudby-Smith and Ramdas, arXiv 2010.09686).
- ``more_than_half``: outcomes that are true or false for each seed.
- ``t_mean``: approximately normal outcomes of unknown variance, such as differences of losses between arms in which
  every run learned. It is the likelihood ratio of Student's t, integrated over a prior for the standardized effect
  (Perez-Ortiz et al., arXiv 2208.07610). It must not be used if a few seeds fail, because it then decides wrongly.

``e_bh`` decides several claims together (Wang and Ramdas, arXiv 2009.02824). None of these numbers depends on the
order of the seeds.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import beta, logsumexp, ndtr

from sparsity_lab.settings import SettingError

ALPHA = 0.05
"""The false discovery rate of the claims of a study, and one minus the coverage of intervals."""
PRIOR_SCALE = 1.0
"""Standard deviation of the standardized effect (mean over standard deviation across seeds) under the alternative."""

_BETS = (np.arange(64) + 0.5) / 64
"""Fractions of the largest bet that cannot lose everything. The e-value is the average over them."""
_ALL_SUCCEED = 0.8
"""Weight of the alternative that every seed succeeds, against a uniform probability of success between 1/2 and 1.
Seven seeds that all succeed give 109, and one seed that fails does not end the test."""

Floats = NDArray[np.float64]


def bounded_mean(outcomes: ArrayLike, above: float, low: float, high: float) -> float:
    """The e-value against "the mean is at most ``above``", for outcomes between ``low`` and ``high``.

    Let x be the outcomes scaled to 0 .. 1, and m the scaled bound. The e-value is the mean over bets b in (0, 1) of
    prod_i (1 + b (x_i - m) / m). For "the mean is at least", negate outcomes and bounds.

    Raises:
        SettingError: an outcome or the bound is outside the range.
    """
    return float(np.exp(logsumexp(_log_wealth(_scaled(outcomes, low, high), _inside(above, low, high)))) / len(_BETS))


def bounded_interval(outcomes: ArrayLike, low: float, high: float, alpha: float = ALPHA) -> tuple[float, float]:
    """A confidence sequence for the mean: with probability 1 - alpha it covers the mean after every seed.

    It contains the means m for which the average of both e-values, against "at most m" and "at least m", is below
    1 / alpha. It never leaves the range.
    """
    x = _scaled(outcomes, low, high)

    def excess(m: float) -> float:
        return float(logsumexp([*_log_wealth(x, m), *_log_wealth(1 - x, 1 - m)])) - math.log(2 * len(_BETS) / alpha)

    edge = 1e-9
    center = min(max(float(x.mean()) if len(x) else 0.5, edge), 1 - edge)
    lower = brentq(excess, edge, center) if excess(edge) > 0 > excess(center) else 0.0
    upper = brentq(excess, center, 1 - edge) if excess(1 - edge) > 0 > excess(center) else 1.0
    return low + (high - low) * lower, low + (high - low) * upper


def more_than_half(successes: int, seeds: int) -> float:
    """The e-value against "a seed succeeds with probability at most 1/2".

    The likelihood ratio of the successes, 2^n p^s (1 - p)^(n - s), averaged over p: p = 1 with weight 0.8, and p
    uniform on 1/2 .. 1 with weight 0.2.

    Raises:
        SettingError: the number of successes is negative or above the number of seeds.
    """
    if not 0 <= successes <= seeds:
        raise SettingError("successes", f"0 .. {seeds}, the number of seeds", successes)
    p = 0.5 + _BETS / 2
    spread = np.exp(seeds * math.log(2) + successes * np.log(p) + (seeds - successes) * np.log1p(-p)).mean()
    return _ALL_SUCCEED * (2.0**seeds if successes == seeds else 0.0) + (1 - _ALL_SUCCEED) * float(spread)


def share_interval(successes: int, seeds: int, alpha: float = ALPHA) -> tuple[float, float]:
    """The confidence sequence for the probability that a seed succeeds, which corresponds to ``more_than_half``.

    It contains the q for which the likelihood ratio of the successes against q, averaged over p, is below 1 / alpha.
    The average gives p = 1 and p = 0 weight 0.4 each, and uniform p weight 0.2.
    """
    failures = seeds - successes
    certain = _ALL_SUCCEED / 2 * ((failures == 0) + (successes == 0))
    weight = math.log(certain + (1 - _ALL_SUCCEED) * beta(successes + 1, failures + 1)) + math.log(alpha)

    def excess(q: float) -> float:
        return weight - successes * math.log(q) - failures * math.log1p(-q)

    edge, center = 1e-12, min(max(successes / max(seeds, 1), 1e-12), 1 - 1e-12)
    lower = brentq(excess, edge, center) if excess(edge) > 0 > excess(center) else 0.0
    upper = brentq(excess, center, 1 - edge) if excess(1 - edge) > 0 > excess(center) else 1.0
    return lower, upper


def t_mean(outcomes: ArrayLike, above: float = 0.0, scale: float = PRIOR_SCALE) -> float:
    """The e-value against "the mean is at most ``above``", for normal outcomes of unknown variance.

    It is the likelihood ratio of Student's t, averaged over standardized effects with a half-normal prior of standard
    deviation ``scale``. It is 1 for fewer than two outcomes, and for outcomes that are all equal, because these have
    no variance. For "the mean is at least", negate outcomes and bound.
    """
    x = np.asarray(outcomes, dtype=np.float64) - above
    if len(x) < 2 or np.ptp(x) == 0:
        return 1.0
    return float(_t_ratio(np.array([x.sum() / math.sqrt(float(x @ x))]), len(x), scale)[0])


def t_interval(outcomes: ArrayLike, alpha: float = ALPHA, scale: float = PRIOR_SCALE) -> tuple[float, float] | None:
    """The confidence sequence for the mean that corresponds to ``t_mean``; None for fewer than two different
    outcomes.

    It contains the means for which the average of both one-sided e-values is below 1 / alpha. With g = n scale^2 that
    average is (1 + g)^(-1/2) (1 - q g / (1 + g))^(-n/2), where q = t^2 / (t^2 + n - 1). Too few outcomes give
    infinite limits.
    """
    x = np.asarray(outcomes, dtype=np.float64)
    n = len(x)
    if n < 2 or np.ptp(x) == 0:
        return None
    g = n * scale**2
    # The q for which the average is 1 / alpha.
    q = (1 - (alpha**2 / (1 + g)) ** (1 / n)) * (1 + g) / g
    if q >= 1:
        return -math.inf, math.inf
    reach = math.sqrt((n - 1) * q / (1 - q)) * float(x.std(ddof=1)) / math.sqrt(n)
    return float(x.mean()) - reach, float(x.mean()) + reach


def e_bh(e_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Whether each null hypothesis is rejected, at a false discovery rate of ``alpha`` under any dependence.

    The hypotheses of the k largest of m e-values are rejected. k is the largest number for which the k-th e-value is
    at least m / (k alpha). The threshold is 100 for one claim out of five, and 20 for all five.
    """
    count, ordered = len(e_values), sorted(e_values, reverse=True)
    passed = [k for k in range(1, count + 1) if ordered[k - 1] >= count / (k * alpha)]
    return [bool(passed) and value >= ordered[passed[-1] - 1] for value in e_values]


def _scaled(outcomes: ArrayLike, low: float, high: float) -> Floats:
    x = np.asarray(outcomes, dtype=np.float64)
    if x.size and not (x.min() >= low and x.max() <= high):
        raise SettingError("outcomes", f"numbers from {low:g} to {high:g}", (float(x.min()), float(x.max())))
    return (x - low) / (high - low)


def _inside(bound: float, low: float, high: float) -> float:
    if not low < bound < high:
        raise SettingError("above", f"a number between {low:g} and {high:g}", bound)
    return (bound - low) / (high - low)


def _log_wealth(x: Floats, m: float) -> Floats:
    """The log-wealth of each bet, for outcomes in 0 .. 1 and the bound m."""
    wealth: Floats = np.log1p(_BETS[:, None] * (x - m) / m).sum(axis=1)
    return wealth


def _t_ratio(y: Floats, n: int, scale: float) -> Floats:
    """The likelihood ratio of y = sum(x) / |x|, a function of t, averaged over the half-normal prior.

    Given s, the norm of x over its standard deviation, an effect d has the ratio exp(d s y - n d^2 / 2). Under the
    null s is chi-distributed with n degrees of freedom and independent of y. With A = n + 1 / scale^2 and
    k = (1 - y^2 / A)^(-1/2) the integrals over d and s leave

        2 / (scale sqrt(A)) k^n E[Phi(k u y / sqrt(A))],   u chi-distributed with n degrees of freedom.
    """
    precision = n + scale**-2
    k = (1 - y**2 / precision) ** -0.5
    u = np.linspace(0.0, math.sqrt(n) + 9, 600)[1:]
    weights = np.exp((n - 1) * np.log(u / math.sqrt(n)) - 0.5 * (u**2 - n))
    share = ndtr(np.multiply.outer(k * y, u) / math.sqrt(precision)) @ (weights / weights.sum())
    ratio: Floats = 2 / (scale * math.sqrt(precision)) * k**n * share
    return ratio
