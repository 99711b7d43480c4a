"""Two curves compared, paired by seed."""

import polars as pl
import pytest
from analysis.synthetic import frame_of
from scipy import stats

from sparsity_lab.analysis import extrapolation_curve
from sparsity_lab.settings import SettingError


@pytest.fixture
def frame() -> pl.DataFrame:
    """k=1 lies above k=2 by 0.1, 0.2, 0.3 at 96, seed by seed, though each arm spreads more than that."""
    return frame_of(
        ("a0", {"task.k": 1}, [1, 1, 1.0, 0.4]),
        ("a1", {"task.k": 1}, [1, 1, 0.95, 0.8]),
        ("a2", {"task.k": 1}, [1, 1, 0.92, 0.95]),
        ("b2", {"task.k": 2}, [1, 1, 0.92, 0.65]),
        ("b0", {"task.k": 2}, [1, 1, 0.8, 0.3]),
        ("b1", {"task.k": 2}, [1, 1, 0.95, 0.6]),
    )


def at(found: pl.DataFrame, length: int) -> dict[str, object]:
    return found.row(by_predicate=pl.col("length") == length, named=True)


def test_differences_by_hand(frame: pl.DataFrame) -> None:
    found = extrapolation_curve(frame).difference("k=1", "k=2")
    assert found.frame()["length"].to_list() == [8, 24, 48, 96]
    far = at(found.frame(), 96)
    assert far["difference"] == pytest.approx(0.2)
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (far["low"], far["high"]) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert (far["pairs"], far["decided"], far["trained"]) == (3, False, False)
    assert at(found.frame(), 8)["difference"] == 0.0
    # Not paired, by rank or by the order of the rows, the interval would be another.
    assert (extrapolation_curve(frame).difference(2, {"task.k": 1}).frame()["difference"] * -1).to_list() == (
        found.frame()["difference"].to_list()
    )


def test_a_narrower_confidence_decides(frame: pl.DataFrame) -> None:
    found = extrapolation_curve(frame, confidence=0.9).difference(1, 2)
    assert at(found.frame(), 96)["decided"] is True


def test_runs_that_never_learned_leave_their_partner_unpaired(frame: pl.DataFrame) -> None:
    failed = frame.with_columns(
        pl.when(pl.col("run") == "b0").then(0.0).otherwise("normalized_accuracy").alias("normalized_accuracy")
    )
    found = extrapolation_curve(failed).difference(1, 2)
    assert found.unpaired == 1
    assert at(found.frame(), 96)["difference"] == pytest.approx(0.25)
    assert at(found.frame(), 96)["pairs"] == 2
    everything = extrapolation_curve(failed, only_learned=False).difference(1, 2)
    assert everything.unpaired == 0
    assert at(everything.frame(), 96)["difference"] == pytest.approx((0.4 + 0.2 + 0.3) / 3)


def test_one_pair_has_no_interval(frame: pl.DataFrame) -> None:
    found = extrapolation_curve(frame.filter(pl.col("data_seed") == 1)).difference(1, 2)
    row = at(found.frame(), 96)
    assert (row["difference"], row["low"], row["decided"]) == (pytest.approx(0.2), None, None)


def test_who_reached_farther(frame: pl.DataFrame) -> None:
    """Seed 0: 48 against 24. Seed 1: 48 and 48. Seed 2: at least 96 against 48."""
    found = extrapolation_curve(frame).difference(1, 2).reaches()
    assert found["data_seed"].to_list() == [0, 1, 2]
    assert found["reach"].to_list() == [48, 48, 96]
    assert found["reach_minus"].to_list() == [24, 48, 48]
    assert found["farther"].to_list() == [1, 0, 1]
    assert extrapolation_curve(frame).difference(2, 1).reaches()["farther"].to_list() == [-1, 0, -1]


def test_what_two_censored_runs_reach_is_unknown() -> None:
    frame = frame_of(("a0", {"task.k": 1}, [1, 1, 1, 1]), ("b0", {"task.k": 2}, [1, 1, 1, 1]))
    assert extrapolation_curve(frame).difference(1, 2).reaches()["farther"].to_list() == [None]


def test_runs_that_cannot_be_paired_are_refused(frame: pl.DataFrame) -> None:
    twice = pl.concat([frame, frame.filter(pl.col("run") == "a0").with_columns(run=pl.lit("c0"))])
    with pytest.raises(SettingError, match="minus: its runs cannot be paired with those of k=1: several"):
        extrapolation_curve(twice).difference(1, 2)
    with pytest.raises(SettingError, match="of: expected an arm"):
        extrapolation_curve(frame).difference(3, 2)


def test_the_figure(frame: pl.DataFrame) -> None:
    ax = extrapolation_curve(frame).difference(1, 2).plot()
    assert ax.get_ylabel() == "difference of normalized accuracy\n(k=1 minus k=2)"
    assert [text.get_text() for text in ax.texts] == ["trained 8–24"]
    assert "95% intervals, each length for itself" in ax.get_xlabel()
