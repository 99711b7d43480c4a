"""The figure, the tables and the words of the page."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparsity_lab.analysis import (
    CHANCE,
    INK,
    TrainedRange,
    draw_level,
    draw_median,
    length_axis,
    looks_of,
    name_lines,
    note_below,
    styled,
)
from sparsity_lab.studies import Evidence, how_far, levels, panels, same_height

from .arms import FARTHEST, SHORTEST, TRAINED, K
from .claims import by_run
from .measure import FACTORS

__all__ = ["QUESTION", "figure", "finding", "tables"]

QUESTION = f"""
For each attention mechanism, a decoder of one layer without position encoding learns the parity of 1 to {K} marked
tokens among background, on lengths {SHORTEST} to {TRAINED}. Data and steps are the same for all. Each is tested on
k = {K} up to length {FARTHEST}. Which of them hold, and do the entropy, the planted mass and the norms of their
attention explain it? All measures are taken at the row that answers, and are means over the four heads.
"""

SCORES = ("softmax", "log-n softmax", "SSMax", "cosine log-n", "sigmoid")
OTHERS = ("LSSA", "LSSAR p=3", "LSSAR p=15", "linear, elu", "linear, norm-aware", "window of 32")
"""The two columns of the figure: softmax and what scales its scores, and the others."""
LOOKS = looks_of(SCORES, OTHERS)


def finding(evidence: Evidence) -> str:
    """How far each mechanism carries."""
    return f"Parity of {K}: {how_far({name: evidence.rows.filter(arm=name) for name in SCORES + OTHERS})}."


def figure(evidence: Evidence) -> Figure:
    """One row per measure for the runs that learned, followed by the numbers of those that did not."""
    everything = by_run(evidence)
    measured = everything.filter(pl.col("learned"))
    plain = measured.filter(pl.col("factor") == 1.0)
    swept = measured.filter(pl.col("length") == TRAINED).with_columns(pl.col("entropy_change").fill_null(0.0))
    # Where the dotted lines lie does not depend on what was learned.
    guides = everything.filter(pl.col("factor") == 1.0).unique("length").sort("length")
    rows = evidence.rows.filter(pl.col("learned"))
    with styled():
        drawn, axes = panels(8, height=2.5)
        for column, names in enumerate((SCORES, OTHERS)):
            accuracy, entropy, mass, norm = axes[column::2]
            levels(accuracy)
            accuracy.set_title(("softmax, scores scaled", "other mechanisms")[column], fontsize=10, pad=16)
            _draw(accuracy, rows, names, "length", "normalized_accuracy", "normalized accuracy")
            _guide(entropy, guides, lambda row: float(np.log(K / row["uniform"])), "uniform")
            _guide(entropy, guides, lambda row: float(np.log(K)), f"{K} sources alike")
            _draw(entropy, plain, names, "length", "entropy", "entropy (nats)")
            _guide(mass, guides, lambda row: row["uniform"], "uniform")
            _draw(mass, plain, names, "length", "mass", "mass on the planted tokens")
            for ax in (accuracy, entropy, mass):
                length_axis(ax, evidence.rows["length"], TrainedRange(SHORTEST, TRAINED), "length (log scale)")
            draw_level(norm, 0.0)
            _draw(norm, swept, names, "factor", "entropy_change", "change of entropy (nats)")
            norm.set_xscale("log")
            norm.xaxis.set_major_locator(FixedLocator(FACTORS))
            norm.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            norm.xaxis.set_minor_locator(NullLocator())
            norm.set_xlabel(f"query norms, times (log scale; at length {TRAINED})")
            note_below(norm, _not_learned(evidence, names), 44)
        for place in range(0, len(axes), 2):
            same_height(axes[place : place + 2])
            axes[place + 1].set_ylabel("")
    return drawn


def _draw(ax: Axes, rows: pl.DataFrame, names: Sequence[str], x: str, y: str, words: str) -> None:
    for arm in names:
        part = rows.filter(pl.col("arm") == arm).drop_nulls(y)
        if not part.is_empty():
            draw_median(ax, part, x, y, LOOKS[arm], arm)
    ax.set_ylabel(words)
    name_lines(ax, 18)


def _guide(ax: Axes, guides: pl.DataFrame, level: Callable[[dict[str, Any]], float], words: str) -> None:
    """A dotted line by length."""
    values = [level(row) for row in guides.iter_rows(named=True)]
    ax.plot(guides["length"], values, color=INK, linewidth=0.9, linestyle=CHANCE, zorder=1, label=words)


def _not_learned(evidence: Evidence, names: Sequence[str]) -> list[str]:
    """How many runs of an arm learned, if not all did."""
    lines = []
    for arm in names:
        by_seed = evidence.rows.filter(pl.col("arm") == arm).group_by("seed").agg(pl.col("learned").all())
        learned = by_seed.filter("learned").height
        if learned < by_seed.height:
            lines.append(f"{arm}: {learned} of {by_seed.height} learned" if learned else f"{arm}: never learned")
    return lines


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
