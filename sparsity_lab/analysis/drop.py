"""The drop: what a run loses between the longest trained length and a multiple of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from matplotlib.axes import Axes

from sparsity_lab.analysis.markup import Markup, element, join, number, signed_interval, table
from sparsity_lab.analysis.runs import (
    SEEDS,
    Arm,
    Frames,
    Measure,
    arms_of,
    common_lengths,
    evaluation_rows,
    measure_named,
    nearest_length,
    pooled_by,
)
from sparsity_lab.analysis.statistics import Interval, mean_interval
from sparsity_lab.analysis.style import INK, figure_svg, look, new_axes, styled
from sparsity_lab.settings import SettingError

__all__ = ["Difference", "Drop", "drop"]


@dataclass(frozen=True)
class Difference:
    """Drop of one arm minus drop of another, paired by seed.

    Attributes:
        of, minus: labels of the two arms.
        interval: mean over the pairs with Student's interval.
        pairs: number of seeds at which both arms have a learned run.
        unpaired: seeds at which only one of them has.
    """

    of: str
    minus: str
    interval: Interval
    pairs: int
    unpaired: int


@dataclass(frozen=True, repr=False)
class Drop:
    """Drops by arm. Made by ``drop``.

    Attributes:
        by: the columns that tell the arms apart.
        measure: what drops.
        factor: the wanted ratio of the evaluated length to the largest trained one.
        confidence: of the intervals.
    """

    by: tuple[str, ...]
    measure: Measure
    factor: float
    confidence: float
    _frame: pl.DataFrame
    _runs: pl.DataFrame

    def frame(self) -> pl.DataFrame:
        """One row per arm.

        Columns: ``arm`` (label), those of ``by``, ``trained_length``, ``length``, ``ratio`` (of the two), ``exact``
        (the ratio is ``factor``), ``runs``, ``learned``, ``at_trained`` and ``at_length`` (means over learned runs),
        ``drop`` (mean), ``low``, ``high`` (Student's interval over seeds; null with fewer than two learned runs,
        since one seed says nothing about the spread between seeds). Arms without a learned run, or without a length
        beyond the trained ones, have null drops.
        """
        return self._frame

    def runs(self) -> pl.DataFrame:
        """One row per learned run: ``arm``, ``run``, ``data_seed``, ``model_seed``, ``trained_length``, ``length``,
        ``at_trained``, ``at_length``, ``drop``."""
        return self._runs

    def difference(self, of: Any, minus: Any) -> Difference:
        """The drop of arm ``of`` minus that of arm ``minus``, paired by seed: positive if ``of`` drops more.

        Args:
            of, minus: an arm's label (``"k=3"``), its value in the one column of ``by`` (``3``), or a mapping of
                columns to values.

        Raises:
            SettingError: no such arm.
        """
        first, second = self._label(of, "of"), self._label(minus, "minus")
        each = [
            self._runs.filter(pl.col("arm") == label).select(*SEEDS, pl.col("drop").alias(name))
            for label, name in ((first, "first"), (second, "second"))
        ]
        both = each[0].join(each[1], on=list(SEEDS), how="inner", nulls_equal=True).sort(SEEDS)
        interval = mean_interval((both["first"] - both["second"]).to_list(), self.confidence)
        return Difference(first, second, interval, both.height, each[0].height + each[1].height - 2 * both.height)

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw mean and interval of each arm, and its runs as small marks; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            style: properties of the means' marks for ``Axes.errorbar``.
        """
        with styled():
            if ax is None:
                ax = new_axes(4.9, 1.0 + 0.42 * self._frame.height)
            labels = []
            for index, row in enumerate(self._frame.iter_rows(named=True)):
                color, marker, _ = look(index)
                labels.append(f"{row['arm']}\n{row['learned']} of {row['runs']} learned")
                if row["drop"] is None:
                    ax.text(0.02, index, "no drop: never learned" if not row["learned"] else "no longer length",
                            va="center", fontsize=9, transform=ax.get_yaxis_transform())  # fmt: skip
                    continue
                each = self._runs.filter(pl.col("arm") == row["arm"])["drop"]
                ax.plot(each, [index + 0.22] * each.len(), "|", color=color, markersize=7)
                half = None if row["low"] is None else [[row["drop"] - row["low"]], [row["high"] - row["drop"]]]
                arguments: dict[str, Any] = {"color": color, "capsize": 3, **style}
                ax.errorbar(row["drop"], index, xerr=half, fmt=marker, **arguments)
            ax.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (1.5, 2)))
            ax.set_yticks(range(len(labels)), labels)
            ax.set_ylim(len(labels) - 0.4, -0.6)
            ax.set_xlabel(
                f"drop of {self.measure.words} to {self.factor:g} x the trained length\n"
                f"(mean with {self.confidence:.0%} interval over seeds; small marks: runs)"
            )
        return ax

    def _label(self, arm: Any, path: str) -> str:
        for row in self._frame.iter_rows(named=True):
            values = {name: row[name] for name in self.by}
            single = next(iter(values.values())) if len(values) == 1 else None
            if arm == row["arm"] or (isinstance(arm, Mapping) and dict(arm) == values) or (values and arm == single):
                return str(row["arm"])
        raise SettingError(path, "an arm", arm, self._frame["arm"].to_list())

    def __repr__(self) -> str:
        lines = [
            f"  {row['arm']}: {drop_cell(row)}, {row['learned']} of {row['runs']} runs learned"
            for row in self._frame.iter_rows(named=True)
        ]
        head = f"Drop of {self.measure.words} from the trained length to {self.factor:g} x, mean over seeds"
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        svg = figure_svg(self.plot().get_figure(root=True), f"drop of {self.measure.words}")  # type: ignore[arg-type]
        return join([element("div", Markup(svg)), drop_table(self)])


