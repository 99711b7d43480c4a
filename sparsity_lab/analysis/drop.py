"""The drop: what a run loses between the longest trained length and a multiple of it."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from matplotlib.axes import Axes

from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.pairing import Difference, difference_of, drop_lengths, drops_of
from sparsity_lab.analysis.replicates import seed_columns
from sparsity_lab.analysis.runs import (
    NOT_JUDGED,
    ArmRuns,
    Frames,
    Measure,
    arm_named,
    arms_of,
    evaluation_rows,
    learned_words,
    measure_named,
    pooled_by,
)
from sparsity_lab.analysis.statistics import mean_interval
from sparsity_lab.analysis.style import INK, figure_image, look, new_axes, styled
from sparsity_lab.settings import SettingError
from sparsity_lab.settings.markup import Markup, element, join, number, signed_interval, table

_ARM_WIDTH = 34


@dataclass(frozen=True, repr=False)
class Drop(Measurement):
    """Drops by arm. Made by ``drop``.

    >>> drop(results, factor=2).frame()["arm"].to_list()
    ['k=1', 'k=2']

    Attributes:
        by: the columns that tell the arms apart.
        measure: what drops.
        factor: the wanted ratio of the evaluated length to the largest trained one.
        confidence: of the intervals.
        seeds: the columns that name a replicate, by which runs of two arms are paired.
    """

    by: tuple[str, ...]
    measure: Measure
    factor: float
    confidence: float
    seeds: tuple[str, ...]
    _frame: pl.DataFrame
    _runs: pl.DataFrame
    _arms: Mapping[str, ArmRuns]

    def frame(self) -> pl.DataFrame:
        """One row per arm.

        Columns: ``arm`` (label), those of ``by``, ``trained_length``, ``length``, ``ratio`` (of the two) and
        ``exact`` (the ratio is ``factor``). ``runs``, ``judged`` and ``learned`` are numbers of runs. ``at_trained``,
        ``at_length`` and ``drop`` are means over the runs that count. ``low`` and ``high`` are Student's interval
        over seeds. They are null for fewer than two runs, since one seed says nothing about the spread between seeds.
        Arms that never learned, or without a length beyond the trained ones, have null drops. ``unlearned`` is what
        the runs that did not learn reached at the largest trained length, as a mean.
        """
        return self._frame

    def runs(self) -> pl.DataFrame:
        """One row per run that counts: ``arm``, ``run``, those of ``seeds``, ``trained_length``, ``length``,
        ``at_trained``, ``at_length``, ``drop``."""
        return self._runs

    def difference(self, of: Any, minus: Any) -> Difference:
        """The drop of arm ``of`` minus that of arm ``minus``, paired by seed: positive if ``of`` drops more.

        Both drops use lengths at which both arms were evaluated, which may differ from those of ``frame``. Arms
        trained up to different lengths are not compared, and the difference says why.

        Args:
            of, minus: an arm's label (``"k=3"``), its value in the one column of ``by`` (``3``), or a mapping of
                columns to values.

        Raises:
            SettingError: no such arm.
        """
        first, second = (arm_named(self._arms, arm, path) for arm, path in ((of, "of"), (minus, "minus")))
        return difference_of(first, second, self.measure.name, self.factor, self.seeds, self.confidence)

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw mean and interval of each arm, and its runs as small marks; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            style: properties of the means' marks for ``Axes.errorbar``.
        """
        with styled():
            arms = [textwrap.fill(arm, _ARM_WIDTH) for arm in self._frame["arm"]]
            if ax is None:
                ax = new_axes(4.9, 1.15 + 0.2 * self._frame.height + 0.22 * sum(arm.count("\n") + 1 for arm in arms))
            labels = []
            for index, row in enumerate(self._frame.iter_rows(named=True)):
                color, marker, _ = look(index)
                nearest = "" if row["exact"] in (True, None) else f", to {row['ratio']:.3g} x"
                labels.append(f"{arms[index]}\n{learned_words(row['learned'], row['judged'], row['runs'])}{nearest}")
                if row["drop"] is None:
                    words = f"no drop: {no_drop_reason(row)}"
                    ax.text(0.02, index, words, va="center", fontsize=9, transform=ax.get_yaxis_transform())
                    continue
                each = self._runs.filter(pl.col("arm") == row["arm"])["drop"]
                ax.plot(each, [index + 0.22] * each.len(), "|", color=color, markersize=7)
                half = None if row["low"] is None else [[row["drop"] - row["low"]], [row["high"] - row["drop"]]]
                arguments: dict[str, Any] = {"color": color, "capsize": 3, **style}
                ax.errorbar(row["drop"], index, xerr=half, fmt=marker, **arguments)
            ax.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (1.5, 2)))
            ax.set_yticks(range(len(labels)), labels)
            ax.set_ylim(len(labels) - 0.4, -0.6)
            # Wider than axes beside long names: it ends where they end, and has room on the left.
            ax.set_xlabel(
                f"drop of {self.measure.words}\nto {self.factor:g} x the trained length (mean with\n"
                f"{self.confidence:.0%} interval over seeds; small marks: runs)",
                loc="right",
            )
        return ax

    @property
    def finding(self) -> str:
        """Which arm drops most and which least: the title of the figure."""
        known = self._frame.drop_nulls("drop").sort("drop", descending=True, maintain_order=True)
        if known.is_empty():
            return "No arm has a drop"
        ends = known.rows(named=True)[:: max(1, known.height - 1)][:2]
        lost = [f"{one['arm']} loses {number(one['drop'])}" for one in ends]
        between = [f"from length {one['trained_length']} to {one['length']}" for one in ends]
        if len(set(between)) == 1:
            return f"{between[0].capitalize()}: {'; '.join(lost)}"
        return "; ".join(map(" ".join, zip(lost, between, strict=True)))

    def __repr__(self) -> str:
        lines = [
            f"  {row['arm']}: {drop_cell(row)}, {learned_words(row['learned'], row['judged'], row['runs'])}"
            for row in self._frame.iter_rows(named=True)
        ]
        head = f"Drop of {self.measure.words} from the trained length to {self.factor:g} x, mean over seeds"
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        return join([element("div", figure_image(self.figure(), self.finding)), drop_table(self)])


