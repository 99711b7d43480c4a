"""The extrapolation curve: how a measure goes with length, over the runs of each arm."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from sparsity_lab.analysis.curve_difference import CurveDifference, curve_difference
from sparsity_lab.analysis.findings import curve_finding, titled
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.reach import reach_of
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
    trained_range,
)
from sparsity_lab.analysis.statistics import median_interval
from sparsity_lab.analysis.style import GRAY, INK, figure_image, look, new_axes, seaborn_plot, styled
from sparsity_lab.settings.markup import details, element, join, table

__all__ = ["ExtrapolationCurve", "extrapolation_curve"]

_LEGEND_WIDTH = 46


@dataclass(frozen=True, repr=False)
class ExtrapolationCurve:
    """Medians over runs by arm and length, with their intervals as bands. Made by ``extrapolation_curve``.

    >>> curve = extrapolation_curve(results, only_learned=False)
    >>> curve.frame()["arm"].unique().sort().to_list()
    ['k=1', 'k=2']

    Attributes:
        by: the columns that tell the arms apart.
        measure: what is drawn.
        confidence: of the bands, where there are runs enough for it.
        only_learned: whether runs that never learned are left out (and counted apart).
        trained: smallest and largest trained length over all arms.
        same_training: whether all arms were trained on that range.
        pooled: settings other than the seeds in which runs of one arm differ.
    """

    by: tuple[str, ...]
    measure: Measure
    confidence: float
    only_learned: bool
    trained: tuple[int, int] | None
    same_training: bool
    pooled: tuple[str, ...]
    _frame: pl.DataFrame
    _arms: Mapping[str, ArmRuns]
    _seeds: tuple[str, ...]

    def frame(self) -> pl.DataFrame:
        """One row per arm and length. Columns:

        - ``arm`` (label), those of ``by``, ``length`` and ``trained``.
        - ``runs``, ``judged`` and ``learned`` of the arm, and ``used`` (runs in this median).
        - ``median`` with its interval ``low``, ``high`` (the band; null with fewer than two runs) and the
          ``coverage`` of that (see ``median_interval``).
        - ``unlearned``, the median over the runs that did not learn.
        - ``chance`` and ``bayes``, the levels of this measure.
        - ``reach`` of the arm (median over learned runs), ``reach_censored`` (how many of them held to the grid's
          end) and ``reach_at_least`` (the median is a lower bound).
        - ``reach_low``, ``reach_high``, ``reach_high_at_least`` (the interval has no upper end) and
          ``reach_coverage``, an interval for the median (see ``Reach.of``).
        """
        return self._frame

    def difference(self, of: Any, minus: Any) -> CurveDifference:
        """How much arm ``of`` lies above arm ``minus`` at each length, over pairs of runs of the same seeds.

        Args:
            of, minus: an arm's label (``"k=3"``), its value in the one column of ``by`` (``3``), or a mapping of
                columns to values.

        Raises:
            SettingError: no such arm, or runs that cannot be paired by their seeds.
        """
        first, second = (arm_named(self._arms, arm, path) for arm, path in ((of, "of"), (minus, "minus")))
        options: Any = {"only_learned": self.only_learned, "confidence": self.confidence}
        return curve_difference(first, second, self.measure, self._seeds, **options)

    def plot(self, ax: Axes | None = None, *, length_unit: str = "tokens", **style: Any) -> Axes:
        """Draw the curves; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            length_unit: what a task's length counts, for the axis.
            style: line properties for ``seaborn.lineplot`` (``linewidth``, ``alpha``, ...).
        """
        labels = self._frame["arm"].unique(maintain_order=True).to_list()
        with styled():
            own = ax is None
            ax = ax or new_axes(4.9, 3.15)
            self._draw_ground(ax)
            handles: list[Any] = [self._draw_arm(ax, index, label, style) for index, label in enumerate(labels)]
            words = [str(handle.get_label()) for handle in handles]
            if bands := [index for index, label in enumerate(labels) if self._has_band(label)]:
                handles.append(tuple(Patch(color=look(index).color, alpha=0.3, linewidth=0) for index in bands[:4]))
                words.append(f"band: interval of the median{self._coverage_words()}")
            if self.pooled:
                handles.append(_words_only(""))
                words.append(f"pooled over {', '.join(self.pooled)}")
            self._set_axes(ax, length_unit)
            words = [textwrap.fill(line, _LEGEND_WIDTH) for line in words]
            if own:
                lines = sum(line.count("\n") + 1 for line in words)
                self._own_figure(ax).set_size_inches(4.9, 3.15 + 0.17 * lines + 0.06 * len(words))
            ax.legend(
                handles,
                words,
                handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
                loc="upper left",
                bbox_to_anchor=(-0.02, 0),
                # Below the axis and its name, however high the axes are.
                bbox_transform=ax.transAxes + ScaledTranslation(0, -38 / 72, ax.figure.dpi_scale_trans),
                borderaxespad=0,
                handlelength=2.8,
            )
        return ax

    def _has_band(self, label: str) -> bool:
        return self._frame.filter(pl.col("arm") == label)["low"].count() > 0

    def _coverage_words(self) -> str:
        covers: list[float] = self._frame["coverage"].drop_nulls().unique().to_list()
        return f", coverage {'at least ' if len(covers) > 1 else ''}{min(covers):.0%}"

    def _draw_ground(self, ax: Axes) -> None:
        """Chance and Bayes level."""
        for name, words, dash in (("bayes", "Bayes", (0, (6, 2))), ("chance", "chance", (0, (1.5, 2)))):
            levels = self._frame.filter(pl.col(name).is_not_null()).select("length", name).unique().sort("length")
            if levels.is_empty():
                continue
            last = levels.filter(pl.col("length") == levels["length"].max())[name]
            if levels[name].n_unique() == 1:
                ax.axhline(last[0], color=INK, linewidth=0.9, linestyle=dash, zorder=1)
            else:
                for part in self._frame.partition_by("arm"):
                    ax.plot(part["length"], part[name], color=INK, linewidth=0.9, linestyle=dash, zorder=1)
            for level in last:
                ax.annotate(
                    words,
                    (1.0, level),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )

    def _draw_arm(self, ax: Axes, index: int, label: str, style: dict[str, Any]) -> Line2D:
        part = self._frame.filter(pl.col("arm") == label)
        learned, judged, runs = part.select("learned", "judged", "runs").row(0)
        if part["median"].count() == 0:
            never = judged > 0 and learned == 0
            state = (
                f"never learned (0 of {runs} run{'s' if runs != 1 else ''})" if never else f"no {self.measure.words}"
            )
            reached = part.filter("trained")["unlearned"].drop_nulls().to_list()
            if never and reached:
                state += f", {reached[-1]:.2f} at the trained lengths"
            return _words_only(f"{label}: {state}{'' if judged else f', {NOT_JUDGED}'}, not drawn", marker="x")
        drawn = part.filter(pl.col("median").is_not_null())
        color, marker, dash = look(index)
        arguments: dict[str, Any] = {"color": color, "marker": marker, "markeredgewidth": 0, "zorder": 3, **style}
        seaborn_plot(
            seaborn.lineplot,
            drawn,
            x="length",
            y="median",
            ax=ax,
            estimator=None,
            errorbar=None,
            legend=False,
            linestyle="-" if isinstance(dash, str) else (0, dash),
            **arguments,
        )
        band = drawn.filter(pl.col("low").is_not_null())
        if not band.is_empty():
            ax.fill_between(band["length"], band["low"], band["high"], color=color, alpha=0.28, linewidth=0, zorder=2)
        counts = learned_words(learned, judged, runs)
        return Line2D(
            [], [], color=arguments["color"], marker=arguments["marker"], markeredgewidth=0,
            label=f"{label} ({counts})" if judged else f"{label}: {counts}",
            linestyle="-" if isinstance(dash, str) else (0, dash),
        )  # fmt: skip

    def _set_axes(self, ax: Axes, length_unit: str) -> None:
        if self._frame["median"].count() == 0:
            ax.text(0.5, 0.5, "nothing to draw", transform=ax.transAxes, ha="center", va="center", color=GRAY)
        trained = TrainedRange(*self.trained, self.same_training) if self.trained else None
        length_axis(ax, self._frame["length"], trained, f"length ({length_unit}, log scale)")
        ax.set_ylabel(self.measure.label)
        if self.measure.name == "normalized_accuracy":
            bottom, top = ax.get_ylim()
            ax.set_ylim(min(bottom, -0.05), max(top, 1.05))

    @property
    def finding(self) -> str:
        """How far each arm holds, in one sentence: the title of the figure."""
        return curve_finding(self._frame, self.measure.words)

    def figure(self) -> Figure:
        """The curves as a figure of their own, under what they show."""
        return titled(self._own_figure(self.plot()), self.finding)

    @staticmethod
    def _own_figure(ax: Axes) -> Figure:
        figure = ax.figure
        assert isinstance(figure, Figure)
        return figure

    def summary(self) -> pl.DataFrame:
        """One row per arm: ``arm``, ``runs``, ``judged``, ``learned``, ``reach`` and ``reach_interval`` (as text),
        ``reach_censored``."""
        arms = self._frame.unique("arm", keep="first", maintain_order=True)
        reaches = [reach_of(self._arms[arm], self.confidence) for arm in arms["arm"]]
        texts = {"reach": [str(one) for one in reaches], "reach_interval": [one.interval for one in reaches]}
        columns = [pl.Series(name, values, dtype=pl.String) for name, values in texts.items()]
        return arms.select("arm", "runs", "judged", "learned", *columns, "reach_censored")

    def __repr__(self) -> str:
        arms = [
            f"  {row['arm']}: {learned_words(row['learned'], row['judged'], row['runs'])}, "
            f"reach {row['reach']} {row['reach_interval']}".removesuffix(" –")
            for row in self.summary().iter_rows(named=True)
        ]
        pooled = [f"  pooled over {', '.join(self.pooled)}"] if self.pooled else []
        lengths: list[int] = self._frame["length"].to_list()
        head = f"ExtrapolationCurve: median {self.measure.words} at lengths {min(lengths)} to {max(lengths)}"
        return "\n".join([head, *arms, *pooled])

    def _repr_html_(self) -> str:
        columns = ["arm", "length", "trained", "used", "median", "low", "high"]
        image = figure_image(self.figure(), self.finding)
        head = ["arm", "runs", "judged", "learned", "reach", "interval of the median (coverage)", "runs censored"]
        return join(
            [
                element("div", image),
                table(head, self.summary().iter_rows()),
                details("values", table(columns, self._frame.select(columns).iter_rows())),
            ]
        )


def extrapolation_curve(
    results: pl.DataFrame | Frames,
    by: str | Sequence[str] = ("task.k",),
    measure: str = "normalized_accuracy",
    condition: str | None = None,
    only_learned: bool = True,
    confidence: float = 0.95,
) -> ExtrapolationCurve:
    """The curve of ``measure`` against length for each arm: the median over runs with its interval as a band.

    >>> curve = extrapolation_curve(results, by="task.k", only_learned=False)
    >>> curve.frame()["length"].unique().sort().to_list()
    [8, 16]

    Args:
        results: ``sweeps.Results``, or an evaluation frame.
        by: columns whose values make the arms.
        condition: which evaluation condition; needed only if there are several.
        only_learned: leave out runs that never learned their task at the trained lengths. They are counted apart
            and an arm without a learned run is named as such, never averaged in. Runs that are not judged, because
            their task declares no optimum, stay in.
        confidence: of the bands. Of five runs or fewer a band is their range and covers less (``median_interval``).

    Raises:
        SettingError: an unknown column, measure or condition, or no rows.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    frame = evaluation_rows(results, condition=condition, by=by)
    drawn = measure_named(measure, frame)
    frame = frame.with_columns(
        (drawn.chance if drawn.chance is not None else pl.lit(None, pl.Float64)).alias("chance"),
        (drawn.bayes if drawn.bayes is not None else pl.lit(None, pl.Float64)).alias("bayes"),
    )
    arms = arms_of(frame, by)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        reach = reach_of(arm, confidence)
        for (length,), part in arm.rows.sort("length").partition_by("length", as_dict=True).items():
            used = part.filter(pl.col("learned").fill_null(True)) if only_learned else part
            values = used[measure].drop_nulls().to_list()
            unlearned = part.filter(~pl.col("learned").fill_null(True))[measure].drop_nulls()
            median = median_interval(values, confidence)
            rows.append(
                {
                    "arm": arm.label,
                    **arm.values,
                    "length": length,
                    "trained": part["trained"].all(),
                    "runs": arm.runs,
                    "judged": arm.judged,
                    "learned": arm.learned,
                    "used": median.count,
                    "median": median.estimate,
                    "low": median.low,
                    "high": median.high,
                    "coverage": median.coverage,
                    "unlearned": unlearned.median(),
                    "chance": part["chance"].median(),
                    "bayes": part["bayes"].median(),
                    "reach": reach.median,
                    "reach_censored": reach.censored,
                    "reach_at_least": reach.at_least,
                    "reach_low": reach.low,
                    "reach_high": reach.high,
                    "reach_high_at_least": reach.high_at_least,
                    "reach_coverage": reach.coverage,
                }
            )
    schema: dict[str, Any] = {
        "arm": pl.String,
        **{name: frame.schema[name] for name in by},
        "length": pl.Int64,
        "trained": pl.Boolean,
        **dict.fromkeys(("runs", "judged", "learned", "used"), pl.Int64),
        **dict.fromkeys(("median", "low", "high", "coverage", "unlearned", "chance", "bayes", "reach"), pl.Float64),
        "reach_censored": pl.Int64,
        "reach_at_least": pl.Boolean,
        **dict.fromkeys(("reach_low", "reach_high"), pl.Int64),
        "reach_high_at_least": pl.Boolean,
        "reach_coverage": pl.Float64,
    }
    return ExtrapolationCurve(
        by=by,
        measure=drawn,
        confidence=confidence,
        only_learned=only_learned,
        trained=trained_range(frame),
        same_training=len({trained_range(arm.rows) for arm in arms}) == 1,
        pooled=pooled_by(arms),
        _frame=pl.DataFrame(rows, schema=schema, orient="row"),
        _arms={arm.label: arm for arm in arms},
        _seeds=seed_columns(frame, by),
    )


def _words_only(words: str, marker: str = "") -> Line2D:
    """A legend entry without a line."""
    return Line2D([], [], linestyle="", marker=marker, color=GRAY, label=words)
