"""What an interval says about a claim, and the numbers by seed that intervals are of."""

import polars as pl
import pytest

from sparsity_lab.analysis import Interval, mean_interval, paired_differences
from sparsity_lab.settings import SettingError
from sparsity_lab.studies import decided, judged, numbers_at

ROWS = pl.DataFrame(
    {
        "arm": ["a", "a", "a", "b", "b", "b"],
        "seed": [0, 1, 2, 2, 0, 1],
        "condition": ["trained"] * 6,
        "length": [8] * 6,
        "accuracy": [0.5, 0.7, 0.9, 0.6, 0.4, 0.5],
    }
)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, "held"), (-0.1, 0.3, "not decided"), (-0.3, -0.1, "did not hold"), (None, None, "not decided")],
)
def test_verdict_of_an_interval(low: float | None, high: float | None, verdict: str) -> None:
    assert judged(Interval(0.0, low, high, 3)) == verdict
    assert judged(Interval(0.5, 0.4 if low else None, 0.6 if high else None, 3), above=0.7) != "held"


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "at_most"),
    [
        (0.4, 0.6, "not decided", "not decided", "not decided"),
        (0.5, 0.6, "not decided", "did not hold", "not decided"),
        (0.51, 0.6, "held", "did not hold", "did not hold"),
        (0.4, 0.5, "did not hold", "not decided", "held"),
        (0.4, 0.49, "did not hold", "held", "held"),
        (None, None, "not decided", "not decided", "not decided"),
    ],
)
def test_bounds_from_each_side(low: float | None, high: float | None, above: str, below: str, at_most: str) -> None:
    """A bound of a half; an end that lies on it counts as the words of each rule say."""
    interval = Interval(0.5, low, high, 3)
    found = judged(interval, above=0.5), judged(interval, below=0.5), judged(interval, at_most=0.5)
    assert found == (above, below, at_most)


def test_levels_and_paired_differences_by_hand() -> None:
    """Pairs are by seed: differences 0.1, 0.2, 0.3, not in the order of the rows."""
    assert mean_interval(list(numbers_at(ROWS, "a", 8).values())).estimate == pytest.approx(0.7)
    differences = paired_differences(numbers_at(ROWS, "a", 8), numbers_at(ROWS, "b", 8))
    decision = decided(differences, "accuracy")
    assert decision.interval.estimate == pytest.approx(0.2)
    # Student's t with two degrees of freedom, 4.3027, times 0.1 / sqrt(3).
    assert decision.interval.low == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert decision.verdict == "not decided"
    assert decided(differences, "accuracy", above=-0.1).verdict == "held"


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(SettingError, match="arm: expected an arm with accuracy at length 16"):
        numbers_at(ROWS, "a", 16)
    with pytest.raises(SettingError, match=r"measure: expected a column of the rows.*got 'accurracy'.*'accuracy'"):
        numbers_at(ROWS, "a", 8, "accurracy")
    two = pl.concat([ROWS, ROWS.with_columns(condition=pl.lit("other"))])
    with pytest.raises(SettingError, match="condition: expected one condition of a"):
        numbers_at(two, "a", 8)
    assert numbers_at(two, "a", 8, condition="other") == {0: 0.5, 1: 0.7, 2: 0.9}
