"""Panels of result pages draw what they say."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparsity_lab.analysis import looks_of
from sparsity_lab.studies import draw_by_length

# Normalized accuracy at lengths 8, 16 (trained) and 32 by seed; the last seed did not learn.
VALUES = {0: (1.0, 0.9, 0.2), 1: (0.9, 1.0, 0.8), 2: (1.0, 1.0, 0.7), 3: (0.1, 0.0, 0.95)}


def rows(copies: int = 1) -> pl.DataFrame:
    """So many seeds of each of these values."""
    return pl.DataFrame(
        {
            "seed": 4 * copy + seed,
            "length": length,
            "trained": length <= 16,
            "normalized_accuracy": value,
            "learned": seed < 3,
        }
        for copy in range(copies)
        for seed, values in VALUES.items()
        for length, value in zip((8, 16, 32), values, strict=True)
    )


def drawn(frame: pl.DataFrame, *, only_learned: bool) -> Axes:
    ax = Figure().subplots()
    draw_by_length(ax, {"a": frame}, looks_of(["a"]), only_learned=only_learned)
    return ax


def lines(ax: Axes, label: str) -> list[list[float]]:
    return [np.asarray(line.get_ydata()).tolist() for line in ax.lines if line.get_label() == label]


def test_medians_seeds_and_shading() -> None:
    """Of the seeds that learned alone, each a thin line, with the number of the others below."""
    ax = drawn(rows(), only_learned=True)
    assert lines(ax, "a") == [[1.0, 1.0, 0.7]]
    assert lines(ax, "_seed") == [list(VALUES[seed]) for seed in range(3)]
    assert [one for one in ax.collections if isinstance(one, PolyCollection)] == []
    assert [text.get_text() for text in ax.texts] == ["trained 8–16", "optimum", "chance", "a", "a: 3 of 4 learned"]
    (shaded,) = (one for one in ax.patches if isinstance(one, Rectangle))
    assert (shaded.get_x(), shaded.get_width()) == (8, 8)


def test_many_seeds_are_a_band() -> None:
    """From the smallest to the largest."""
    ax = drawn(rows(4), only_learned=True)
    assert lines(ax, "a") == [[1.0, 1.0, 0.7]]
    assert lines(ax, "_seed") == []
    (band,) = (one for one in ax.collections if isinstance(one, PolyCollection))
    corners = np.asarray(band.get_paths()[0].vertices)
    ends = [corners[corners[:, 0] == length, 1] for length in (8, 16, 32)]
    assert [(own.min(), own.max()) for own in ends] == [(0.9, 1.0), (0.9, 1.0), (0.2, 0.8)]


def test_all_seeds_on_request() -> None:
    ax = drawn(rows(), only_learned=False)
    assert lines(ax, "a") == [[0.95, 0.95, 0.75]]
    assert len(lines(ax, "_seed")) == 4
    assert ax.texts[-1].get_text() == "a"
