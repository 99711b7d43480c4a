"""Reach and its interval: order statistics, with and without runs that held to the end of their grid."""

import itertools

import pytest

from sparsity_lab.analysis.reach import Reach


def test_the_interval_is_the_range_where_there_are_few_runs() -> None:
    """Three values: P(all below or all above the median) = 2 / 8."""
    found = Reach.of([(48, False), (24, False), (96, False)])
    assert (found.median, found.low, found.high, found.high_at_least) == (48, 24, 96, False)
    assert found.coverage == pytest.approx(0.75)
    assert found.interval == "[24, 96] (75%)"


def test_one_run_has_no_interval() -> None:
    found = Reach.of([(48, False)])
    assert (found.median, found.low, found.high, found.coverage) == (48, None, None, None)
    assert found.interval == "–"
    assert Reach.of([]).interval == "–"


@pytest.mark.parametrize(
    ("n", "confidence", "rank", "coverage"),
    # By hand from binomial coefficients: 2 / 2^6; 2 (1 + 8) / 2^8; 2 (1 + 10) / 2^10; 2 (1 + 4) / 2^4 = 0.625.
    [(5, 0.95, 1, 1 - 2 / 32), (6, 0.95, 1, 1 - 2 / 64), (8, 0.9, 2, 1 - 18 / 256), (10, 0.95, 2, 1 - 22 / 1024),
     (4, 0.3, 2, 1 - 10 / 16)],
)  # fmt: skip
def test_order_statistics_by_hand(n: int, confidence: float, rank: int, coverage: float) -> None:
    found = Reach.of([(10 * i, False) for i in range(1, n + 1)], confidence)
    assert (found.low, found.high) == (10 * rank, 10 * (n + 1 - rank))
    assert found.coverage == pytest.approx(coverage)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Ten values, each below the median with probability 1/2: the interval from the second to the ninth misses it
    just where fewer than two lie on one side. All 1024 cases."""
    missed = 0
    for signs in itertools.product((-1, 1), repeat=10):
        # Distinct values around a median of 100.
        found = Reach.of([(100 + sign * (i + 1), False) for i, sign in enumerate(signs)])
        assert found.low is not None
        assert found.high is not None
        missed += not found.low < 100 < found.high
    assert found.coverage == pytest.approx(1 - missed / 1024)


def test_censored_runs_are_larger_than_their_equals_and_leave_the_interval_open() -> None:
    found = Reach.of([(96, True), (24, False), (96, False)])
    assert found.values == ((24, False), (96, False), (96, True))
    assert (found.median, found.at_least, found.censored) == (96, False, 1)
    assert (found.low, found.high, found.high_at_least) == (24, 96, True)
    assert found.interval == "[24, ≥ 96] (75%)"
    # The censored run is cut off with a rank of two: the upper end is known.
    many = Reach.of([(10 * i, i == 10) for i in range(1, 11)])
    assert (many.high, many.high_at_least) == (90, False)


def test_grids_that_end_at_different_lengths() -> None:
    """A run that held to 96, the end of its grid, may reach farther than one that was seen to fail beyond 192: the
    median is 96 to 192, and nothing bounds the largest of the three."""
    found = Reach.of([(96, True), (192, False), (48, False)])
    assert (found.median, found.at_least, found.censored) == (96, True, 1)
    assert (found.low, found.high, found.high_at_least) == (48, 192, True)
    assert (str(found), found.interval) == ("≥ 96", "[48, ≥ 192] (75%)")
    # Taken for a reach of 96, the run would make the median look known, and the interval closed.
    mutant = Reach.of([(96, False), (192, False), (48, False)])
    assert (str(mutant), mutant.interval) == ("96", "[48, 192] (75%)")


def test_the_order_of_true_values_lies_between_what_is_known_of_them() -> None:
    """All true values on grids that end at 2, 4 and 6: what is said of them holds."""
    for ends in itertools.product((2, 4, 6), repeat=3):
        for true in itertools.product((1, 3, 5, 7), repeat=3):
            seen = [(min(own, end), own >= end) for own, end in zip(true, ends, strict=True)]
            found, (low, median, high) = Reach.of(seen), sorted(true)
            assert found.median is not None
            assert found.low is not None
            assert found.high is not None
            assert found.median <= median if found.at_least else found.median == median
            assert found.low <= low
            assert found.high <= high if found.high_at_least else found.high >= high
