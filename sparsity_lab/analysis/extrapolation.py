"""The extrapolation curve: how a measure goes with length, over the runs of each arm."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis.curve_difference import CurveDifference, curve_difference
from sparsity_lab.analysis.findings import curve_finding, titled
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.lines import BAYES, CHANCE, FEW, draw_curve, draw_level, name_lines, note_below
from sparsity_lab.analysis.measurement import Measurement
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
from sparsity_lab.analysis.style import GRAY, INK, Look, figure_image, looks_of, new_axes, styled
from sparsity_lab.settings.markup import details, element, join, table

MOST_ARMS = 6
"""In one panel."""
_NAME_WIDTH, _NOTE_WIDTH = 24, 66


@dataclass(frozen=True, repr=False)
class ExtrapolationCurve(Measurement):
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

    def plot(
        self,
        ax: Axes | None = None,
        *,
        length_unit: str = "tokens",
        arms: Sequence[str] | None = None,
        looks: Mapping[str, Look] | None = None,
        **style: Any,
    ) -> Axes:
        """Draw the curves; returns the axes. Fewer than ten runs are thin lines; of more the band is the interval of
        their median.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            length_unit: what a task's length counts, for the axis.
            arms: labels of those to draw; by default all.
            looks: by label, for a page on which a color has one meaning.
            style: properties of the lines (``linewidth``, ``alpha``, ...).
        """
        labels = self.labels
        looks = looks or looks_of(labels)
        shown = [label for label in labels if arms is None or label in arms]
        with styled():
            if ax is None:
                widest = max(map(len, shown))
                ax = new_axes(4.6 + 0.08 * max(6, min(widest, _NAME_WIDTH)), 3.1 + 0.17 * len(self._notes(shown)))
            self._draw_ground(ax)
            for label in shown:
                self._draw_arm(ax, label, looks[label], style)
            self._set_axes(ax, length_unit)
            name_lines(ax, _NAME_WIDTH)
            note_below(ax, self._notes(shown))
        return ax

    @property
    def labels(self) -> list[str]:
        """The arms in the order in which they are drawn."""
        labels: list[str] = self._frame["arm"].unique(maintain_order=True).to_list()
        return labels

    def _draw_ground(self, ax: Axes) -> None:
        """Chance and Bayes level."""
        for name, words, dash in (("bayes", "Bayes", BAYES), ("chance", "chance", CHANCE)):
            known = self._frame.drop_nulls(name)
            if known[name].n_unique() == 1:
                draw_level(ax, known[name][0], words, dash)
                continue
            for place, part in enumerate(known.partition_by("arm", maintain_order=True)):
                label = "_level" if place else words
                ax.plot(part["length"], part[name], color=INK, linewidth=0.9, linestyle=dash, zorder=1, label=label)

    def _draw_arm(self, ax: Axes, label: str, look: Look, style: dict[str, Any]) -> None:
        part = self._frame.filter(arm=label).drop_nulls("median")
        if part.is_empty():
            return
        runs = self._arms[label].counted_rows if self.only_learned else self._arms[label].rows
        each = [
            (one["length"], one[self.measure.name])
            for one in runs.drop_nulls(self.measure.name).sort("length").partition_by("run", maintain_order=True)
        ]
        # A band has a low end at every length or at none, but for lengths that only one run has.
        band = {"low": part["low"].fill_null(part["median"]), "high": part["high"].fill_null(part["median"])}
        draw_curve(ax, part["length"], part["median"], look, label, each=each, **band, **style)

    def _notes(self, labels: Sequence[str]) -> list[str]:
        """What the lines show, and which arms have runs that did not learn."""
        notes, used, unjudged = [], [], list[str]()
        for label in labels:
            part = self._frame.filter(arm=label)
            learned, judged, runs = part.select("learned", "judged", "runs").row(0)
            if part["median"].count():
                used.append(max(part["used"].to_list()))
                if not judged:
                    unjudged.append(label)
                elif learned < runs:
                    notes.append(f"{label} ({learned_words(learned, judged, runs)})")
                continue
            never = judged > 0 and learned == 0
            state = f"never learned (0 of {runs} run{'s' * (runs != 1)})" if never else f"no {self.measure.words}"
            reached = part.filter("trained")["unlearned"].drop_nulls().to_list()
            if never and reached:
                state += f", {reached[-1]:.2f} at the trained lengths"
            notes.append(f"{label}: {state}{'' if judged else f', {NOT_JUDGED}'}, not drawn")
        if unjudged:
            notes.append(f"{', '.join(unjudged)}: {NOT_JUDGED}" if len(unjudged) < len(labels) else NOT_JUDGED)
        if used and max(used) > 1:
            count = f"{min(used)} to {max(used)}" if min(used) < max(used) else str(max(used))
            each = ["thin: each run"] if 1 < min(used) < FEW or 1 < max(used) < FEW else []
            band = [f"band: interval of the median{self._coverage_words()}"] if max(used) >= FEW else []
            notes.append("; ".join([f"line: median of {count} runs", *each, *band]))
        if self.pooled:
            notes.append(f"pooled over {', '.join(self.pooled)}")
        return [textwrap.fill(note, _NOTE_WIDTH) for note in notes]

    def _coverage_words(self) -> str:
        covers: list[float] = self._frame.filter(pl.col("used") >= FEW)["coverage"].drop_nulls().unique().to_list()
        return f", coverage {'at least ' if len(covers) > 1 else ''}{min(covers):.0%}"

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

    def figure(self, looks: Mapping[str, Look] | None = None) -> Figure:
        """The curves as a figure of their own, under what they show; more than six arms in several panels.

        Args:
            looks: as for ``plot``.
        """
        labels = self.labels
        if len(labels) <= MOST_ARMS:
            figure = self.plot(looks=looks).get_figure(root=True)
            assert isinstance(figure, Figure)
            return titled(figure, self.finding)
        count = math.ceil(len(labels) / MOST_ARMS)
        size = math.ceil(len(labels) / count)
        looks = looks or looks_of(labels)
        with styled():
            figure = Figure(figsize=(6.4, 3.4 * count), layout="constrained")
            axes = figure.subplots(count, 1, sharey=True)
            for place, ax in enumerate(axes):
                self.plot(ax, arms=labels[place * size : (place + 1) * size], looks=looks)
        return titled(figure, self.finding)

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
