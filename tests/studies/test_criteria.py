"""Criteria: what each asks, and what it makes of numbers whose answer is known."""

import numpy as np
import pytest

from sparsity_lab.settings import SettingError
from sparsity_lab.studies import BoundedMean, Criterion, MostSeeds, NormalMean
from sparsity_lab.studies.e_values import bounded_mean, more_than_half, t_mean

X = [0.3, 0.5, 0.2, 0.4, 0.6]


def test_above_and_below_are_the_same_tests_in_two_directions() -> None:
    above = BoundedMean(above=0.1).evidences(X)
    below = BoundedMean(below=0.1).evidences(X)
    assert above.held == below.did_not_hold == bounded_mean(X, 0.1, -1.0, 1.0)
    assert above.did_not_hold == below.held == bounded_mean([-one for one in X], -0.1, -1.0, 1.0)
    assert above.held > 1 > above.did_not_hold
    normal = NormalMean(above=0.1).evidences(X)
    assert normal == (*NormalMean(below=0.1).evidences(X)[1::-1], 0.0)
    assert normal.held == t_mean(X, 0.1)


def test_a_range_that_is_not_symmetric_is_turned_with_its_numbers() -> None:
    found = BoundedMean(below=0.9, low=0.0, high=1.0).evidences([0.1, 0.2, 0.1])
    assert found.held == bounded_mean([-0.1, -0.2, -0.1], -0.9, -1.0, 0.0)
    assert found.held > 1 > found.did_not_hold


def test_smaller_than_matters_of_bounded_numbers_is_about_more_than_half_of_the_seeds() -> None:
    numbers = [0.01, -0.04, 0.05, 0.9]
    assert BoundedMean(above=0.0, matters=0.05).evidences(numbers).smaller == more_than_half(3, 4)
    assert BoundedMean(above=0.0).evidences(numbers).smaller == 0.0


def test_smaller_than_matters_of_losses_needs_both_sides() -> None:
    numbers = [0.001, -0.002, 0.003, 0.0]
    found = NormalMean(above=0.0, matters=0.05).evidences(numbers).smaller
    assert found == min(t_mean(numbers, -0.05), t_mean([-one for one in numbers], -0.05))
    shifted = [one + 0.06 for one in numbers]
    assert NormalMean(above=0.0, matters=0.05).evidences(shifted).smaller < 1


def test_most_seeds_counts_those_that_are_within_both_limits() -> None:
    criterion = MostSeeds(at_least=0.0, at_most=1.0)
    numbers = [0.0, 1.0, 0.5, 2.0, -0.1]
    assert criterion.evidences(numbers) == (more_than_half(3, 5), more_than_half(2, 5), 0.0)
    assert criterion.estimate(numbers) == pytest.approx(0.6)
    low, high = criterion.interval(numbers) or (None, None)
    assert low is not None
    assert high is not None
    assert 0 <= low < 0.6 < high <= 1


@pytest.mark.parametrize("criterion", [BoundedMean(above=0.0), NormalMean(above=0.0), MostSeeds(at_least=0.0)])
def test_an_estimate_lies_in_its_interval_and_the_words_name_the_bound(criterion: Criterion) -> None:
    numbers = list(np.random.default_rng(0).uniform(-0.5, 0.5, 20))
    low, high = criterion.interval(numbers) or (np.nan, np.nan)
    assert low <= criterion.estimate(numbers) <= high
    assert " 0" in criterion.words


@pytest.mark.parametrize("criterion", [BoundedMean(above=0.1), NormalMean(below=0.1), MostSeeds(at_least=0.1)])
def test_the_bound_is_outside_the_interval_where_an_e_value_decides(criterion: Criterion) -> None:
    """And inside where none does: brackets and verdicts never contradict each other."""
    bound = 0.5 if isinstance(criterion, MostSeeds) else 0.1
    rng, decided, open_still = np.random.default_rng(3), 0, 0
    for _ in range(150):
        numbers = list(rng.normal(rng.uniform(-0.5, 0.7), 0.2, int(rng.integers(4, 25))).clip(-1, 1))
        evidence, interval = criterion.evidences(numbers), criterion.interval(numbers)
        assert interval is not None
        # A hair to either side of 1 / 5 % nothing is asked.
        largest = max(evidence.held, evidence.did_not_hold)
        if largest > 20.1:
            decided += 1
            assert not interval[0] <= bound <= interval[1]
        elif largest < 19:
            open_still += 1
            assert interval[0] <= bound <= interval[1]
    assert min(decided, open_still) > 30


def test_no_interval_goes_beyond_the_range() -> None:
    assert BoundedMean(above=0.0, low=0.0 - 1, high=1.0).interval([1.0] * 30)[1] == 1.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (BoundedMean, "above, below: give exactly one of the two"),
        (lambda: NormalMean(above=0.0, below=1.0), "above, below: give exactly one of the two"),
        (lambda: BoundedMean(above=1.0), "expected a number between -1 and 1"),
        (lambda: NormalMean(above=0.0, matters=0.0), "matters: expected a number above 0"),
        (MostSeeds, "at_least, at_most: give at least one of the two"),
    ],
)
def test_what_cannot_be_asked(make: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()  # type: ignore[operator]
