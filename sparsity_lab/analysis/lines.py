"""Curves: one function draws a line of every figure, and one writes the names of lines at their ends."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import IdentityTransform
from numpy.typing import ArrayLike

from sparsity_lab.analysis.style import INK, Look, line_style

__all__ = ["BAYES", "CHANCE", "FEW", "draw_curve", "draw_level", "draw_median", "name_lines", "note_below", "spread"]

_LONGEST_WORD = 32
FEW = 10
"""Fewer seeds than this are drawn one by one; of more a band is drawn."""
BAYES, CHANCE = (0, (6, 2)), (0, (1.5, 2))
"""Dashes of the levels that a curve is compared with: what is best, and what is worth nothing."""


def draw_curve(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    style: Look,
    name: str = "",
    *,
    each: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    **line: Any,
) -> Line2D:
    """Draw one curve, with a thin line for each seed where they are few, and a band where they are many.

    >>> from matplotlib.figure import Figure
    >>> draw_curve(Figure().add_subplot(), [1, 2], [0.9, 0.5], look(0), "one").get_label()
    'one'

    Args:
        name: for ``name_lines``.
        each: x and y of the single seeds; one alone says no more than the curve.
        low, high: the band.
        line: properties of the line that are not those of ``style``.
    """
    if 1 < len(each) < FEW:
        for seed in each:
            ax.plot(*seed, color=style.color, linewidth=0.7, alpha=0.4, zorder=2, label="_seed")
    elif low is not None and high is not None:
        ax.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0, zorder=2)
    return ax.plot(x, y, **{**line_style(style), "label": name or "_curve", "zorder": 3, **line})[0]


def draw_median(
    ax: Axes, rows: pl.DataFrame, x: str, y: str, style: Look, name: str = "", *, seed: str = "seed", **line: Any
) -> None:
    """Draw the median over seeds of one column against another; the band goes from the smallest to the largest.

    >>> from matplotlib.figure import Figure
    >>> ax = Figure().add_subplot()
    >>> rows = pl.DataFrame({"seed": [0, 0, 1, 1], "length": [8, 16, 8, 16], "loss": [1.0, 3.0, 2.0, 5.0]})
    >>> draw_median(ax, rows, "length", "loss", look(0))
    >>> [float(value) for value in ax.lines[-1].get_ydata()]
    [1.5, 4.0]

    Args:
        rows: one for each seed and x.
    """
    # By seed as well: rows of a group_by come in any order, and a figure has the same bytes each time.
    rows = rows.drop_nulls(y).sort(seed, x)
    value = pl.col(y)
    of = rows.group_by(x).agg(middle=value.median(), low=value.min(), high=value.max()).sort(x)
    each = [(one[x], one[y]) for one in rows.partition_by(seed, maintain_order=True)]
    draw_curve(ax, of[x], of["middle"], style, name, each=each, low=of["low"], high=of["high"], **line)


def draw_level(ax: Axes, level: float, name: str = "", dash: Any = CHANCE) -> None:
    """Draw a thin line across the axes at what curves are compared with.

    >>> from matplotlib.figure import Figure
    >>> ax = Figure().add_subplot()
    >>> draw_level(ax, 0.5, "chance")
    >>> len(ax.lines)
    1
    """
    ax.axhline(level, color=INK, linewidth=0.9, linestyle=dash, zorder=1, label=name or "_level")


def name_lines(ax: Axes, width: int = 24) -> None:
    """Write the name of each line of the axes right of where it ends. Names that would touch move apart when the
    figure is drawn, and a thin line leads from each to its end. To be called when all lines are there.

    >>> from matplotlib.figure import Figure
    >>> ax = Figure().add_subplot()
    >>> _ = draw_curve(ax, [1, 2], [0.9, 0.5], look(0), "one")
    >>> name_lines(ax)
    >>> [text.get_text() for text in ax.texts]
    ['one']

    Args:
        width: of the longest line of a name, in letters.
    """
    group: list[_Name] = []
    for line in ax.lines:
        words = str(line.get_label())
        if not words.startswith("_") and len(np.asarray(line.get_xydata())):
            # A longer word, as of a setting with its fields, stays whole if it can.
            longest = max(map(len, words.split()), default=0)
            group.append(_Name(line, textwrap.fill(words, max(width, min(longest, _LONGEST_WORD))), group))
            ax.add_artist(group[-1]).set_clip_on(False)


def note_below(ax: Axes, lines: Sequence[str], width: int = 66) -> None:
    """Write what a reader of the figure must know below the axis and its name; nothing if there is nothing.

    >>> from matplotlib.figure import Figure
    >>> ax = Figure().add_subplot()
    >>> note_below(ax, ["two: never learned"])
    >>> len(ax.texts)
    1

    Args:
        width: of a line, in letters.
    """
    if lines:
        words = "\n".join(textwrap.fill(line, width) for line in lines)
        below = (0, -36 - 12 * ax.get_xlabel().count("\n"))
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        ax.annotate(words, (0, 0), below, va="top", fontsize=9, linespacing=1.15, **place)


def spread(places: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Centers as near to ``places`` as can be, in their order, so that none touches its neighbor. All lie between
    ``low`` and ``high`` if there is room.

    >>> spread([5.0, 5.0, 20.0], [4.0, 4.0, 4.0], 0.0, 30.0)
    [3.0, 7.0, 20.0]
    """

    def bottom(group: list[int]) -> float:
        # The whole group is as near as it can be: its bottom is the mean of the bottoms that its members wish for.
        below, wished = 0.0, 0.0
        for one in group:
            wished += places[one] - sizes[one] / 2 - below
            below += sizes[one]
        return max(low, min(wished / len(group), high - below))

    groups: list[list[int]] = []
    for one in sorted(range(len(places)), key=lambda i: places[i]):
        groups.append([one])
        while len(groups) > 1 and bottom(groups[-2]) + sum(sizes[i] for i in groups[-2]) > bottom(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    found = [0.0] * len(places)
    for group in groups:
        at = bottom(group)
        for one in group:
            found[one] = at + sizes[one] / 2
            at += sizes[one]
    return found


class _Name(Annotation):
    """The name of a line, right of its axes."""

    def __init__(self, line: Line2D, words: str, group: "list[_Name]") -> None:
        color = line.get_color()
        super().__init__(
            words, (0, 0), xycoords="figure pixels", textcoords="figure pixels", va="center", ha="left",
            color=color, fontsize=9, linespacing=1.0, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0,
                        "relpos": (0, 0.5), "patchA": None},
        )  # fmt: skip
        # Its place is in pixels. Axes would take it for one in data, and leave no room.
        self.set_transform(IdentityTransform())
        self.line, self.group = line, group

    def end(self) -> tuple[float, float]:
        """Where the line ends, in pixels."""
        x, y = self.line.get_transform().transform(np.asarray(self.line.get_xydata())[-1])
        return float(x), float(y)

    def update_positions(self, renderer: Any) -> None:
        """Move to where the name finds room now."""
        assert self.axes is not None
        box, points = self.axes.bbox, renderer.points_to_pixels(1.0)
        sizes = [11.5 * points * (one.get_text().count("\n") + 1) for one in self.group]
        ends = [one.end()[1] for one in self.group]
        places = spread(ends, sizes, box.y0 - sizes[0] / 2, box.y1 + sizes[-1] / 2)
        self.xy = self.end()
        self.set_position((box.x1 + 7 * points, places[self.group.index(self)]))
        super().update_positions(renderer)
