"""The figure, the tables and the words of the page."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparsity_lab.analysis import GRAY, INK, PALETTE, Look, TrainedRange, length_axis, styled
from sparsity_lab.studies import Evidence, line_style

from .arms import FARTHEST, SHORTEST, TRAINED, K
from .claims import by_run
from .measure import FACTORS

__all__ = ["QUESTION", "figure", "tables"]

QUESTION = f"""
One decoder of one layer for each attention mechanism, without position encoding, learns the parity of 1 to {K} marked
tokens among background on lengths {SHORTEST} to {TRAINED}, all with the same data and steps, and is tested on
k = {K} up to {FARTHEST}. Which of them hold, and what do entropy, planted mass and norms of their attention say about
it? All measures are those of the row that answers, and means over the four heads.
"""

# A color for each family, dash and mark for its members.
LOOKS = {
    "softmax": Look(PALETTE[0], "o", ""),
    "log-n softmax": Look(PALETTE[0], "s", (5, 1.5)),
    "SSMax": Look(PALETTE[0], "^", (1.5, 1.2)),
    "cosine log-n": Look(PALETTE[0], "D", (6, 1.5, 1.5, 1.5)),
    "LSSA": Look(PALETTE[1], "o", ""),
    "LSSAR p=3": Look(PALETTE[1], "s", (5, 1.5)),
    "LSSAR p=15": Look(PALETTE[1], "^", (1.5, 1.2)),
    "linear, elu": Look(PALETTE[2], "o", ""),
    "linear, norm-aware": Look(PALETTE[2], "s", (5, 1.5)),
    "sigmoid": Look(PALETTE[3], "o", ""),
    "window of 32": Look(PALETTE[4], "o", ""),
}


def figure(evidence: Evidence) -> Figure:
    """Four panels of the runs that learned; the legend names how many did not."""
    rows = evidence.rows.filter(pl.col("learned"))
    everything = by_run(evidence)
    measured = everything.filter(pl.col("learned"))
    plain = measured.filter(pl.col("factor") == 1.0)
    # Where the dotted lines lie does not depend on what was learned.
    guides = everything.filter(pl.col("factor") == 1.0)
    with styled():
        drawn = Figure(figsize=(10.5, 8.6), layout="constrained")
        (accuracy, entropy), (mass, norm) = drawn.subplots(2, 2)
        _draw(accuracy, rows, "length", "normalized_accuracy")
        accuracy.set_title("extrapolation", pad=16)
        accuracy.set_ylabel("normalized accuracy\n(0 = chance, 1 = Bayes)")
        for level in (0.0, 1.0):
            accuracy.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (1.5, 2)), zorder=1)
        _draw(entropy, plain, "length", "entropy")
        _guide(entropy, guides, lambda row: float(np.log(K / row["uniform"])), "uniform, ln n", va="bottom")
        _guide(entropy, guides, lambda row: float(np.log(K)), f"{K} sources alike, ln {K}")
        entropy.set_title("entropy", pad=16)
        entropy.set_ylabel("entropy H of the answer's row\n(nats, mean over heads)")
        _draw(mass, plain, "length", "mass")
        _guide(
            mass,
            guides,
            lambda row: row["uniform"],
            "uniform, k / n",
            at=guides["length"].unique().sort().to_list().index(TRAINED),
        )
        mass.set_title("mass on the planted tokens", pad=16)
        mass.set_ylabel("share of the answer's row\n(mean over heads)")
        mass.set_ylim(-0.03, 1.03)
        for ax in (accuracy, entropy, mass):
            length_axis(ax, evidence.rows["length"], TrainedRange(SHORTEST, TRAINED), "length (tokens, log scale)")
        swept = measured.filter(pl.col("length") == TRAINED)
        _draw(norm, swept.with_columns(pl.col("entropy_change").fill_null(0.0)), "factor", "entropy_change")
        norm.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
        norm.set_xscale("log")
        norm.xaxis.set_major_locator(FixedLocator(FACTORS))
        norm.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        norm.xaxis.set_minor_locator(NullLocator())
        norm.set_xlabel(f"query norms, times (log scale; at length {TRAINED})")
        norm.set_title("norm sensitivity", pad=16)
        norm.set_ylabel("change of entropy\n(nats, mean over heads)")
        drawn.legend(handles=_legend(evidence), loc="outside lower left", ncols=3, handlelength=3.2)
    return drawn


def _draw(ax: Axes, rows: pl.DataFrame, x: str, y: str) -> None:
    """Median over seeds of each arm, with a bar from the smallest to the largest."""
    for arm, style in LOOKS.items():
        part = rows.filter(pl.col("arm") == arm).drop_nulls(y)
        if part.is_empty():
            continue
        each = part.group_by(x).agg(
            pl.col(y).median().alias("middle"), pl.col(y).min().alias("low"), pl.col(y).max().alias("high")
        )
        each = each.sort(x)
        ax.vlines(each[x], each["low"], each["high"], color=style.color, linewidth=1.0, alpha=0.35, zorder=2)
        ax.plot(each[x], each["middle"], **line_style(style) | {"linewidth": 1.5, "markersize": 4.5}, zorder=3)


def _guide(
    ax: Axes,
    rows: pl.DataFrame,
    level: Callable[[dict[str, Any]], float],
    words: str,
    *,
    at: int = -1,
    va: str = "top",
) -> None:
    """A dotted line by length, named left of its point number ``at``."""
    by_length = rows.unique("length").sort("length")
    values = [level(row) for row in by_length.iter_rows(named=True)]
    ax.plot(by_length["length"], values, color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)), zorder=1)
    shift = (0, -4) if va == "top" else (0, 4)
    place = (by_length["length"][at], values[at])
    ax.annotate(words, place, xytext=shift, textcoords="offset points", ha="right", va=va, fontsize=8.5)


def _legend(evidence: Evidence) -> list[Line2D]:
    handles = []
    for arm, style in LOOKS.items():
        by_seed = evidence.rows.filter(pl.col("arm") == arm).group_by("seed").agg(pl.col("learned").all())
        if by_seed.height:
            learned = by_seed.filter("learned").height
            words = f"{learned} of {by_seed.height} learned" if learned else "never learned, not drawn"
            handles.append(Line2D([], [], **line_style(style), label=f"{arm} ({words})"))
    words = "median and range of what learned"
    handles.append(Line2D([], [], color=GRAY, linewidth=1.0, label=words))
    return handles


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Means over the runs that learned, and below them over those that did not: the two are never one mean."""
    plain = (
        by_run(evidence).filter(pl.col("factor") == 1.0).sort(pl.col("learned"), descending=True, maintain_order=True)
    )
    runs = pl.struct("arm", "learned")
    number = pl.col("run").n_unique().over(runs)
    marked = plain.with_columns(
        pl.when("learned")
        .then(pl.format("{} ({} learned)", "arm", number))
        .otherwise(pl.format("{} ({} that did not learn)", "arm", number))
        .alias("arm")
    )
    made = {}
    words = {"entropy": "Entropy (nats)", "mass": "Mass on the planted tokens"}
    for column, title in words.items():
        means = marked.group_by("arm", "length", maintain_order=True).agg(pl.col(column).mean())
        made[f"{title}, mean over runs, by length"] = means.pivot("length", index="arm", values=column)
    at = marked.filter(pl.col("length") == TRAINED)
    slope, norm = pl.col("query_slope"), pl.col("query_norm")
    each = [slope.mean().alias("dH / d ln r"), slope.min().alias("smallest"), slope.max().alias("largest")]
    title = f"How entropy follows the query norm r at length {TRAINED}, and the norm (means over heads)"
    each += [norm.mean().alias("r")]
    made[title] = at.group_by("arm", maintain_order=True).agg(each)
    return made
