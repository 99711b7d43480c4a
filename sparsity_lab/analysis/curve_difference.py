"""The difference of two extrapolation curves, paired by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from matplotlib.axes import Axes

from sparsity_lab.analysis.differences import by_replicate, paired_differences
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.lines import draw_level
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.pairing import why_unpaired
from sparsity_lab.analysis.runs import ArmRuns, Measure, trained_range
from sparsity_lab.analysis.statistics import mean_interval
from sparsity_lab.analysis.style import look, new_axes, styled
from sparsity_lab.settings import SettingError
from sparsity_lab.settings.markup import number, signed_interval


@dataclass(frozen=True, repr=False)
class CurveDifference(Measurement):
    """How much one arm lies above another at each length. Made by ``ExtrapolationCurve.difference``.

    >>> curve = extrapolation_curve(results, only_learned=False)
    >>> curve.difference(1, 2).frame()["length"].to_list()
    [8, 16]

    Attributes:
        of, minus: labels of the two arms.
        measure: what is compared.
        confidence: of the intervals.
        unpaired: replicates (equal in every seed) of which only one arm has a run that counts.
    """

    of: str
    minus: str
    measure: Measure
    confidence: float
    unpaired: int
    trained: TrainedRange | None
    _frame: pl.DataFrame
    _reaches: pl.DataFrame

    def frame(self) -> pl.DataFrame:
        """One row per length that both arms were evaluated at.

        Columns: ``length``, ``trained``, ``pairs`` (of runs) and ``difference`` (first arm minus second, mean over
        pairs). ``low`` and ``high`` are Student's interval over pairs at each length; they are null for one pair.
        ``decided`` means that 0 lies outside the interval.
        """
        return self._frame

    def reaches(self) -> pl.DataFrame:
        """One row per pair of runs that both learned: their seeds, ``reach`` and ``censored`` of the first arm,
        ``reach_minus`` and ``censored_minus`` of the second, and ``farther``. ``farther`` is 1 if the first reached
        farther, -1 if the second did, and 0 if they tie. It is null if censoring leaves the answer open."""
        return self._reaches

    @property
    def finding(self) -> str:
        """The difference at the largest length that both have."""
        known = self._frame.drop_nulls("difference").tail(1).rows(named=True)
        if not known:
            return f"{self.of} and {self.minus}: no pairs of runs"
        (last,) = known
        side = "above" if last["difference"] >= 0 else "below"
        interval = f" {signed_interval(last['low'], last['high'])}" if last["low"] is not None else ""
        by = number(abs(last["difference"]))
        return f"At length {last['length']} {self.of} lies {by} {side} {self.minus}{interval}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw mean and interval against length; returns the axes."""
        color, marker, _ = look(0)
        drawn = self._frame.drop_nulls("difference")
        with styled():
            ax = new_axes(4.9, 3.2) if ax is None else ax
            draw_level(ax, 0.0)
            half = [
                (drawn["difference"] - drawn["low"]).fill_null(0),
                (drawn["high"] - drawn["difference"]).fill_null(0),
            ]
            arguments: dict[str, Any] = {"color": color, "marker": marker, "capsize": 3, "linewidth": 1.4}
            ax.errorbar(drawn["length"], drawn["difference"], yerr=half, **arguments)
            length_axis(ax, self._frame["length"], self.trained, "length (tokens, log scale)")
            ax.set_ylabel(f"difference of {self.measure.words}\n({self.of} minus {self.minus})")
            words = f"mean over pairs of seeds,\n{self.confidence:.0%} intervals, each length for itself"
            ax.set_xlabel(f"{ax.get_xlabel()}\n{words}")
        return ax


def curve_difference(
    first: ArmRuns, second: ArmRuns, measure: Measure, seeds: Sequence[str], *, only_learned: bool, confidence: float
) -> CurveDifference:
    """The first arm minus the second, at every length that all runs of both were evaluated at."""
    # A seed that one of the two does not have (that of a parent, say) cannot pair them.
    shared = [name for name in seeds if not (first.rows[name].has_nulls() or second.rows[name].has_nulls())]
    each = []
    for arm in (first, second):
        rows = arm.counted_rows if only_learned else arm.rows
        each.append(rows.select("run", *shared, "length", "trained", "reach", "censored", "learned", measure.name))
    runs = [part.unique("run", keep="first", maintain_order=True) for part in each]
    if reason := why_unpaired(runs, (first, second), shared):
        raise SettingError("minus", f"its runs cannot be paired with those of {first.label}: {reason}")
    pairs = runs[0].join(runs[1], on=shared, suffix="_minus")
    numbers: list[dict[str, Any]] = []
    for length in sorted(set(each[0]["length"]) & set(each[1]["length"])):
        at = [part.filter(pl.col("length") == length) for part in each]
        differences = paired_differences(*(by_replicate(part, measure.name, shared) for part in at))
        found = mean_interval(list(differences.values()), confidence)
        row: dict[str, Any] = {"length": length, "trained": at[0]["trained"].all(), "pairs": found.count}
        row |= {"difference": found.estimate, "low": found.low, "high": found.high}
        numbers.append(row | {"decided": found.decided if found.count > 1 else None})
    schema: dict[str, Any] = {"length": pl.Int64, "trained": pl.Boolean, "pairs": pl.Int64}
    schema |= dict.fromkeys(("difference", "low", "high"), pl.Float64) | {"decided": pl.Boolean}
    return CurveDifference(
        of=first.label,
        minus=second.label,
        measure=measure,
        confidence=confidence,
        unpaired=sum(part.height for part in runs) - 2 * pairs.height,
        trained=TrainedRange.of(trained_range(arm.rows) for arm in (first, second)),
        _frame=pl.DataFrame(numbers, schema=schema, orient="row"),
        _reaches=_reaches(pairs, shared),
    )


def _reaches(pairs: pl.DataFrame, seeds: Sequence[str]) -> pl.DataFrame:
    """Who reached farther. A censored reach may be any larger number. So a smaller reach never beats it, and an equal
    or larger one cannot be compared with it."""
    reach, other = pl.col("reach"), pl.col("reach_minus")
    censored, other_censored = pl.col("censored"), pl.col("censored_minus")
    farther = (
        pl.when(~censored & ~other_censored)
        .then((reach - other).sign())
        .when(censored & ~other_censored & (reach >= other))
        .then(1)
        .when(other_censored & ~censored & (other >= reach))
        .then(-1)
    )
    learned = pairs.filter(pl.col("learned").fill_null(False) & pl.col("learned_minus").fill_null(False))
    names = ("reach", "censored", "reach_minus", "censored_minus")
    return learned.select(*seeds, *names, farther.cast(pl.Int64).alias("farther")).sort(*seeds)
