"""Attention maps as one HTML document that needs nothing but itself."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.analysis.attention.map_figure import MASKED, ROLE_COLORS, SOURCE, ZERO, color_table
from sparsity_lab.analysis.attention.map_view import Head, MapView
from sparsity_lab.analysis.report.page import document
from sparsity_lab.settings.markup import visible

_LEVELS = 32767

MAP_LOOKS = {
    "colors": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in color_table()],
    "masked": MASKED,
    "zero": ZERO,
    "source": SOURCE,
    "roles": ROLE_COLORS,
}
"""How the script in ``attention_map.js`` paints."""


def map_page(views: Sequence[MapView], head: Head, largest: float, finding: str, left_out: int) -> str:
    """The document: a block of maps for each view, drawn by a script from the numbers inside the page."""
    numbers = MAP_LOOKS | map_data(views, head, largest)
    return document("attention_map.html", title=finding, left_out=left_out, numbers=numbers)


def map_data(views: Sequence[MapView], head: Head, largest: float) -> dict[str, Any]:
    """What the script paints, without its looks; ``head`` is shown large."""
    return {"head": head, "largest": largest, "views": [_view_data(view) for view in views]}


def _view_data(view: MapView) -> dict[str, Any]:
    return {
        "name": view.name,
        "note": view.learned,
        "tokens": [visible(token.name) for token in view.tokens],
        "parts": [token.part for token in view.tokens],
        "rows": view.rows,
        "sources": view.cells,
        "maps": [
            {
                "layer": layer,
                "head": head,
                "mass": view.source_mass(layer, head),
                "shares": _packed(weights, view.rows),
            }
            for (layer, head), weights in sorted(view.weights.items())
        ],
    }


def _packed(weights: NDArray[np.float64], rows: Sequence[int]) -> str:
    """The cells that may be seen, row by row, as little-endian int16 in base64. Shares are in steps of 1/32767, where
    only zero is zero."""
    seen = np.nan_to_num(np.concatenate([own[: row + 1] for own, row in zip(weights, rows, strict=True)]))
    size = np.maximum(np.abs(seen) * _LEVELS, seen != 0)
    return base64.b64encode((np.sign(seen) * size.round()).astype("<i2").tobytes()).decode()
