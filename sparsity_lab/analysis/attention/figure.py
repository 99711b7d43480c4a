"""What the figures of attention measures share: one line for each model and layer, thin lines for its heads."""

from collections.abc import Callable

import polars as pl
from matplotlib.axes import Axes

from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.lines import CHANCE, draw_curve, name_lines, note_below
from sparsity_lab.analysis.style import GRAY, INK, look, new_axes, styled
from sparsity_lab.settings import SettingError


def of_layer(frame: pl.DataFrame, layer: int | None) -> pl.DataFrame:
    """The rows of one layer, or all.

    Raises:
        SettingError: no such layer.
    """
    known = sorted(frame["layer"].unique().to_list())
    if layer is not None and layer not in known:
        raise SettingError("layer", "a layer that was measured", layer, [str(one) for one in known])
    return frame if layer is None else frame.filter(pl.col("layer") == layer)


def own_axes(ax: Axes | None) -> Axes:
    """The given axes, or new ones with room for names at the ends of lines."""
    return new_axes(5.8, 3.3) if ax is None else ax


def draw_lines(ax: Axes, frame: pl.DataFrame, x: str, y: str) -> None:
    """Draw y against x for each model and layer: the mean over heads, and each head."""
    for index, (arm, layer) in enumerate(_series_of(frame).iter_rows()):
        part = frame.filter(arm=arm, layer=layer).drop_nulls(y).sort(x)
        mean = part.group_by(x, maintain_order=True).agg(pl.col(y).mean())
        each = [(one[x], one[y]) for one in part.partition_by("head", maintain_order=True)]
        draw_curve(ax, mean[x], mean[y], look(index), f"{arm}, layer {layer}", each=each)


def name_heads(ax: Axes, frame: pl.DataFrame) -> None:
    """Write the names of the lines, and what the thin ones are."""
    name_lines(ax)
    note_below(ax, ["line: mean over heads; thin: each head"] if frame["head"].n_unique() > 1 else [])


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
    reference: Callable[[Axes, pl.DataFrame], None],
) -> Axes:
    """Plot the column ``mass`` against ``length`` with a reference curve; returns the axes.

    Args:
        words: of the vertical axis.
        reference: draws what the mass is compared with.
    """
    drawn = of_layer(frame, layer)
    with styled():
        ax = own_axes(ax)
        draw_lines(ax, drawn, "length", "mass")
        reference(ax, drawn)
        length_axis(ax, drawn["length"].unique().to_list(), trained, "length (tokens, log scale)")
        ax.set_ylabel(words)
        ax.set_ylim(-0.03, 1.03)
        name_heads(ax, drawn)
    return ax


def reference_line(ax: Axes, frame: pl.DataFrame, y: str, label: str, color: str = INK) -> None:
    """Draw the mean of y at each length as a dotted line."""
    level = frame.drop_nulls(y).group_by("length").agg(pl.col(y).mean()).sort("length")
    ax.plot(level["length"], level[y], zorder=1, color=color, linewidth=0.9, linestyle=CHANCE, label=label)


def reference_lines(ax: Axes, frame: pl.DataFrame, y: str, label: str) -> None:
    """Draw y at each length as a dotted line for each model and layer, in its color."""
    for index, (_, part) in enumerate(frame.group_by("arm", "layer", maintain_order=True)):
        reference_line(ax, part, y, label if index == 0 else "_reference", look(index).color)


def _series_of(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("arm", "layer").unique(maintain_order=True)
