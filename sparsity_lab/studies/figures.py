"""Small multiples for result pages: curves by length in panels that share their axes, looks and one legend.

A line is the median over the seeds that learned, and its band goes from the smallest to the largest of them. Arms
that were not learned are named in the panel but not drawn.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparsity_lab.analysis import Replicates
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.style import GRAY, INK, Look, look

__all__ = [
    "draw_by_length",
    "draw_seeds",
    "legend_below",
    "levels",
    "line_style",
    "looks_of",
    "panels",
    "same_height",
]

BAND = "line: median over the seeds that learned; band: smallest to largest"
LEVELS: dict[str, tuple[float, Any]] = {"Bayes optimum": (1.0, (0, (6, 2))), "chance": (0.0, (0, (1.5, 2)))}


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name, the same in all panels.

    >>> list(looks_of(["softmax", "LSSA"]))
    ['softmax', 'LSSA']
    """
    return {name: look(index) for index, name in enumerate(names)}


def panels(count: int, *, columns: int = 3, width: float = 3.2, height: float = 2.45) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in rows of ``columns``, which do not share axes; width and height in inches of
    one panel. To be called inside ``styled()``.

    >>> figure, axes = panels(4, columns=2)
    >>> len(axes)
    4
    """
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * min(columns, count), height * rows + 0.7), layout="constrained")
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
    """Draw a measure against length, a line and band for each curve.

    >>> figure, (ax,) = panels(1)
    >>> curves = {"one": rows.filter(pl.col("arm") == "one")}
    >>> draw_by_length(ax, curves, looks_of(["one"]), only_learned=False)
    >>> ax.get_ylabel()
    'normalized accuracy'

    Args:
        curves: rows of ``Evidence`` by name, one row for each seed and length; none where nothing has run yet.
        looks: by name; may hold more than are drawn here.
        only_learned: leave out seeds that did not learn, and name their number in the panel.
        words: the measure, for the axis; "" for panels right of another.
    """
    ax.set_title(title, fontsize=10)
    ax.set_ylabel(words)
    curves = {name: rows for name, rows in curves.items() if not rows.is_empty()}
    if not curves:
        return
    missing: list[str] = []
    for name, rows in curves.items():
        seeds = rows["seed"].n_unique()
        drawn = rows.filter(pl.col("learned").fill_null(True)) if only_learned else rows
        drawn = drawn.drop_nulls(measure)
        learned = drawn["seed"].n_unique()
        if learned < seeds:
            missing.append(f"{name}: {learned} of {seeds} learned" if learned else _never(name, rows, measure))
        if drawn.is_empty():
            continue
        value = pl.col(measure)
        each = drawn.group_by("length").agg(value.median().alias("median"), low=value.min(), high=value.max())
        each = each.sort("length")
        ax.plot(each["length"], each["median"], **line_style(looks[name]), zorder=3)
        if learned > 1:
            band = each["length"], each["low"], each["high"]
            ax.fill_between(*band, color=looks[name].color, alpha=0.22, linewidth=0, zorder=2)
    everything = pl.concat([rows.select("length", "trained") for rows in curves.values()])
    trained = everything.filter("trained")["length"].to_list()
    shaded = TrainedRange(min(trained), max(trained)) if trained else None
    length_axis(ax, everything["length"], shaded, "length (log scale)", named=False)
    if measure == "normalized_accuracy":
        levels(ax)
        bottom, _ = ax.get_ylim()
        ax.set_ylim(min(bottom, -0.08), 1.08)
    if missing:
        ax.text(0.02, 0.02, "\n".join(missing), transform=ax.transAxes, fontsize=9, va="bottom", zorder=4)


def _never(name: str, rows: pl.DataFrame, measure: str) -> str:
    """What an arm without a learned seed reached: the median at the largest trained length."""
    at = rows.filter("trained").drop_nulls(measure).sort("length")
    reached = at.filter(pl.col("length") == at["length"].max())[measure].to_list()
    return f"{name}: never learned" + (f" ({median(reached):.2f})" if reached else "")


def same_height(axes: Sequence[Axes]) -> None:
    """Give panels of one measure the same vertical limits, the widest of theirs.

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
    """Draw a mark for each seed at a place of the horizontal axis, and a line at their mean.

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
    """Lines at the Bayes optimum and at chance of a normalized measure.

    >>> figure, (ax,) = panels(1)
    >>> levels(ax)
    >>> len(ax.lines)
    2
    """
    for level, dash in LEVELS.values():
        ax.axhline(level, color=INK, linewidth=0.9, linestyle=dash, zorder=1)


def legend_below(
    figure: Figure, *groups: Mapping[str, Look], band: str = BAND, more: Sequence[tuple[Any, str]] = ()
) -> None:
    """One legend for all panels, under them: a column for each group of looks, then one that names band, shading and
    levels, then ``more`` handles with their words.

    >>> figure, axes = panels(2)
    >>> legend_below(figure, looks_of(["one", "two"]))
    >>> len(figure.legends)
    1
    """
    shown: list[list[tuple[Any, str]]] = [
        [(Line2D([], [], **line_style(one)), name) for name, one in looks.items()] for looks in groups
    ]
    first = next(iter(groups[0].values()))
    levels_named = [
        (Line2D([], [], color=INK, linewidth=0.9, linestyle=dash), name) for name, (_, dash) in LEVELS.items()
    ]
    grounds = [
        (Patch(color=first.color, alpha=0.22, linewidth=0), band),
        (Patch(color=GRAY, alpha=0.18, linewidth=0), "shaded: trained lengths"),
    ]
    shown.append([*grounds, *levels_named, *more])
    # Matplotlib fills columns of equal height, so the shorter ones end in empty entries.
    height = max(map(len, shown))
    nothing = Line2D([], [], linestyle="")
    entries = [entry for column in shown for entry in [*column, *[(nothing, "")] * (height - len(column))]]
    figure.legend(
        [handle for handle, _ in entries],
        [words for _, words in entries],
        loc="outside lower left",
        ncols=len(shown),
        handlelength=2.6,
        columnspacing=2.0,
        fontsize=9,
    )


def line_style(style: Look) -> dict[str, Any]:
    """The look as arguments of ``Axes.plot``.

    >>> sorted(line_style(looks_of(["one"])["one"]))
    ['color', 'linestyle', 'marker', 'markeredgewidth']
    """
    dash: Any = "-" if isinstance(style.dash, str) else (0, style.dash)
    return {"color": style.color, "marker": style.marker, "linestyle": dash, "markeredgewidth": 0}