def drop(
    results: pl.DataFrame | Frames,
    by: str | Sequence[str] = ("task.k",),
    factor: float = 4,
    *,
    condition: str | None = None,
    measure: str = "normalised_accuracy",
    confidence: float = 0.95,
) -> Drop:
    """The drop of each arm: the measure at the largest trained length minus that at ``factor`` times it.

    Both values come from the same run, so a drop is paired by seed. Only learned runs count. If no run was evaluated
    at exactly ``factor`` times the trained length, the nearest evaluated length beyond the trained ones is taken
    (nearest in ratio), and the row says which. The interval is Student's over seeds, mean ± t s / sqrt(n).

    Args:
        results: ``sweeps.Results``, or an evaluation frame with ``data_seed`` and ``model_seed``.
        by: columns whose values make the arms. An arm may hold one run per seed only, for the seed is the unit.
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
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for arm in arms:
        _check_one_run_per_seed(arm, by)
        trained_length, length = drop_lengths(arm, factor)
        each = _drops_of(arm, measure, trained_length, length)
        runs += each
        interval = mean_interval([run["drop"] for run in each], confidence)
        rows.append(
            {
                "arm": arm.label,
                **arm.values,
                "trained_length": trained_length,
                "length": length,
                "ratio": length / trained_length if length and trained_length else None,
                "exact": length == factor * trained_length if length and trained_length else None,
                "runs": arm.runs,
                "learned": arm.learned,
                "at_trained": mean_interval([run["at_trained"] for run in each]).estimate,
                "at_length": mean_interval([run["at_length"] for run in each]).estimate,
                "drop": interval.estimate,
                "low": interval.low,
                "high": interval.high,
            }
        )
    lengths = dict.fromkeys(("trained_length", "length"), pl.Int64)
    schema: dict[str, Any] = {
        "arm": pl.String,
        **{name: frame.schema[name] for name in by},
        **lengths,
        "ratio": pl.Float64,
        "exact": pl.Boolean,
        **dict.fromkeys(("runs", "learned"), pl.Int64),
        **dict.fromkeys(("at_trained", "at_length", "drop", "low", "high"), pl.Float64),
    }
    run_schema: dict[str, Any] = {
        "arm": pl.String,
        **{name: frame.schema[name] for name in ("run", *SEEDS)},
        **lengths,
        **dict.fromkeys(("at_trained", "at_length", "drop"), pl.Float64),
    }
    return Drop(
        by=by,
        measure=dropped,
        factor=factor,
        confidence=confidence,
        _frame=pl.DataFrame(rows, schema=schema, orient="row"),
        _runs=pl.DataFrame(runs, schema=run_schema, orient="row"),
    )


def drop_lengths(arm: Arm, factor: float) -> tuple[int | None, int | None]:
    """The largest trained length of an arm, and the evaluated length beyond it that is nearest to ``factor`` times
    it; None where there is none. Both are lengths at which all its runs were evaluated."""
    trained = common_lengths(arm.rows, trained=True)
    if not trained:
        return None, None
    beyond = [length for length in common_lengths(arm.rows) if length > trained[-1]]
    return trained[-1], nearest_length(beyond, factor * trained[-1])


def drop_cell(row: Mapping[str, Any]) -> str:
    """A drop with its interval as text, from a row of ``Drop.frame``."""
    if row["drop"] is None:
        return "no drop"
    return f"{number(row['drop'])} {signed_interval(row['low'], row['high'])}"


def drop_table(drops: Drop) -> Markup:
    """The drops as an HTML table."""
    interval = f"{drops.confidence:.0%} interval"
    head = ["arm", "drop", interval, "learned", "from length", "value there", "to length", "value there", "ratio"]
    rows = [
        (
            row["arm"],
            row["drop"],
            "–" if row["drop"] is None else signed_interval(row["low"], row["high"]),
            f"{row['learned']} of {row['runs']}",
            row["trained_length"],
            row["at_trained"],
            row["length"],
            row["at_length"],
            None if row["ratio"] is None else f"{'' if row['exact'] else 'nearest: '}{row['ratio']:.3g} x",
        )
        for row in drops.frame().iter_rows(named=True)
    ]
    return table(head, rows, digits=2)


def _drops_of(arm: Arm, measure: str, trained_length: int | None, length: int | None) -> list[dict[str, Any]]:
    if trained_length is None or length is None:
        return []
    ends = [
        arm.learned_rows.filter(pl.col("length") == at).select("run", *SEEDS, pl.col(measure).alias(name))
        for at, name in ((trained_length, "at_trained"), (length, "at_length"))
    ]
    both = ends[0].join(ends[1].drop(*SEEDS), on="run").drop_nulls(["at_trained", "at_length"]).sort("run")
    return [
        {
            "arm": arm.label,
            **row,
            "trained_length": trained_length,
            "length": length,
            "drop": row["at_trained"] - row["at_length"],
        }
        for row in both.iter_rows(named=True)
    ]


def _check_one_run_per_seed(arm: Arm, by: tuple[str, ...]) -> None:
    seeds = arm.rows.select("run", "condition", *SEEDS).unique().select(SEEDS)
    if seeds.n_unique() < seeds.height:
        more = [*pooled_by([arm]), *(["condition"] if arm.rows["condition"].n_unique() > 1 else [])]
        expected = f"columns that leave one run per seed in {arm.label!r}"
        if more:
            expected += f"; its runs also differ in {', '.join(more)}"
        raise SettingError("by", expected, list(by))