def drop(
    results: pl.DataFrame | Frames,
    by: str | Sequence[str] = ("task.k",),
    factor: float = 4,
    *,
    condition: str | None = None,
    measure: str = "normalized_accuracy",
    confidence: float = 0.95,
) -> Drop:
    """The drop of each arm: the measure at the largest trained length minus that at ``factor`` times it.

    Both values come from the same run, so a drop is paired by seed. Runs that never learned do not count; those that
    are not judged, because their task declares no optimum, do. If no run was evaluated at exactly ``factor`` times
    the trained length, the nearest evaluated length beyond the trained ones is taken (nearest in ratio), and the row
    says which. The interval is Student's over seeds, mean ± t s / sqrt(n).

    >>> drop(results, by="task.k", factor=2).frame()["ratio"].unique().to_list()
    [2.0]

    Args:
        results: ``sweeps.Results``, or an evaluation frame with ``data_seed`` and ``model_seed``.
        by: columns whose values make the arms. The runs of an arm may differ in seeds only (any setting whose name
            ends in ``seed``, at any depth), for the seed is the unit.
        factor: above 1.

    Raises:
        SettingError: an unknown column, measure or condition, several runs of one seed in an arm, or no rows.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    if factor <= 1:
        raise SettingError("factor", "a number above 1", factor)
    frame = evaluation_rows(results, condition=condition, by=by)
    dropped = measure_named(measure, frame)
    arms = arms_of(frame, by)
    seeds = seed_columns(frame, by)
    rows: list[dict[str, Any]] = []
    runs: list[pl.DataFrame] = []
    for arm in arms:
        _check_one_run_per_seed(arm, by, seeds)
        trained_length, length = drop_lengths(arm.rows, factor)
        each = drops_of(arm, measure, trained_length, length, seeds)
        lengths = (pl.lit(trained_length, pl.Int64).alias("trained_length"), pl.lit(length, pl.Int64).alias("length"))
        runs.append(each.select(pl.lit(arm.label).alias("arm"), "run", *seeds, *lengths, *each.columns[-3:]))
        interval = mean_interval(each["drop"].to_list(), confidence)
        failed = arm.rows.filter((pl.col("length") == trained_length) & ~pl.col("learned").fill_null(True))
        rows.append(
            {
                "arm": arm.label,
                **arm.values,
                "trained_length": trained_length,
                "length": length,
                "ratio": length / trained_length if length and trained_length else None,
                "exact": length == factor * trained_length if length and trained_length else None,
                "runs": arm.runs,
                "judged": arm.judged,
                "learned": arm.learned,
                "at_trained": each["at_trained"].mean(),
                "at_length": each["at_length"].mean(),
                "drop": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "unlearned": failed[measure].mean(),
            }
        )
    schema: dict[str, Any] = {
        "arm": pl.String,
        **{name: frame.schema[name] for name in by},
        **dict.fromkeys(("trained_length", "length"), pl.Int64),
        "ratio": pl.Float64,
        "exact": pl.Boolean,
        **dict.fromkeys(("runs", "judged", "learned"), pl.Int64),
        **dict.fromkeys(("at_trained", "at_length", "drop", "low", "high", "unlearned"), pl.Float64),
    }
    return Drop(
        by=by,
        measure=dropped,
        factor=factor,
        confidence=confidence,
        seeds=seeds,
        _frame=pl.DataFrame(rows, schema=schema, orient="row"),
        _runs=pl.concat(runs),
        _arms={arm.label: arm for arm in arms},
    )


def drop_cell(row: Mapping[str, Any]) -> str:
    """A drop with its interval as text, from a row of ``Drop.frame``."""
    if row["drop"] is None:
        return "no drop"
    return f"{number(row['drop'])} {signed_interval(row['low'], row['high'])}"


def no_drop_reason(row: Mapping[str, Any]) -> str:
    """Why a row of ``Drop.frame`` has no drop."""
    if row["judged"] and not row["learned"]:
        return "never learned"
    if row["trained_length"] is None:
        return "no trained length evaluated"
    return "no longer length evaluated" if row["length"] is None else "no values"


def drop_table(drops: Drop) -> Markup:
    """The drops as an HTML table; a ratio other than the wanted one stands out and says so. An arm that never learned
    has what it reached in the place of the interval."""
    interval = f"{drops.confidence:.0%} interval"
    head = ["arm", "mean drop", interval, "learned", "from length", "to length", "ratio"]
    rows = [
        (
            row["arm"],
            row["drop"],
            _interval_cell(row),
            f"{row['learned']} of {row['runs']}" if row["judged"] else NOT_JUDGED,
            row["trained_length"],
            row["length"],
            _ratio_cell(row, drops.factor),
        )
        for row in drops.frame().iter_rows(named=True)
    ]
    return table(head, rows, digits=2)


def _interval_cell(row: Mapping[str, Any]) -> str:
    if row["drop"] is not None:
        return signed_interval(row["low"], row["high"])
    if row["unlearned"] is None:
        return no_drop_reason(row)
    return f"{no_drop_reason(row)}: mean {number(row['unlearned'])} at length {row['trained_length']}"


def _ratio_cell(row: Mapping[str, Any], factor: float) -> str | None:
    if row["ratio"] is None:
        return None
    ratio = f"{row['ratio']:.3g} x"
    return ratio if row["exact"] else element("strong", f"{ratio}, not {factor:g} x")


def _check_one_run_per_seed(arm: ArmRuns, by: tuple[str, ...], seeds: Sequence[str]) -> None:
    runs = arm.rows.select("run", "condition", *seeds).unique()
    if (runs.select(seeds).n_unique() if seeds else 1) < runs.height:
        more = [*pooled_by([arm]), *(["condition"] if arm.rows["condition"].n_unique() > 1 else [])]
        expected = f"columns that select one run per seed in {arm.label!r}"
        if more:
            expected += f"; its runs also differ in {', '.join(more)}"
        raise SettingError("by", expected, list(by))
