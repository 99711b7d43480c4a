"""The figure, the tables and the words of the page."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from sparsity_lab.analysis import GRAY, INK, Look, Replicates, length_axis, mean_interval, styled
from sparsity_lab.studies import Evidence, draw_interval, line_style, looks_of, panels

from .arms import NAMES, TRAINED, gated
from .claims import entropies, losses
from .measure import AWARE

__all__ = ["QUESTION", "figure", "tables"]

QUESTION = """
In linear attention the norm of a query hardly matters, so it cannot sharpen what it looks at. The norm-aware maps
take the query's direction to a power that follows its norm. Small decoders learn text byte by byte, with the same
data and steps: norm-aware (cosine and polarity), linear (elu and relu), softmax, and a hybrid with softmax in the
last layer and cosine before it; each with and without a SiLU gate on the attention's output. How spiky are they, how
good, and how fast?
"""


def figure(evidence: Evidence) -> Figure:
    looks = looks_of(NAMES)
    with styled():
        drawn, (loss, entropy, norms, time) = panels(4, columns=2, width=4.6, height=3.0)
        _draw_arms(loss, looks, lambda arm: losses(evidence, arm))
        loss.set_title(f"loss at length {TRAINED}", fontsize=10)
        loss.set_ylabel("nats a byte")
        _draw_arms(entropy, looks, lambda arm: entropies(evidence, arm))
        entropy.set_title("entropy of attention, mean over rows", fontsize=10)
        entropy.set_ylabel("nats")
        _draw_norms(norms, looks, evidence)
        _draw_times(time, looks, evidence)
        handles = [
            Line2D([], [], linestyle="", marker="o", color=INK, label="without gate (left), 95 % interval"),
            Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor="none", label="with gate (right)"),
            *(Line2D([], [], **line_style(one), label=name) for name, one in looks.items()),
        ]
        drawn.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=9)
    return drawn


def _places(ax: Axes) -> None:
    ax.set_xticks(range(len(NAMES)), NAMES)
    ax.set_xlim(-0.6, len(NAMES) - 0.4)


def _draw_arms(ax: Axes, looks: Mapping[str, Look], read: Callable[[str], Replicates]) -> None:
    """Mean and interval of each arm, filled without the gate and hollow with it."""
    for place, name in enumerate(NAMES):
        for arm, shift, more in ((name, -0.15, {}), (gated(name), 0.15, {"markerfacecolor": "none"})):
            draw_interval(ax, place + shift, mean_interval(list(read(arm).values())), looks[name], **more)
    _places(ax)


def _draw_norms(ax: Axes, looks: Mapping[str, Look], evidence: Evidence) -> None:
    """The range of query norms of each kernel, before training and after, over all seeds and layers."""
    rows = evidence.measured.filter(pl.col("what") == "norms")
    for place, name in enumerate(NAMES):
        for stage, shift, alpha in (("initial", -0.15, 0.45), ("trained", 0.15, 1.0)):
            own = rows.filter((pl.col("arm") == name) & (pl.col("stage") == stage))
            style: dict[str, Any] = {"color": looks[name].color, "alpha": alpha}
            ax.vlines([place + shift] * own.height, own["r_5"], own["r_95"], linewidth=1.4, **style)
            ax.plot([place + shift] * own.height, own["r_50"], linestyle="", marker=looks[name].marker, **style)
    ax.axhline(AWARE, color=GRAY, linewidth=0.9, linestyle=(0, (5, 2)), zorder=0)
    words = f"the power is constant above {AWARE:g}"
    ax.annotate(words, (-0.55, AWARE), xytext=(0, -4), textcoords="offset points", va="top", fontsize=8)
    ax.set_ylim(bottom=0)
    ax.set_title("query norms, before (pale) and after training", fontsize=10)
    ax.set_ylabel("5th to 95th percentile by layer")
    _places(ax)


def _draw_times(ax: Axes, looks: Mapping[str, Look], evidence: Evidence) -> None:
    rows = evidence.measured.filter(pl.col("what") == "time")
    for name in NAMES:
        own = rows.filter(pl.col("arm") == name).group_by("length").agg(pl.col("speed").median()).sort("length")
        ax.plot(own["length"], own["speed"], **line_style(looks[name]))
    ax.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)), zorder=1)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    length_axis(ax, rows["length"], None, "length (bytes, log scale)")
    ax.set_title("speed of a forward pass", fontsize=10)
    ax.set_ylabel("times as fast as softmax (log scale)")


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    found = evidence.measured
    attention = found.filter(pl.col("what") == "attention").group_by("arm", "layer", maintain_order=True)
    columns = {"entropy": "H (nats)", "query_slope": "dH / d ln r", "query_norm": "r", "key_norm": "key norm"}
    by_layer = attention.agg(pl.col(column).mean().alias(words) for column, words in columns.items())
    keys = ["arm", "stage"]
    norms = found.filter(pl.col("what") == "norms").group_by(keys, maintain_order=True)
    ranges = {"r_5": "5 %", "r_50": "50 %", "r_95": "95 %", "aware": f"share below {AWARE:g}"}
    of_norms = norms.agg(pl.col(column).mean().alias(words) for column, words in ranges.items())
    rescaled = found.filter(pl.col("what") == "rescaled").group_by("arm", "factor", maintain_order=True)
    swept = rescaled.agg(pl.col("entropy").mean()).pivot("factor", index="arm", values="entropy")
    times = found.filter(pl.col("what") == "time").group_by("arm", "length", maintain_order=True)
    speeds = times.agg(pl.col("speed").median()).pivot("length", index="arm", values="speed")
    return {
        f"Entropy, its slope and norms at length {TRAINED}, means over seeds and heads": by_layer,
        "Quantiles of the query norms r, means over seeds and layers": of_norms,
        "Entropy (nats) with all query norms of a layer times a factor, means over seeds, heads and layers": swept,
        "Speed of a forward pass by length: times as fast as under softmax, medians over seeds": speeds,
    }
