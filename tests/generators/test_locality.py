"""Every law against enumeration of all its sets, and its draws against its own pmf."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsity_lab.generators import Anchored, Geometric, Law, PowerLaw, Recent, Stream, Uniform, Window
from sparsity_lab.settings import SettingError

LAWS = [Uniform(), Recent(width=5), PowerLaw(alpha=1.5), Geometric(scale=3.0), Anchored(width=5), Window(width=4)]


def weight(law: Law, place: int, length: int) -> float:
    """The weight of a place as the definition reads."""
    distance = length + 1 - place
    match law:
        case Recent(width=width):
            return float(distance <= width)
        case PowerLaw(alpha=alpha):
            return float(distance**-alpha)
        case Geometric(scale=scale):
            return float(np.exp(-distance / scale))
        case Anchored(width=width):
            return float(place <= width)
        case _:
            return 1.0


def enumerated(law: Law, k: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    sets = np.array(list(itertools.combinations(range(1, length + 1), k)))
    if isinstance(law, Window):
        mass = (sets[:, -1] - sets[:, 0] + 1 <= law.width).astype(float)
    else:
        mass = np.array([np.prod([weight(law, place, length) for place in chosen]) for chosen in sets.tolist()])
    return sets, mass / mass.sum()


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize(("k", "length"), [(1, 9), (2, 9), (3, 9), (4, 7), (3, 4)])
def test_closed_forms_equal_enumeration(law: Law, k: int, length: int) -> None:
    sets, probability = enumerated(law, k, length)
    assert np.exp(law.log_pmf(sets, length)) == pytest.approx(probability, abs=1e-12)
    assert law.support_size(k, length) == (probability > 0).sum()
    by_order = [[probability[sets[:, j] == place].sum() for place in range(1, length + 1)] for j in range(k)]
    assert law.order_pmf(k, length) == pytest.approx(np.array(by_order), abs=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_draws_follow_the_pmf(law: Law) -> None:
    """Chi-square over all sets at a false-alarm rate of 1e-6, fixed seed; impossible sets never come."""
    sets, probability = enumerated(law, 3, 9)
    drawn = law.draw(Stream(seed=5).words("positions", 9, 0, 100_000, 3), 9)
    index = {tuple(chosen): i for i, chosen in enumerate(sets.tolist())}
    counts = np.bincount([index[tuple(chosen)] for chosen in drawn.tolist()], minlength=len(sets))
    assert counts[probability == 0].sum() == 0
    possible = probability > 0
    assert stats.chisquare(counts[possible], 100_000 * probability[possible]).pvalue > 1e-6


def test_another_law_is_told_apart() -> None:
    """The mutant of the test above: nearly the same exponent."""
    sets, probability = enumerated(PowerLaw(alpha=1.5), 3, 9)
    drawn = PowerLaw(alpha=1.4).draw(Stream(seed=5).words("positions", 9, 0, 100_000, 3), 9)
    index = {tuple(chosen): i for i, chosen in enumerate(sets.tolist())}
    counts = np.bincount([index[tuple(chosen)] for chosen in drawn.tolist()], minlength=len(sets))
    assert stats.chisquare(counts, 100_000 * probability).pvalue < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LAWS), st.integers(1, 4), st.integers(4, 200), st.integers(0, 2**32))
def test_draws_are_sets_of_the_law(law: Law, k: int, length: int, seed: int) -> None:
    drawn = law.draw(Stream(seed=seed).words("positions", length, 0, 50, k), length)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn.min() >= 1
    assert drawn.max() <= length
    assert np.isfinite(law.log_pmf(drawn, length)).all()


def test_weights_far_below_the_floating_range() -> None:
    """e_k of these weights is near exp(-1000): only ratios are ever needed, and they stay exact."""
    law = Geometric(scale=0.5)
    drawn = law.draw(Stream(seed=1).words("positions", 400, 0, 20_000, 24), 400)
    assert np.isfinite(law.log_pmf(drawn, 400)).all()
    counts = np.stack([np.bincount(drawn[:, j], minlength=401)[1:] for j in range(24)])
    expected = law.order_pmf(24, 400) * 20_000
    large = expected > 50
    assert np.abs(counts - expected)[large].max() < 6 * np.sqrt(expected[large]).max()
    assert law.order_pmf(24, 400).sum(axis=1) == pytest.approx(np.ones(24), abs=1e-9)


def test_uniform_is_exact_at_large_sizes() -> None:
    law = Uniform()
    assert law.log_pmf(np.arange(1, 13)[None, :], 5000)[0] == pytest.approx(-np.log(float(comb(5000, 12))), abs=1e-9)


def test_span_count_of_the_sheet() -> None:
    """Sheet 2.3: l = 50, W = 8, k = 3 gives 938 local sets against C(50, 3) = 19600."""
    assert Window(width=8).support_size(3, 50) == 938
    assert Uniform().support_size(3, 50) == 19600


@pytest.mark.parametrize("make", [lambda: Recent(width=0), lambda: Anchored(width=-1), lambda: Window(width=0)])
def test_widths_below_one_are_refused(make: object) -> None:
    with pytest.raises(SettingError, match="width: expected a whole number of at least 1"):
        make()  # type: ignore[operator]


def test_scale_must_be_positive() -> None:
    with pytest.raises(SettingError, match="scale: expected a number of at least 0.01, got 0.0"):
        Geometric(scale=0)


def test_steepness_is_bounded() -> None:
    with pytest.raises(SettingError, match="alpha: expected a number from -100 to 100, got -1e"):
        PowerLaw(alpha=-1e29)


@pytest.mark.parametrize(("width", "k", "length"), [(1100, 550, 3000), (1030, 515, 2000), (3000, 300, 3000)])
def test_windows_with_more_sets_than_floats_can_count(width: int, k: int, length: int) -> None:
    law = Window(width=width)
    drawn = law.draw(Stream(seed=1).words("positions", length, 0, 500, k), length)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn[:, -1].max() <= length
    assert (drawn[:, -1] - drawn[:, 0]).max() < width
    assert np.isfinite(law.log_pmf(drawn, length)).all()
