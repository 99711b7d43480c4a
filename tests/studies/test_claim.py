"""Rules by which claims are decided."""

import polars as pl
import pytest

from sparsity_lab.analysis import Interval
from sparsity_lab.settings import SettingError
from sparsity_lab.studies import judged, level, paired

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


def test_levels_and_paired_differences_by_hand() -> None:
    """Pairs are by seed: differences 0.1, 0.2, 0.3, not in the order of the rows."""
    assert level(ROWS, "a", 8).estimate == pytest.approx(0.7)
    difference = paired(ROWS, "a", "b", 8)
    assert difference.estimate == pytest.approx(0.2)
    # Student's t with two degrees of freedom, 4.3027, times 0.1 / sqrt(3).
    assert difference.low == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert judged(difference) == "not decided"
    assert judged(difference, above=-0.1) == "held"


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(SettingError, match="arm: expected an arm with accuracy at length 16"):
        level(ROWS, "a", 16)
    with pytest.raises(SettingError, match=r"measure: expected a column of the rows.*got 'accurracy'.*'accuracy'"):
        level(ROWS, "a", 8, "accurracy")
    two = pl.concat([ROWS, ROWS.with_columns(condition=pl.lit("other"))])
    with pytest.raises(SettingError, match="condition: expected one condition of a"):
        level(two, "a", 8)
    assert level(two, "a", 8, condition="other").estimate == pytest.approx(0.7)
