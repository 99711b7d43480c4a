"""Small multiples for result pages: panels of curves by length, with names at the ends of the lines.

A line is the median over the seeds that learned. Fewer than ten seeds are thin lines. For ten or more, the band goes
from the smallest to the largest. Arms that never learned are named below the panel but not drawn.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis import (
    Look,
    Replicates,
    TrainedRange,
    draw_level,
    draw_median,
    length_axis,
    name_lines,
    note_below,
)
from sparsity_lab.analysis.findings import told
from sparsity_lab.analysis.lines import BAYES
from sparsity_lab.training import Evaluation


def panels(count: int, *, columns: int = 2, width: float = 3.7, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in rows of ``columns``, which do not share axes. Width and height are those of
    one panel in inches. A figure of 7.4 inches fits a page with its text at full size. Call it inside ``styled()``.

    >>> figure, axes = panels(4, columns=2)
    >>> len(axes)
    4
    """
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * min(columns, count), height * rows), layout="constrained")
    found = [figure.add_subplot(rows, min(columns, count), place + 1) for place in range(count)]
    return figure, found


def draw_by_length(
    ax: Axes,
    curves: Mapping[str, pl.DataFrame],
    looks: Mapping[str, Look],
    *,
    title: str = "",
    measure: str = "normalized_accuracy",
    only_learned: bool = True,
    words: str = "normalized accuracy",
) -> None:
    """Draw a measure against length, with a named line for each curve, and its seeds.

    >>> figure, (ax,) = panels(1)
    >>> curves = {"one": rows.filter(pl.col("arm") == "one")}
    >>> draw_by_length(ax, curves, looks_of(["one"]), only_learned=False)
    >>> ax.get_ylabel()
    'normalized accuracy'

    Args:
        curves: rows of ``Evidence`` by name, one row for each seed and length; no rows if nothing has run yet.
        looks: the looks by name; more than the drawn ones are allowed.
        only_learned: leave out seeds that did not learn, and show their number below the panel.
        words: the label of the measure's axis; "" for panels to the right of another panel.
    """
    ax.set_title(title, fontsize=10, pad=16)
    ax.set_ylabel(words)
    curves = {name: rows for name, rows in curves.items() if not rows.is_empty()}
    if not curves:
        return
    if measure == "normalized_accuracy":
        levels(ax)
    missing: list[str] = []
    for name, rows in curves.items():
        seeds = rows["seed"].n_unique()
        drawn = rows.filter(pl.col("learned").fill_null(True)) if only_learned else rows
        drawn = drawn.drop_nulls(measure)
        learned = drawn["seed"].n_unique()
        if learned < seeds:
            missing.append(f"{name}: {learned} of {seeds} learned" if learned else _never(name, rows, measure))
        if learned:
            draw_median(ax, drawn, "length", measure, looks[name], name)
    everything = pl.concat([rows.select("length", "trained") for rows in curves.values()])
    trained = everything.filter("trained")["length"].to_list()
    shaded = TrainedRange(min(trained), max(trained)) if trained else None
    length_axis(ax, everything["length"], shaded, "length (log scale)")
    if measure == "normalized_accuracy":
        bottom, _ = ax.get_ylim()
        ax.set_ylim(min(bottom, -0.08), 1.08)
    name_lines(ax)
    note_below(ax, missing, 44)


def _never(name: str, rows: pl.DataFrame, measure: str) -> str:
    """A note on an arm without a learned seed, with the median at the largest trained length."""
    at = rows.filter("trained").drop_nulls(measure).sort("length")
    reached = at.filter(pl.col("length") == at["length"].max())[measure].to_list()
    return f"{name}: never learned" + (f" ({median(reached):.2f})" if reached else "")


