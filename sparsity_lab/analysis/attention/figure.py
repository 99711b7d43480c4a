"""What the figures of attention measures share: one line for each model and layer, thin lines for its heads."""

from typing import Any

import polars as pl
import seaborn
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sparsity_lab.analysis.style import GREY, INK, look, new_axes, seaborn_plot
from sparsity_lab.settings import SettingError

__all__ = ["draw_lines", "of_layer", "own_axes", "reference_line"]

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
        handles.append(Line2D([], [], color=GREY, linewidth=0.7, label=HEADS_WORDS))
    return handles


def reference_line(ax: Axes, frame: pl.DataFrame, x: str, y: str, label: str) -> Line2D:
    """Draw the mean of y at each x as a dotted line; returns its legend handle."""
    level = frame.drop_nulls(y).group_by(x).agg(pl.col(y).mean()).sort(x)
    drawn: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (1.5, 2)), "label": label}
    ax.plot(level[x], level[y], zorder=1, **drawn)
    return Line2D([], [], **drawn)


def _series_of(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("arm", "layer").unique(maintain_order=True)
