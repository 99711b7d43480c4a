"""Attention maps as one HTML document that needs nothing but itself."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.analysis.attention.map_figure import MASKED, ROLE_COLORS, SOURCE, ZERO, color_table
from sparsity_lab.analysis.attention.map_view import MapView
from sparsity_lab.analysis.report.page import document

__all__ = ["map_page"]

_UNSEEN = -32768
_LEVELS = 32767


def map_page(views: Sequence[MapView], largest: float, finding: str, left_out: int) -> str:
    """The document: a block of maps for each view, drawn by a script from the numbers inside the page."""
    data = {
        "colors": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in color_table()],
        "masked": MASKED,
        "zero": ZERO,
        "source": SOURCE,
        "roles": ROLE_COLORS,
        "largest": largest,
        "views": [_view_data(view) for view in views],
    }
    return document("attention_map.html", finding=finding, left_out=left_out, numbers=data)


def _view_data(view: MapView) -> dict[str, Any]:
    return {
        "name": view.name,
        "note": view.learned,
        "tokens": [token.name for token in view.tokens],
        "parts": [token.part for token in view.tokens],
        "rows": view.rows,
        "sources": view.cells,
        "maps": [
            {"layer": layer, "head": head, "mass": view.source_mass(layer, head), "shares": _packed(weights)}
            for (layer, head), weights in sorted(view.weights.items())
        ],
    }


def _packed(weights: NDArray[np.float64]) -> str:
    """Little-endian int16 in base64: shares in steps of 1/32767, where only zero is zero; what is not seen is
    -32768."""
    size = np.maximum(np.abs(np.nan_to_num(weights)) * _LEVELS, weights != 0)
    numbers = np.where(np.isnan(weights), _UNSEEN, np.sign(np.nan_to_num(weights)) * size.round())
    return base64.b64encode(numbers.astype("<i2").tobytes()).decode()