def how_far(curves: Mapping[str, pl.DataFrame]) -> str:
    """How far each curve extrapolates, in multiples of its longest trained length. The rule uses the median over the
    seeds that learned. A curve loses half where the median falls below one half. Otherwise it holds while the median
    is at least 0.9.

    >>> rows = pl.DataFrame({"seed": 0, "learned": True, "trained": [True, False, False], "length": [8, 16, 32],
    ...                      "normalized_accuracy": [1.0, 0.95, 0.3]})
    >>> how_far({"k=1": rows.head(2), "k=3": rows, "k=4": rows})
    'k=1 holds to at least 2x; k=3 and k=4 lose half at 4x'

    Args:
        curves: as for ``draw_by_length``; curves without rows are left out.
    """
    return "; ".join(told((_without_commas(name), *_carries(rows)) for name, rows in curves.items() if len(rows)))


def _carries(rows: pl.DataFrame) -> tuple[tuple[str, str], str]:
    learned = rows.filter(pl.col("learned").fill_null(True))
    if learned.is_empty():
        return ("never learns it", "never learn it"), ""
    times, value = pl.col("length") / rows.filter("trained")["length"].max(), pl.col("normalized_accuracy")
    medians = learned.group_by(times=times).agg(value.median()).filter(pl.col("times") >= 1).sort("times")
    below, half = (medians.filter(value < level)["times"].to_list() for level in (_HOLDS, _HALF))
    held = [at for at in medians["times"] if not below or at < below[0]]
    if half:
        return ("loses half", "lose half"), f"at {half[0]:.3g}x"
    if held and (held[-1] > 1 or not below):
        return ("holds", "hold"), f"to {'' if below else 'at least '}{held[-1]:.3g}x"
    return ("falls", "fall"), f"below {_HOLDS:g} at {below[0]:.3g}x"


_HOLDS, _HALF = Evaluation.threshold, 0.5


def means_by(rows: pl.DataFrame, name: str, values: Sequence[str], column: str, places: int = 2) -> str:
    """``dense 0.99, window 0.17``: the mean of a column for each value of another column. Values without a number are
    left out.

    >>> means_by(pl.DataFrame({"arm": ["a", "a", "b"], "loss": [1.0, 2.0, 3.0]}), "arm", ["a", "b", "c"], "loss")
    'a 1.50, b 3.00'
    """
    means = dict(rows.group_by(name).agg(pl.col(column).mean()).drop_nulls().iter_rows())
    # Adding 0.0 turns -0.0 into 0.0.
    numbers = {one: round(means[one], places) + 0.0 for one in values if one in means}
    return ", ".join(f"{_without_commas(one)} {value:.{places}f}" for one, value in numbers.items())


def _without_commas(name: str) -> str:
    """The name without commas, for a list that is separated by commas."""
    return name.replace(",", "")


def same_height(axes: Sequence[Axes]) -> None:
    """Give panels of one measure the same vertical limits, which cover all of them.

    >>> figure, (left, right) = panels(2)
    >>> _ = left.set_ylim(0, 1), right.set_ylim(0, 2)
    >>> same_height([left, right])
    >>> left.get_ylim() == right.get_ylim()
    True
    """
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def draw_seeds(ax: Axes, place: float, numbers: Replicates, style: Look) -> None:
    """Draw a mark for each seed at a place on the horizontal axis, and a line at their mean.

    >>> figure, (ax,) = panels(1)
    >>> draw_seeds(ax, 0.0, {0: 0.5, 1: 0.7}, looks_of(["one"])["one"])
    >>> len(ax.lines) + len(ax.collections) > 0
    True
    """
    if numbers:
        values = list(numbers.values())
        each: dict[str, Any] = {"marker": style.marker, "markersize": 4, "alpha": 0.6, "markeredgewidth": 0}
        mean: dict[str, Any] = {"marker": "_", "markersize": 12, "markeredgewidth": 2}
        ax.plot([place] * len(values), values, color=style.color, linestyle="", **each)
        ax.plot(place, fmean(values), color=style.color, linestyle="", **mean)


def levels(ax: Axes) -> None:
    """Draw lines at the Bayes optimum and at chance of a normalized measure.

    >>> figure, (ax,) = panels(1)
    >>> levels(ax)
    >>> len(ax.lines)
    2
    """
    draw_level(ax, 1.0, "optimum", BAYES)
    draw_level(ax, 0.0, "chance")
