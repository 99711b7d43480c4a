"""``MapView``: the weights of some heads over one sequence, and what they mean for its sources; its figure, and what
the page of maps paints."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerPatch
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from sparsity_lab.analysis.findings import titled
from sparsity_lab.analysis.style import GRAY, INK, new_axes, styled
from sparsity_lab.generators.token_view import TokenView
from sparsity_lab.settings.markup import visible

SOURCE = "#d55e00"
MASKED = "#d9dce2"
ZERO = "#ffffff"
ROLE_COLORS = {"planted": SOURCE, "answer": "#009e73", "query": "#0072b2", "cue": "#c4689a", "special": "#4b515b"}
"""Of the parts that tokens play, as in ``generators.token_view``; all others are gray."""
ROLE_WORDS = {"planted": "source", "answer": "answer", "query": "query", "cue": "cue", "special": "special"}

_NAMED = 32
"""Names that have room on an axis. Of a longer sequence only tokens that play a part are named."""
_LONGEST_NAME = 12
_BESIDE = 4
"""Small maps in a line."""
_COLUMNS = 384
"""Cells of a row in a picture, at most: of more keys each cell shows the largest share of several."""
_LEVELS = 32767
"""Steps of a share in a page."""


Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True, eq=False)
class MapView:
    """One sequence read by one model.

    Attributes:
        arm, length: whose, and how long.
        name: both in words, as in "at length 24 (trained)".
        learned: what is to be said of a run that did not learn; else "".
        tokens: of the sequence.
        rows: positions of the queries that are shown, ascending.
        sources: of each scored row that is shown, the positions that enter the rule.
        weights: (R, T) for each layer and head: shares of a row's absolute weight, with the sign of the weight; NaN
            where the row may not see the key.
    """

    arm: str
    length: int
    name: str
    learned: str
    tokens: tuple[TokenView, ...]
    rows: tuple[int, ...]
    sources: Mapping[int, tuple[int, ...]]
    weights: Mapping[Head, NDArray[np.float64]]

    @property
    def heads(self) -> list[Head]:
        """Layer and head of each map, ascending."""
        return sorted(self.weights)

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(index of the row among those shown, key) of every source of a scored row."""
        return [(index, key) for index, row in enumerate(self.rows) for key in self.sources.get(row, ())]

    def source_mass(self, layer: int, head: int) -> float | None:
        """The mean share of the scored rows shown that is on their sources; None without sources."""
        weights = np.abs(self.weights[layer, head])
        masses = [
            float(weights[index, list(own)].sum())
            for index, row in enumerate(self.rows)
            if (own := self.sources.get(row, ()))
        ]
        return float(np.mean(masses)) if masses else None

    @property
    def uniform(self) -> float | None:
        """What uniform attention would put on the sources: the mean of k / n over the same rows."""
        shares = [len(own) / (row + 1) for row in self.rows if (own := self.sources.get(row, ()))]
        return float(np.mean(shares)) if shares else None

    def interest(self, layer: int, head: int) -> float:
        """How much there is to see: the mass on the sources, or else the mean largest share of a row."""
        mass = self.source_mass(layer, head)
        return float(np.nanmax(np.abs(self.weights[layer, head]), axis=1).mean()) if mass is None else mass

    def frame(self) -> pl.DataFrame:
        """One row per cell that may be seen; see ``AttentionMap.frame``."""
        parts, sources = [], set(self.cells)
        names = [token.name for token in self.tokens]
        for (layer, head), weights in self.weights.items():
            index, key = np.nonzero(~np.isnan(weights))
            row = np.array(self.rows)[index]
            places = {"layer": layer, "head": head, "row": row, "key": key}
            words = {"query": [names[place] for place in row], "token": [names[place] for place in key]}
            source = [cell in sources for cell in zip(index.tolist(), key.tolist(), strict=True)]
            found = {"share": weights[index, key], "distance": row - key, "source": source}
            columns = {"arm": self.arm, "length": self.length} | places | words | found
            whole = dict.fromkeys(("length", *places, "distance"), pl.Int64)
            parts.append(pl.DataFrame(columns, schema_overrides=whole))
        return pl.concat(parts)


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
            ax.set_title(_title(view, head), fontsize=10, loc="left")
            _scale(ax.figure, largest, "share of a row (root scale)", 10, ax=ax)
    return ax


def map_figure(views: Sequence[MapView], head: Head, largest: float, finding: str, left_out: int) -> Figure:
    """A block for each view, two side by side: the map of one head with the names of tokens, and below it small maps
    of all heads, layer by layer."""
    columns = min(2, len(views))
    blocks = math.ceil(len(views) / columns)
    lines = max(len(_lines(view)) for view in views)
    width = 7.4 if columns > 1 else 5.4
    with styled():
        figure = Figure(figsize=(width, blocks * (4.3 + 1.3 * lines) + 1.4), layout="constrained")
        grid = figure.add_gridspec(blocks + 1, columns, height_ratios=[1.0] * blocks + [0.02])
        for place, view in enumerate(views):
            _draw_block(figure, grid[divmod(place, columns)], view, head, lines, largest)
        cax = figure.add_subplot(grid[blocks, 0])
        _scale(figure, largest, "share of a row's weight (root scale)", 9, cax=cax, orientation="horizontal")
        _legend(figure, views, left_out)
    return titled(figure, finding)


def _scale(figure: Any, largest: float, words: str, size: int, **place: Any) -> None:
    def written(value: float, _: int | None = None) -> str:
        return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.0e}"

    ticks = [largest * part for part in (0, 1 / 16, 1 / 4, 9 / 16, 1)]
    shares = ScalarMappable(PowerNorm(0.5, 0, largest), _colors())
    bar = figure.colorbar(shares, ticks=ticks, format=written, **place)
    bar.set_label(words, fontsize=size)
    bar.outline.set_visible(False)


