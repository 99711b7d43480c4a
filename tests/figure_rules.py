"""What every figure must keep, checked on the figure itself."""

from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from sparsity_lab.analysis.style import GRAY, INK, relative_luminance

SMALLEST, MOST_ARMS, MOST_LINES, WIDEST = 9.0, 6, 2, 7.6
"""Points of a text; curves in one axes; lines of a title; inches of a figure, which a page then shows at its size."""
READABLE = 3.0
"""Contrast with the white and with the dark page."""


def curves(ax: Axes) -> list[Line2D]:
    """The lines that stand for an arm: not those of single seeds, and not levels."""
    return [
        line
        for line in ax.lines
        if len(np.asarray(line.get_xdata())) > 1
        and not str(line.get_label()).startswith("_")
        and line.get_linewidth() > 1
        and line.get_linestyle() != "None"
    ]


def words(figure: Figure) -> list[Text]:
    """All texts that are seen; ticks beyond the ends of an axis are not."""
    hidden: set[Any] = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            ticks = {*axis.get_major_ticks(), *axis.get_minor_ticks()} - {*axis._update_ticks()}  # type: ignore[attr-defined]
            hidden |= {label for tick in ticks for label in tick.findobj(Text)}
    seen = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    return [one for one in seen if one not in hidden]


def broken_rules(figure: Figure) -> list[str]:
    """What the figure breaks, in words; nothing if it is as it should be."""
    figure.draw_without_rendering()
    renderer: Any = figure._get_renderer()  # type: ignore[attr-defined]
    found = [] if figure.get_figwidth() <= WIDEST else [f"{figure.get_figwidth():.1f} inches wide"]
    if (lines := figure.get_suptitle().count("\n") + 1) > MOST_LINES:
        found.append(f"a title of {lines} lines")
    canvas = figure.bbox
    for text in words(figure):
        if text.get_fontsize() < SMALLEST:
            found.append(f"{text.get_fontsize():g} pt: {text.get_text()!r}")
        box = text.get_window_extent(renderer)
        if box.x0 < canvas.x0 - 2 or box.y0 < canvas.y0 - 2 or box.x1 > canvas.x1 + 2 or box.y1 > canvas.y1 + 2:
            found.append(f"outside the canvas: {text.get_text()!r}")
    found += [f"unread mathematics: {one.get_text()}" for one in words(figure) if "\\mathdefault" in one.get_text()]
    meanings: dict[tuple[str, str], set[str]] = {}
    for ax in figure.axes:
        drawn = curves(ax)
        if len(drawn) > MOST_ARMS:
            found.append(f"{len(drawn)} arms in one panel")
        for line in drawn:
            color, marker = str(line.get_color()), str(line.get_marker())
            meanings.setdefault((color, marker), set()).add(str(line.get_label()))
            if color not in (INK, GRAY) and min(_contrasts(color)) < READABLE:
                found.append(f"{color} cannot be read on white or on dark")
        for one, other in combinations(drawn, 2):
            if _looks(one) == _looks(other):
                found.append(f"{one.get_label()} and {other.get_label()} look alike without color")
        found += [f"{own.get_text()!r} on its ground" for own in ax.texts if _contrast_on_cells(ax, own) < 4.5]
        legend = ax.get_legend()
        if legend is not None and len(legend.get_texts()) > MOST_ARMS:
            found.append(f"a legend of {len(legend.get_texts())} entries")
    found += [f"{color} means {', '.join(sorted(names))}" for (color, _), names in meanings.items() if len(names) > 1]
    found += [f"a legend of {len(one.get_texts())} entries" for one in figure.legends if len(one.get_texts()) > 12]
    return found


def _contrast_on_cells(ax: Axes, text: Text) -> float:
    """Of a text with the cell of a mesh that it lies in; no limit where there is no cell."""
    lowest = float("inf")
    for mesh in (one for one in ax.collections if isinstance(one, QuadMesh)):
        edges, (x, y) = mesh.get_coordinates(), text.get_position()
        column, row = (
            int(np.searchsorted(np.sort(e), at)) - 1 for e, at in ((edges[0, :, 0], x), (edges[:, 0, 1], y))
        )
        colors = mesh.get_facecolor().reshape(*(n - 1 for n in edges.shape[:2]), 4)
        if text.get_bbox_patch() is None and 0 <= row < colors.shape[0] and 0 <= column < colors.shape[1]:
            ground, own = relative_luminance(colors[row, column]), relative_luminance(text.get_color())
            if colors[row, column, 3] == 1:
                lowest = min(lowest, (max(ground, own) + 0.05) / (min(ground, own) + 0.05))
    return lowest


def _looks(line: Line2D) -> tuple[Any, ...]:
    return str(line.get_marker()), str(line._dash_pattern)  # type: ignore[attr-defined]


def _contrasts(color: str) -> tuple[float, float]:
    own = relative_luminance(color)
    return 1.05 / (own + 0.05), (own + 0.05) / (relative_luminance("#15181d") + 0.05)
