"""E-values: their expectation is 1 under the null, and looking after every seed decides wrongly in 5 % at most."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma

from sparsity_lab.settings import SettingError
from sparsity_lab.studies import e_values
from sparsity_lab.studies.e_values import (
    bounded_interval,
    bounded_mean,
    e_bh,
    more_than_half,
    share_interval,
    t_interval,
    t_mean,
)

SEEDS, REPEATS = 24, 500


@pytest.mark.parametrize(("above", "low", "high"), [(0.0, -1.0, 1.0), (0.3, 0.0, 1.0), (-0.05, -1.0, 1.0)])
def test_bounded_mean_has_expectation_one(above: float, low: float, high: float) -> None:
    """Over all sequences of a two-point law with that mean; below one where the mean is smaller."""
    for mean, most in ((above, 1 + 1e-12), (above - 0.1, 0.9)):
        share = (mean - low) / (high - low)
        total = 0.0
        for draws in itertools.product((0, 1), repeat=6):
            probability = math.prod(share if one else 1 - share for one in draws)
            total += probability * bounded_mean([high if one else low for one in draws], above, low, high)
        assert total <= most
        if mean == above:
            assert total == pytest.approx(1, abs=1e-9)


def test_more_than_half_by_hand() -> None:
    """Seven seeds that all succeed decide one claim of five; a failure does not end the test."""
    assert more_than_half(7, 7) == pytest.approx(0.8 * 128 + 0.2 * 2**7 * 2 * (1 - 2**-8) / 8, rel=1e-3)
    assert more_than_half(7, 7) >= 100 > more_than_half(6, 6)
    assert more_than_half(0, 0) == 1
    assert more_than_half(23, 24) > 100
    for seeds in (1, 5, 12):
        total = sum(math.comb(seeds, s) / 2**seeds * more_than_half(s, seeds) for s in range(seeds + 1))
        assert total == pytest.approx(1, abs=1e-3)


def test_the_interval_of_a_share_by_hand() -> None:
    """(0.4 + 0.2 / 8) / q^7 reaches 20 at the lower end; seven successes that decide leave no half in it."""
    low, high = share_interval(7, 7)
    assert low == pytest.approx((0.425 / 20) ** (1 / 7))
    assert (low > 0.5, high) == (True, 1.0)
    assert share_interval(0, 7) == pytest.approx((0.0, 1 - low))
    assert share_interval(0, 0) == (0.0, 1.0)
    low, high = share_interval(6, 7)
    assert low < 6 / 7 < high < 1
    for q, seeds in ((0.3, 5), (0.5, 9)):
        # Its expectation is 1: an interval that misses q has an e-value of at least 20.
        missed = [s for s in range(seeds + 1) if not share_interval(s, seeds)[0] <= q <= share_interval(s, seeds)[1]]
        assert sum(math.comb(seeds, s) * q**s * (1 - q) ** (seeds - s) for s in missed) <= 0.05


def test_t_mean_has_expectation_one_and_its_mirror_gives_the_closed_form() -> None:
    for n in (3, 5, 12):
        density = gamma(n / 2) / (gamma((n - 1) / 2) * math.sqrt(math.pi))

        def weighted(cosine: float, n: int = n, density: float = density) -> float:
            ratio = e_values._t_ratio(np.array([cosine * math.sqrt(n)]), n, 1.0)[0]
            return float(ratio * density * (1 - cosine**2) ** ((n - 3) / 2))

        assert quad(weighted, -1, 1)[0] == pytest.approx(1, abs=1e-4)
    x = np.array([0.4, 1.1, -0.2, 0.9, 0.7])
    t = float(x.mean() / (x.std(ddof=1) / math.sqrt(5)))
    q, g = t**2 / (t**2 + 4), 5.0
    closed = (1 + g) ** -0.5 * (1 - q * g / (1 + g)) ** -2.5
    assert (t_mean(x) + t_mean(-x)) / 2 == pytest.approx(closed, rel=1e-4)


def test_t_mean_says_nothing_without_spread() -> None:
    assert t_mean([]) == t_mean([1.0]) == t_mean([2.0, 2.0]) == 1
    assert t_interval([1.0]) is t_interval([2.0, 2.0]) is None
    assert t_interval([0.0, 1.0]) == (-math.inf, math.inf)


NULLS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "gaussian": lambda rng, shape: np.clip(rng.normal(0, 0.2, shape), -1, 1),
    "skewed": lambda rng, shape: rng.beta(1, 4, shape) - 0.2,
    "5 % fail": lambda rng, shape: np.where(rng.random(shape) < 0.05, -0.95, 0.05),
    "10 % fail": lambda rng, shape: np.where(rng.random(shape) < 0.1, -0.9, 0.1),
    "20 % fail": lambda rng, shape: np.where(rng.random(shape) < 0.2, -0.8, 0.2),
}
"""Differences of mean zero."""


def ever(e_after: Callable[[np.ndarray], float], draws: np.ndarray, bound: float = 20) -> float:
    """The share of repeats in which the e-value reaches the bound after some seed."""
    return float(np.mean([any(e_after(row[:n]) >= bound for n in range(2, SEEDS + 1)) for row in draws]))


@pytest.mark.parametrize("law", NULLS)
def test_a_look_after_every_seed_decides_wrongly_in_five_percent_at_most(law: str) -> None:
    """In both directions, for a claim that is decided alone."""
    draws = NULLS[law](np.random.default_rng(5), (REPEATS, SEEDS))
    for signed in (draws, -draws):
        assert ever(lambda x: bounded_mean(x, 0.0, -1.0, 1.0), signed) <= 0.05
    if law == "gaussian":
        assert ever(t_mean, draws) <= 0.05
    if "fail" in law:
        coins = np.random.default_rng(6).random((REPEATS, SEEDS)) < 0.5
        assert ever(lambda x: more_than_half(int(x.sum()), len(x)), coins) <= 0.05


def test_the_mutant_t_mean_on_two_point_differences_is_caught() -> None:
    """What the rule forbids: a t e-process on differences of which a few seeds fail decides wrongly far too often."""
    draws = NULLS["5 % fail"](np.random.default_rng(5), (200, SEEDS))
    draws += np.random.default_rng(6).normal(0, 1e-3, draws.shape)
    assert ever(t_mean, draws) > 0.3


def test_intervals_cover_the_mean_after_every_seed() -> None:
    rng = np.random.default_rng(7)
    bounded = NULLS["10 % fail"](rng, (100, SEEDS))
    normal = rng.normal(0.3, 1.0, (1000, SEEDS))
    missed = [
        any(not (i := bounded_interval(row[:n], -1, 1))[0] <= 0 <= i[1] for n in (1, 3, 6, 12, 24)) for row in bounded
    ]
    assert np.mean(missed) <= 0.05
    missed = [any(not (i := t_interval(row[:n]) or (0, 1))[0] <= 0.3 <= i[1] for n in range(2, 25)) for row in normal]
    assert np.mean(missed) <= 0.05
    low, high = bounded_interval([0.9] * 12, 0.0, 1.0)
    assert 0 <= low < 0.9 < high <= 1
    assert bounded_interval([], -1, 1) == (-1, 1)


def test_e_bh_by_hand() -> None:
    assert e_bh([100, 1, 1, 1, 1]) == [True, False, False, False, False]
    assert e_bh([99, 1, 1, 1, 1]) == [False] * 5
    assert e_bh([20, 20, 20, 20, 20]) == [True] * 5
    assert e_bh([50, 33, 60, 1, 1]) == [True, False, True, False, False]
    assert e_bh([50, 34, 60, 1, 1]) == [True, True, True, False, False]
    assert e_bh([20]) == [True]
    assert e_bh([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounded_mean([1.2], 0, -1, 1), "outcomes: expected numbers from -1 to 1"),
        (lambda: bounded_mean([0.2], 1, -1, 1), "above: expected a number between -1 and 1"),
        (lambda: bounded_mean([float("nan")], 0, -1, 1), "outcomes: expected numbers from -1 to 1"),
        (lambda: more_than_half(3, 2), r"successes: expected 0 \.\. 2"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()


def test_mean_seeds_to_a_decision(record_property: Callable[[str, object], None]) -> None:
    """At effects of one, two and three standard deviations, for one claim alone among five."""
    rng = np.random.default_rng(8)
    needed = {}
    for effect in (1, 2, 3):
        draws = rng.normal(effect, 1, (100, 60))
        first = [next((n for n in range(2, 61) if t_mean(row[:n]) >= 100), 61) for row in draws]
        needed[effect] = float(np.mean(first))
        record_property(f"mean seeds at effect {effect}", needed[effect])
    assert needed == pytest.approx({1: 15.2, 2: 8.2, 3: 6.7}, abs=1)
