"""What the figures of attention measures share: one line for each model and layer, thin lines for its heads."""

import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from sparsity_lab.analysis.attention.subjects import Subject
from sparsity_lab.analysis.markup import Markup, details, element, join, table
from sparsity_lab.analysis.style import GREY, INK, figure_svg, look, new_axes, seaborn_plot
from sparsity_lab.analysis.ticks import FittingLabels
from sparsity_lab.settings import SettingError

__all__ = [
    "Measurement",
    "TrainedRange",
    "draw_lines",
    "legend_below",
    "length_axis",
    "of_layer",
    "own_axes",
    "reference_line",
]

HEADS_WORDS = "thin: each head"


@dataclass(frozen=True)
class TrainedRange:
    """Smallest and largest trained length over some models.

    Attributes:
        same: whether all were trained on that range.
    """

    low: int
    high: int
    same: bool

    @classmethod
    def of(cls, subjects: Iterable[Subject]) -> "TrainedRange | None":
        """None if no model tells."""
        ranges = {subject.trained for subject in subjects if subject.trained}
        if not ranges:
            return None
        return cls(min(low for low, _ in ranges), max(high for _, high in ranges), len(ranges) == 1)

    def holds(self, length: int) -> bool:
        """Whether the length is in the range."""
        return self.low <= length <= self.high

    def draw(self, ax: Axes) -> None:
        """Shade it on a length axis."""
        ax.axvspan(self.low, self.high, color=GREY, alpha=0.18, linewidth=0, zorder=0)
        words = f"trained {self.low}–{self.high}" if self.low < self.high else f"trained {self.low}"
        ax.text(
            math.sqrt(self.low * self.high),
            1.015,
            words if self.same else f"{words} (differs)",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
        )


class Measurement(ABC):
    """What a measure returns: numbers as a frame, and one figure."""

    @abstractmethod
    def frame(self) -> pl.DataFrame: ...

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes: ...

    @abstractmethod
    def summary(self) -> pl.DataFrame:
        """The few numbers that the figure draws."""

    def __repr__(self) -> str:
        with pl.Config(
            tbl_rows=24, tbl_cols=-1, tbl_width_chars=160, float_precision=3, tbl_formatting="NOTHING",
            tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=40,
        ):  # fmt: skip
            return f"{type(self).__name__}\n{self.summary()}"

    def _repr_html_(self) -> str:
        figure = self.plot().get_figure(root=True)
        assert isinstance(figure, Figure)
        summary = self.summary()
        svg = element("div", Markup(figure_svg(figure, type(self).__name__)))
        return join([svg, details("values", table(summary.columns, summary.iter_rows()))])


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


def length_axis(ax: Axes, lengths: Sequence[int], trained: TrainedRange | None, label: str) -> None:
    """A log axis with a tick at each length and the trained range shaded."""
    ends = [*lengths, *((trained.low, trained.high) if trained else ())]
    margin = max((max(ends) / min(ends)) ** 0.045, 1.05)
    if trained is not None:
        trained.draw(ax)
    ax.set_xscale("log")
    ax.set_xlim(min(ends) / margin, max(ends) * margin)
    inside = [length for length in lengths if trained is not None and trained.holds(length)]
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(lengths))))
    ax.xaxis.set_major_formatter(FittingLabels(keep=inside[-1:]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(label)


def legend_below(ax: Axes, handles: Sequence[Artist]) -> None:
    """The legend, below the axes."""
    ax.legend(
        handles,
        [textwrap.fill(str(handle.get_label()), 56) for handle in handles],
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.18 - 0.06 * ax.get_xlabel().count("\n")),
        borderaxespad=0,
        handlelength=2.8,
    )


def _series_of(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("arm", "layer").unique(maintain_order=True)
