"""The figure, the tables and the words of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparsity_lab.analysis import GRAY, PALETTE, draw_cells, ink_on, styled
from sparsity_lab.studies import Evidence

from .arms import FAR, FARTHEST, SHORTEST, TRAINED, K
from .claims import by_run
from .measure import COSTED

__all__ = ["QUESTION", "figure", "finding", "ranking", "tables"]

QUESTION = f"""
Decoders of two layers without positions learn the parity of 1 to {K} marked tokens among background, on lengths
{SHORTEST} to {TRAINED}. Data and steps are the same for all. They differ only in their attention mechanism, and one
of them also in its learning rate. They are tested on k = {K} up to length {FARTHEST}. What does each learn, how far
does it hold, and what does a training step cost compared with softmax?
"""


_MANY = 4
"""So many kernels are not listed in a title."""


def finding(evidence: Evidence) -> str:
    """The kernels whose median reach is largest, softmax, and those with the smallest."""
    runs = by_run(evidence).filter("learned").group_by("arm", maintain_order=True)
    reach = runs.agg(pl.col("reach").median()).sort("reach", descending=True, maintain_order=True)
    ends = pl.col("reach").is_in([reach["reach"].max(), reach["reach"].min()]) | (pl.col("arm") == "Softmax")
    words = []
    for own in reach.filter(ends).partition_by("reach", maintain_order=True):
        at_least = "at least " * (own["reach"][0] == FARTHEST)
        names = sorted(own["arm"], key=lambda arm: arm != "Softmax")
        listed = ", ".join(names) if len(names) < _MANY else f"{names[0]} and {len(names) - 1} others"
        words.append(f"{listed} {at_least}{own['reach'][0]:g}")
    return f"Median reach after training on {SHORTEST} to {TRAINED} tokens: {'; '.join(words)}."


def figure(evidence: Evidence) -> Figure:
    """A line for each kernel, the best on top: quality by length, and cost."""
    order = ranking(evidence)
    with styled():
        drawn = Figure(figsize=(7.4, 0.3 * len(order) + 1.7), layout="constrained")
        accuracy, speed, memory = drawn.subplots(1, 3, sharey=True, width_ratios=(2.4, 1, 1))
        _draw_accuracy(accuracy, evidence, order)
        _draw_cost(speed, evidence, order, "speed", (0.125, 0.5, 1, 2, 8))
        speed.set_title("tokens a second", fontsize=10)
        _draw_cost(memory, evidence, order, "memory", (1, 1.5, 2))
        memory.set_title("peak memory", fontsize=10)
        drawn.legend(*memory.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=9)
        accuracy.set_yticks(range(len(order)), order)
        accuracy.set_ylim(len(order) - 0.5, -0.5)
    return drawn


def ranking(evidence: Evidence) -> list[str]:
    """The kernels, first those whose mean normalized accuracy over all lengths is largest."""
    means = evidence.rows.group_by("arm", maintain_order=True).agg(pl.col("normalized_accuracy").mean())
    return means.sort("normalized_accuracy", descending=True, maintain_order=True)["arm"].to_list()


def _draw_accuracy(ax: Axes, evidence: Evidence, order: list[str]) -> None:
    """A cell for each kernel and length, means over seeds."""
    lengths = evidence.rows["length"].unique().sort().to_list()
    means = evidence.rows.group_by("arm", "length").agg(pl.col("normalized_accuracy").mean())
    found = {(arm, length): value for arm, length, value in means.iter_rows()}
    values = np.array([[found.get((arm, length), np.nan) for length in lengths] for arm in order])
    draw_cells(ax, values.clip(0, 1), vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        color = ink_on(colormaps["Blues"](value))
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    trained = sum(length <= TRAINED for length in lengths)
    ax.axvline(trained - 0.5, color="white", linewidth=2)
    ax.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    ax.set_xlabel("length (left of the line: trained)")
    ax.set_title(f"normalized accuracy, k={K}, mean", fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _draw_cost(ax: Axes, evidence: Evidence, order: list[str], column: str, ticks: Sequence[float]) -> None:
    """A dot for each kernel and length of a training step, mean over seeds."""
    for index, length in enumerate(COSTED):
        means = dict(
            evidence.measured.filter(pl.col("length") == length)
            .group_by("arm")
            .agg(pl.col(column).mean())
            .iter_rows()
        )
        places = [place for place, arm in enumerate(order) if arm in means]
        style: dict[str, Any] = {"color": PALETTE[index], "marker": "os"[index], "linestyle": "", "markersize": 4}
        words = f"a training step at {length} tokens"
        ax.plot([means[order[place]] for place in places], places, label=words, **style)
    ax.axvline(1, color=GRAY, linewidth=0.9, zorder=0)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("times softmax\n(log scale)")
    ax.grid(axis="y", linewidth=0.4, color=GRAY, alpha=0.4)


def tables(evidence: Evidence) -> Mapping[str, pl.DataFrame]:
    reaches = (
        by_run(evidence)
        .group_by("arm", maintain_order=True)
        .agg(
            pl.col("learned").sum().alias("learned"),
            pl.when(pl.col("censored"))
            .then(pl.format("≥ {}", "reach"))
            .otherwise(pl.col("reach").cast(pl.String))
            .drop_nulls()
            .str.join(", ")
            .alias("reach by seed"),
            pl.col("at_trained").mean().alias(f"at {TRAINED}"),
            pl.col("at_far").mean().alias(f"at {FAR}"),
        )
    )
    costs = evidence.measured.group_by("arm", maintain_order=True).agg(
        pl.col("kernel").first().alias("as"),
        pl.col("parameters").first().alias("weights"),
        *(
            pl.col(column).filter(pl.col("length") == length).mean().alias(f"{words} at {length}")
            for column, words in (("speed", "speed"), ("peak_mib", "peak MiB"))
            for length in COSTED
        ),
    )
    return {
        f"Reach, and normalized accuracy at k={K}, means over seeds": reaches,
        "Cost of a training step: tokens a second over softmax's, and the most memory of tensors at one time": costs,
    }
