"""Attention maps as a figure that does not move."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend_handler import HandlerPatch
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from sparsity_lab.analysis.attention.map_view import Head, MapView
from sparsity_lab.analysis.style import GRAY, new_axes, styled

SOURCE = "#d55e00"
MASKED = "#d9dce2"
ZERO = "#ffffff"
ROLE_COLORS = {"planted": SOURCE, "answer": "#009e73", "query": "#0072b2", "cue": "#c4689a", "special": "#4b515b"}
"""Of the parts that tokens play, as in ``generators.token_view``; all others are gray."""
ROLE_WORDS = {"planted": "source", "answer": "answer", "query": "query", "cue": "cue", "special": "special"}

_NAMED = 32
"""Tokens, at most, that have their names on an axis."""
_COLUMNS = 384
"""Cells of a row in a picture, at most: of more keys each cell shows the largest share of several."""


def _colors() -> LinearSegmentedColormap:
    # It gets darker all the way, also for a gray printer, and begins where it can be told from white.
    return LinearSegmentedColormap.from_list("shares", mpl.colormaps["YlGnBu"](np.linspace(0.16, 1, 256)))


def color_table() -> list[tuple[int, int, int]]:
    """256 colors of the scale, from the smallest share above zero to the largest."""
    table = _colors()(np.arange(256), bytes=True)
    return [(int(red), int(green), int(blue)) for red, green, blue, _ in table]


def draw_map(ax: Axes | None, view: MapView, head: Head, largest: float, *, named: bool = True) -> Axes:
    """Draw one map; returns the axes.

    Args:
        ax: None makes axes of a figure of their own.
        largest: the end of the scale.
        named: write what the axes are.
    """
    weights = view.weights[head]
    num_rows, num_keys = weights.shape
    with styled():
        own = ax is None
        ax = new_axes(4.9, 4.2) if ax is None else ax
        ax.imshow(
            _painted(weights, largest), aspect="auto", interpolation="nearest",
            extent=(-0.5, num_keys - 0.5, num_rows - 0.5, -0.5),
        )  # fmt: skip
        for index, key in view.cells:
            # A cell of a long sequence is thinner than a line: its frame is what shows it.
            wide = max(1.0, num_keys / 40)
            place = (key - wide / 2, index - 0.5)
            for color, line in (("white", 2.4), (SOURCE, 1.3)):
                frame = Rectangle(place, wide, 1, fill=False, edgecolor=color, linewidth=line, clip_on=False)
                ax.add_patch(frame).set_in_layout(False)
        ax.spines[:].set_visible(False)
        _role_axis(ax, view, named)
        if own:
            mass = view.source_mass(*head)
            words = "" if mass is None else f": {mass:.2f} on the sources"
            ax.set_title(f"layer {head[0]}, head {head[1]}{words}\n{view.name}", fontsize=10, loc="left")
            bar = ax.figure.colorbar(_scale(largest), ax=ax, ticks=_ticks(largest), format=_number)
            bar.set_label("share of a row (root scale)")
            bar.outline.set_visible(False)
    return ax


def map_figure(views: Sequence[MapView], largest: float, finding: str, left_out: int) -> Figure:
    """One block for each view, side by side, with a row for each layer and a column for each head."""
    columns = [max(sum(one == layer for one, _ in view.heads) for layer in view.layers) for view in views]
    num_rows = max(len(view.layers) for view in views)
    side = 1.3 if sum(columns) > 2 else 2.2
    with styled():
        width = max(side * sum(columns) + 1.5, 6.4)
        figure = Figure(figsize=(width, side * 1.14 * num_rows + 1.75), layout="constrained")
        title = textwrap.fill(finding, int(width * 11))
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        # The last block has the scale as well.
        widths = [*columns[:-1], columns[-1] + 1 / side]
        blocks: Any = figure.subfigures(1, len(views), width_ratios=widths, squeeze=False)[0]
        for block, view, count in zip(blocks, views, columns, strict=True):
            _draw_block(block, view, count, num_rows, largest)
        last = blocks[-1]
        bar = last.colorbar(_scale(largest), ax=last.axes, ticks=_ticks(largest), format=_number, aspect=30)
        bar.set_label("share of a row's weight\n(root scale)", fontsize=9)
        bar.outline.set_visible(False)
        _legend(figure, views, left_out)
    return figure


def _draw_block(block: SubFigure, view: MapView, columns: int, num_rows: int, largest: float) -> None:
    block.suptitle(view.name, fontsize=10)
    grid = block.subplots(num_rows, columns, squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    for line, layer in enumerate(view.layers):
        heads = [head for head in view.heads if head[0] == layer]
        for column, head in enumerate(heads):
            ax = grid[line, column]
            ax.axis("on")
            draw_map(ax, view, head, largest, named=False)
            mass = view.source_mass(*head)
            words = f"head {head[1]}" + ("" if mass is None else f": {mass:.2f}")
            ax.set_title(words, fontsize=9, fontweight="normal", pad=3)
            if column == 0:
                ax.set_ylabel(f"layer {layer}", fontsize=9, labelpad=8)


def _painted(weights: NDArray[np.float64], largest: float) -> NDArray[np.uint8]:
    """(R, columns, 3) colors of the cells."""
    size = np.abs(weights)
    if (num_keys := size.shape[1]) > _COLUMNS:
        together = -(-num_keys // _COLUMNS)
        filled = np.pad(size, ((0, 0), (0, -num_keys % together)), constant_values=np.nan)
        groups = filled.reshape(len(size), -1, together)
        size = np.where(np.isnan(groups).all(-1), np.nan, np.nan_to_num(groups, nan=-1.0).max(-1))
    table = np.array(color_table(), dtype=np.uint8)
    at = np.clip(np.sqrt(np.nan_to_num(size) / largest) * 255, 0, 255).astype(int)
    painted: NDArray[np.uint8] = table[at]
    painted[size == 0] = _bytes(ZERO)
    painted[np.isnan(size)] = _bytes(MASKED)
    return painted


def _bytes(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _role_axis(ax: Axes, view: MapView, named: bool) -> None:
    """A strip of colors by role below the keys and left of the queries, and the names of tokens that have room."""
    num_keys, num_rows = len(view.tokens), len(view.rows)
    colors = [ROLE_COLORS.get(token.part, GRAY) for token in view.tokens]
    below = [Rectangle((key - 0.5, -0.06), 1, 0.045) for key in range(num_keys)]
    beside = [Rectangle((-0.06, index - 0.5), 0.045, 1) for index in range(num_rows)]
    for strip, of, transform in (
        (below, colors, ax.get_xaxis_transform()),
        (beside, [colors[row] for row in view.rows], ax.get_yaxis_transform()),
    ):
        faces = [to_rgba(color, 0.35 if color == GRAY else 1) for color in of]
        drawn = PatchCollection(strip, facecolors=faces, linewidths=0, transform=transform, clip_on=False)
        ax.add_collection(drawn, autolim=False)
    ax.set_xticks([])
    ax.set_yticks([])
    if not named:
        ax.set_xlabel(" ", fontsize=4)  # keeps the room of the strip
        return
    if num_keys <= _NAMED:
        ax.set_xticks(range(num_keys), [token.name for token in view.tokens], rotation=90)
        for label, color in zip(ax.get_xticklabels(), colors, strict=True):
            label.set_color(color)
        ax.tick_params(axis="x", length=0, pad=17)
    if num_rows <= _NAMED:
        ax.set_yticks(range(num_rows), [f"{view.tokens[row].name} {row}" for row in view.rows])
        ax.tick_params(axis="y", length=0, pad=17)
    ax.set_xlabel(f"key (0 to {num_keys - 1})", labelpad=4 if num_keys <= _NAMED else 18)
    ax.set_ylabel("query", labelpad=4 if num_rows <= _NAMED else 18)


def _scale(largest: float) -> ScalarMappable:
    return ScalarMappable(PowerNorm(0.5, 0, largest), _colors())


def _ticks(largest: float) -> list[float]:
    return [largest * part for part in (0, 1 / 16, 1 / 4, 9 / 16, 1)]


def _number(value: float, _: int | None = None) -> str:
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.0e}"


def _legend(figure: Figure, views: Sequence[MapView], left_out: int) -> None:
    """What frames, grounds and strips mean; the numbers above the maps; what is not shown."""
    parts = {token.part for view in views for token in view.tokens}
    handles: list[Patch] = []
    if any(view.cells for view in views):
        handles.append(Patch(facecolor="none", edgecolor=SOURCE, linewidth=1.3, label="source of the row's answer"))
    handles += [
        Patch(facecolor=MASKED, label="comes later: not seen"),
        Patch(facecolor=ZERO, edgecolor=GRAY, linewidth=0.6, label="seen, weight zero"),
        *(
            Patch(facecolor=color, label=f"{ROLE_WORDS[part]} token")
            for part, color in ROLE_COLORS.items()
            if part in parts
        ),
    ]
    notes = ["numbers: share of the scored rows on their sources"] if any(view.cells for view in views) else []
    if any(len(view.rows) < len(view.tokens) for view in views):
        notes.append("some rows of the longer sequences")
    if left_out:
        notes.append(f"{left_out} more heads are not shown")
    figure.legend(
        handles=handles, loc="outside lower left", ncols=4, fontsize=9, handlelength=1.2, columnspacing=1.4,
        handler_map={Patch: HandlerPatch()}, title="; ".join(notes) or None, title_fontsize=9, alignment="left",
    )  # fmt: skip
