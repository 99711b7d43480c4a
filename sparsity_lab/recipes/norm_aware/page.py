"""The figure, the tables and the words of the page."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from sparsity_lab.analysis import mean_interval
from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.analysis.style import GRAY, INK, Look, styled
from sparsity_lab.recipes.norm_aware.arms import NAMES, TRAINED, gated
from sparsity_lab.recipes.norm_aware.claims import Values, entropies, losses
from sparsity_lab.recipes.norm_aware.measure import AWARE
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.figures import draw_interval, line_style, looks_of, panels

__all__ = ["NOTES", "QUESTION", "figure", "tables"]

QUESTION = """
In linear attention the norm of a query hardly matters, so it cannot sharpen what it looks at. The norm-aware maps
take the query's direction to a power that follows its norm. Small decoders learn text byte by byte, with the same
data and steps: norm-aware (cosine and polarity), linear (elu and relu), softmax, and a hybrid with softmax in the
last layer and cosine before it; each with and without a SiLU gate on the attention's output. How spiky are they, how
good, and how fast?
"""

NOTES = f"""
- **Calibration** (seed 100, 8 x {TRAINED} bytes a step, 250 steps, 64 sequences, not part of the result). Loss at
  {TRAINED} at rates of 3e-3 and 6e-3: cosine 2.49 and 2.45, elu 2.57 and 2.54; softmax 2.23 at 6e-3. All arms have
  6e-3, the better of the two wherever both were tried; neither was higher tried, nor a rate for each arm.
  AssociativeRecall with three pairs was tried as a second task and dropped: after 500 steps neither softmax nor
  cosine did better than guessing among the sequence's values.
- **Equal size.** Arms without the gate have the same number of weights; so have arms with it, which have one more
  matrix of d x d in each layer, 6 % of all weights here. What the gate is worth includes them.
- **Text has no known optimum**, so "learned" means a loss below that of the law of single bytes.
- **Rotation.** RoPE turns queries and keys before the feature map, so that weights stay positive and entropy is
  that of the weights themselves; the norm of a query does not change.
- **Clocks.** Times are ratios to the same weights under softmax, taken in turn in one process on one thread of a
  machine with other load. The two arms of softmax are compared with themselves, which shows the noise of the measure:
  the ratios of their runs lie between 0.97 and 1.08 from 512 bytes on, but between 0.17 and 1.58 at 128, where a pass
  takes milliseconds and one disturbance falls on many pairs. So the speeds at 128, in the claim's means, the figure
  and the table, say nothing, and no claim rests on them; "faster" is about 8192 bytes, where the noise is 2 % and
  the effect fourfold. From which length on cosine is faster, somewhere between 512 and 2048, was not measured.
- **Seen after the runs.** The norm-aware maps were norm-blind where they were measured: query norms lie above 3 in
  heads of this size before training already, and training makes them longer; the power is constant there. What
  makes cosine spikier than elu is then the power as such, not that it follows the norm, while elu, whose features
  are not powers, follows the norm a little. With the same weights and much shorter queries (the table of rescaled
  queries) cosine does get flatter, by a small part of what softmax does. The gate takes more off the loss of elu
  than off that of cosine, so that little of the advantage is left with it. Other values of the power's constants,
  or a scale on the queries, were not trained.
- **Not decided** is mostly what is small: cosine against relu, against polarity, and against elu with the gate
  differ by 0.03 nats or less, which three seeds cannot tell from their own spread. The gate under cosine (0.06) and
  half of the entropy gap (0.47 of it) are near enough to their bounds for more seeds to decide; none were run.
- **What it cannot say.** Two layers of width 64, heads of 16, 300 steps: a causal decoder on bytes, long before it
  has learned all it could. The released models are for images.
- **Full size** (60 runs, 8 layers of width 384, 20 000 steps of 64 x {TRAINED} bytes): estimated at 20 hours on one
  GPU. It has not been run.
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


def _draw_arms(ax: Axes, looks: Mapping[str, Look], read: Callable[[str], Values]) -> None:
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
