"""Panels of result pages draw what they say."""

import numpy as np
import polars as pl
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparsity_lab.studies.figures import BAND, draw_by_length, looks_of

# Normalized accuracy at lengths 8, 16 (trained) and 32 by seed; the last seed did not learn.
VALUES = {0: (1.0, 0.9, 0.2), 1: (0.9, 1.0, 0.8), 2: (1.0, 1.0, 0.7), 3: (0.1, 0.0, 0.95)}
ROWS = pl.DataFrame(
    {"seed": seed, "length": length, "trained": length <= 16, "normalized_accuracy": value, "learned": seed < 3}
    for seed, values in VALUES.items()
    for length, value in zip((8, 16, 32), values, strict=True)
)


def drawn(*, only_learned: bool) -> tuple[list[float], list[tuple[float, float]], list[str], Rectangle]:
    """Medians, band and words of a panel, and its shading."""
    ax = Figure().subplots()
    draw_by_length(ax, {"a": ROWS}, looks_of(["a"]), only_learned=only_learned)
    (band,) = (one for one in ax.collections if isinstance(one, PolyCollection))
    corners = np.asarray(band.get_paths()[0].vertices)
    ends = [corners[corners[:, 0] == length, 1] for length in (8, 16, 32)]
    (shaded,) = (one for one in ax.patches if isinstance(one, Rectangle))
    line = next(line for line in ax.lines if len(np.asarray(line.get_xdata())) == 3)
    medians = np.asarray(line.get_ydata()).tolist()
    return medians, [(own.min(), own.max()) for own in ends], [text.get_text() for text in ax.texts], shaded


def test_line_band_and_shading() -> None:
    """The band is from the smallest to the largest, as its legend says, and of the seeds that learned alone."""
    medians, band, words, shaded = drawn(only_learned=True)
    assert medians == [1.0, 1.0, 0.7]
    assert band == [(0.9, 1.0), (0.9, 1.0), (0.2, 0.8)]
    assert words == ["a: 3 of 4 learned"]
    assert (shaded.get_x(), shaded.get_width()) == (8, 8)
    assert BAND == "line: median over the seeds that learned; band: smallest to largest"


def test_all_seeds_on_request() -> None:
    medians, band, words, _ = drawn(only_learned=False)
    assert medians == [0.95, 0.95, 0.75]
    assert band == [(0.1, 1.0), (0.0, 1.0), (0.2, 0.95)]
    assert words == []
