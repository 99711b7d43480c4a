"""What the figures of attention measures share: one line for each model and layer, thin lines for its heads."""

from collections.abc import Callable
from typing import Any

import polars as pl
import seaborn
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sparsity_lab.analysis.length_axis import TrainedRange, legend_below, length_axis
from sparsity_lab.analysis.style import GRAY, INK, look, new_axes, seaborn_plot, styled
from sparsity_lab.settings import SettingError

__all__ = ["draw_lines", "note_if_empty", "of_layer", "own_axes", "plot_mass", "reference_line", "reference_lines"]

HEADS_WORDS = "thin: each head"


def of_layer(frame: pl.DataFrame, layer: int | None) -> pl.DataFrame:
    """The rows of one layer, or all.

    Raises:
        SettingError: no such layer.
    """
    known = sorted(frame["layer"].unique().to_list())
    if layer is not None and layer not in known:
        raise SettingError("layer", "a layer that was measured", layer, [str(one) for one in known])
    return frame if layer is None else frame.filter(pl.col("layer") == layer)


def own_axes(ax: Axes | None, frame: pl.DataFrame, more: int = 1) -> Axes:
    """The given axes, or new ones with room below for a legend of the models and layers and ``more`` lines."""
    return new_axes(4.9, 3.15 + 0.2 * (_series_of(frame).height + more)) if ax is None else ax


def draw_lines(ax: Axes, frame: pl.DataFrame, x: str, y: str) -> list[Line2D]:
    """Draw y against x for each model and layer: the mean over heads, and each head; returns legend handles."""
    handles = []
    for index, (arm, layer) in enumerate(_series_of(frame).iter_rows()):
        color, marker, dash = look(index)
        line: Any = "-" if isinstance(dash, str) else (0, dash)
        part = frame.filter((pl.col("arm") == arm) & (pl.col("layer") == layer)).drop_nulls(y)
        common: dict[str, Any] = {"x": x, "y": y, "ax": ax, "color": color, "legend": False, "errorbar": None}
        if part["head"].n_unique() > 1:
            thin = {"linewidth": 0.7, "alpha": 0.45, "zorder": 2}
            seaborn_plot(seaborn.lineplot, part, **common, units="head", estimator=None, **thin)
        look_of_mean: dict[str, Any] = {"marker": marker, "markeredgewidth": 0, "linestyle": line, "zorder": 3}
        seaborn_plot(seaborn.lineplot, part, **common, **look_of_mean)
        words = f"{arm}, layer {layer}"
        handles.append(Line2D([], [], color=color, marker=marker, markeredgewidth=0, linestyle=line, label=words))
    if frame["head"].n_unique() > 1:
        handles.append(Line2D([], [], color=GRAY, linewidth=0.7, label=HEADS_WORDS))
    return handles


def note_if_empty(ax: Axes, frame: pl.DataFrame, y: str) -> None:
    """Say so where no row has weight on two keys, and so no value of y."""
    if frame[y].count() == 0:
        words = "no row with weight on two keys"
        ax.text(0.5, 0.6, words, transform=ax.transAxes, ha="center", color=GRAY)


def plot_mass(
    frame: pl.DataFrame,
    trained: TrainedRange | None,
    ax: Axes | None,
    layer: int | None,
    words: str,
    reference: Callable[[Axes, pl.DataFrame], Line2D],
) -> Axes:
    """Plot the column ``mass`` against ``length`` with a reference curve; returns the axes.

    Args:
        words: of the vertical axis.
        reference: draws what the mass is compared with; returns its legend handle.
    """
    drawn = of_layer(frame, layer)
    with styled():
        ax = own_axes(ax, drawn, 2)
        handles = [*draw_lines(ax, drawn, "length", "mass"), reference(ax, drawn)]
        length_axis(ax, drawn["length"].unique().to_list(), trained, "length (tokens, log scale)")
        ax.set_ylabel(words)
        ax.set_ylim(-0.03, 1.03)
        legend_below(ax, handles)
    return ax


_DOTS: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (1.5, 2))}


def reference_line(ax: Axes, frame: pl.DataFrame, y: str, label: str, color: str = INK) -> Line2D:
    """Draw the mean of y at each length as a dotted line; returns its legend handle."""
    level = frame.drop_nulls(y).group_by("length").agg(pl.col(y).mean()).sort("length")
    ax.plot(level["length"], level[y], zorder=1, color=color, **_DOTS)
    return Line2D([], [], color=color, label=label, **_DOTS)


def reference_lines(ax: Axes, frame: pl.DataFrame, y: str, label: str) -> Line2D:
    """Draw y at each length as a dotted line for each model and layer, in its color; returns a legend handle."""
    for index, (_, part) in enumerate(frame.group_by("arm", "layer", maintain_order=True)):
        reference_line(ax, part, y, "", look(index).color)
    return Line2D([], [], color=GRAY, label=label, **_DOTS)


def _series_of(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("arm", "layer").unique(maintain_order=True)