def _lines(view: MapView) -> list[list[Head]]:
    """The heads of each line of small maps: those of one layer, at most so many; none if there is one head alone."""
    if len(view.heads) == 1:
        return []
    lines = []
    for _, own in groupby(view.heads, itemgetter(0)):
        heads = list(own)
        lines += [heads[start : start + _BESIDE] for start in range(0, len(heads), _BESIDE)]
    return lines


def _draw_block(figure: Figure, place: Any, view: MapView, head: Head, lines: int, largest: float) -> None:
    block = place.subgridspec(1 + lines, _BESIDE, height_ratios=[3.2] + [1.0] * lines)
    ax = figure.add_subplot(block[0, :])
    draw_map(ax, view, head, largest)
    ax.set_title(_title(view, head), fontsize=10, fontweight="normal", loc="left")
    for line, heads in enumerate(_lines(view)):
        for column, one in enumerate(heads):
            small = figure.add_subplot(block[1 + line, column])
            draw_map(small, view, one, largest, named=False)
            mass = view.source_mass(*one)
            words = f"head {one[1]}" + ("" if mass is None else f"\n{mass:.2f}")
            small.set_title(words, fontsize=9, fontweight="normal", pad=3)
            if column == 0:
                small.set_ylabel(f"layer {one[0]}", fontsize=9, labelpad=8)


def _title(view: MapView, head: Head) -> str:
    mass = view.source_mass(*head)
    return f"{view.name}\nlayer {head[0]}, head {head[1]}" + ("" if mass is None else f": {mass:.2f} on the sources")


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
    painted[size == 0] = list(bytes.fromhex(ZERO[1:]))
    painted[np.isnan(size)] = list(bytes.fromhex(MASKED[1:]))
    return painted


def _role_axis(ax: Axes, view: MapView, named: bool) -> None:
    """A strip of colors by role below the keys and left of the queries, and the names of tokens that have room."""
    parts = [token.part for token in view.tokens]
    for places, transform, corner in (
        (range(len(parts)), ax.get_xaxis_transform(), lambda at: ((at - 0.5, -0.06), 1, 0.045)),
        (view.rows, ax.get_yaxis_transform(), lambda at: ((-0.06, at - 0.5), 0.045, 1)),
    ):
        strip = [Rectangle(*corner(at)) for at in range(len(places))]
        faces = [
            to_rgba(ROLE_COLORS.get(parts[place], GRAY), 1 if parts[place] in ROLE_COLORS else 0.35)
            for place in places
        ]
        drawn = PatchCollection(strip, facecolors=faces, linewidths=0, transform=transform, clip_on=False)
        ax.add_collection(drawn, autolim=False)
    ax.set_xticks([])
    ax.set_yticks([])
    if not named:
        ax.set_xlabel(" ", fontsize=4)  # keeps the room of the strip
        return
    for axis, shown, turned in ((ax.xaxis, range(len(parts)), 90), (ax.yaxis, view.rows, 0)):
        at = _named(view, shown)
        axis.set_ticks(at, [_name(view, shown[index]) for index in at], rotation=turned)
        for label, index in zip(axis.get_ticklabels(), at, strict=True):
            label.set_color(ROLE_COLORS.get(parts[shown[index]], INK))
    ax.tick_params(length=0, pad=17)
    ax.set_xlabel("key and its position")
    ax.set_ylabel("query and its position")


def _name(view: MapView, place: int) -> str:
    name = view.tokens[place].name
    return f"{name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + '…'} {place}"


def _named(view: MapView, shown: Sequence[int]) -> list[int]:
    """The places along an axis at which a token is named. If there is no room for all, only tokens with a role are
    named, in the order of ``ROLE_COLORS``. A name that would overlap an earlier one is left out."""
    gap = len(shown) / _NAMED
    parts = [*ROLE_COLORS, *({} if gap > 1 else {token.part: None for token in view.tokens})]
    found: list[int] = []
    for part in parts:
        for index, place in enumerate(shown):
            if view.tokens[place].part == part and all(abs(index - other) >= gap for other in found):
                found.append(index)
    return sorted(found)


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


MAP_LOOKS = {
    "colors": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in color_table()],
    "masked": MASKED,
    "zero": ZERO,
    "source": SOURCE,
    "roles": ROLE_COLORS,
}
"""How the script in ``attention_map.js`` paints."""


def map_data(views: Sequence[MapView], head: Head, largest: float) -> dict[str, Any]:
    """What the script paints, without its looks; ``head`` is shown large."""
    return {
        "head": head,
        "largest": largest,
        "views": [
            {
                "name": view.name,
                "note": view.learned,
                "tokens": [visible(token.name) for token in view.tokens],
                "parts": [token.part for token in view.tokens],
                "rows": view.rows,
                "sources": view.cells,
                "maps": [
                    {"layer": at[0], "head": at[1], "mass": view.source_mass(*at), "shares": _packed(view, at)}
                    for at in view.heads
                ],
            }
            for view in views
        ],
    }


def _packed(view: MapView, head: Head) -> str:
    """The cells that may be seen, row by row, as little-endian int16 in base64. Shares are in steps of 1/32767, where
    only zero is zero."""
    rows = zip(view.weights[head], view.rows, strict=True)
    seen = np.nan_to_num(np.concatenate([own[: row + 1] for own, row in rows]))
    size = np.maximum(np.abs(seen) * _LEVELS, seen != 0)
    return base64.b64encode((np.sign(seen) * size.round()).astype("<i2").tobytes()).decode()
