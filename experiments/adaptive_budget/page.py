"""Figure, tables and words of the page."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsity_lab.analysis import (
    GRAY,
    INK,
    PALETTE,
    Look,
    TrainedRange,
    draw_level,
    draw_median,
    length_axis,
    name_lines,
    styled,
)
from sparsity_lab.studies import Evidence, means_by, panels

from .arms import CHOICES, DENSE, KEYS, LENGTHS, RANDOM, SELECTED, WINDOW
from .claims import ALLOWED
from .measure import TIMED, TIMED_LENGTH

__all__ = ["QUESTION", "figure", "finding", "tables"]

QUESTION = f"""
Small decoders learn on at most 32 tokens to recall what followed a mark that occurs once, anywhere before. Their
first layer sees 16 tokens. Their second layer sees everything, without positions, so it also finds the mark in
sequences that are 64 and 128 times as long. There the second layer is switched, without further training, to the
blocks of keys whose summaries score best, at most {KEYS} keys a row. Blocks drawn at random and a window, with the
same number of keys, show what selection adds. The time of a call is compared with that of dense attention.
"""

LOOKS = {
    DENSE: Look(INK, "D", (3, 2)),
    SELECTED: Look(PALETTE[0], "o", ""),
    RANDOM: Look(PALETTE[1], "s", (6, 1.5, 1.5, 1.5)),
    WINDOW: Look(PALETTE[2], "^", (5, 1.5)),
}
BY_LENGTH = ({"color": INK, "marker": "o"}, {"color": GRAY, "marker": "s"})
BY_CHOICE = ({"color": PALETTE[0], "marker": "o"}, {"color": PALETTE[3], "marker": "s"})


def finding(evidence: Evidence) -> str:
    """Recall of each choice of keys, and the time of the selection."""
    far, times = evidence.measured.filter(what="recall", length=LENGTHS[0]), evidence.measured.filter(what="time")
    few = [choice for choice in CHOICES if choice != DENSE]
    return (
        f"Recall at {LENGTHS[0]} tokens: {means_by(far, 'choice', [DENSE], 'accuracy')}; with {KEYS} keys a row "
        f"{means_by(far, 'choice', few, 'accuracy')}. "
        f"Time at {TIMED_LENGTH} over dense: {means_by(times, 'choice', [SELECTED], 'ratio')}."
    )


def figure(evidence: Evidence) -> Figure:
    """Recall by length, what selection loses in each seed, and its time next to that of dense attention."""
    with styled():
        drawn, axes = panels(3, height=2.9)
        _draw_recall(axes[0], evidence)
        _draw_losses(axes[1], evidence)
        _draw_times(axes[2], evidence)
    return drawn


def _draw_recall(ax: Axes, evidence: Evidence) -> None:
    measured = evidence.measured.filter(what="recall").select("choice", "seed", "length", "accuracy")
    short = evidence.rows.filter(pl.col("length") < LENGTHS[0])
    evaluated = short.select(pl.lit(DENSE).alias("choice"), "seed", "length", "accuracy")
    shown = pl.concat([evaluated, measured], how="vertical_relaxed")
    for choice in CHOICES:
        draw_median(ax, shown.filter(choice=choice), "length", "accuracy", LOOKS[choice], choice)
    trained = evidence.rows.filter("trained")["length"]
    length_axis(ax, shown["length"], TrainedRange(min(trained), max(trained)), "length (log scale)")
    ax.set_ylim(-0.04, 1.06)
    ax.set_ylabel("recall")
    ax.set_title("the same weights, other keys", fontsize=10, pad=16)
    name_lines(ax, 14)


def _draw_losses(ax: Axes, evidence: Evidence) -> None:
    recall = evidence.measured.filter(what="recall").select("choice", "seed", "length", "accuracy")
    dense = recall.filter(choice=DENSE).rename({"accuracy": "dense"})
    own = recall.filter(choice=SELECTED).join(dense, on=["seed", "length"], maintain_order="left")
    for length, mark in zip(LENGTHS, BY_LENGTH, strict=True):
        part = own.filter(length=length)
        _by_seed(ax, part["seed"], part["accuracy"] - part["dense"], f"{length} tokens", mark)
    ax.axhline(0.0, color=GRAY, linewidth=0.8, zorder=0)
    draw_level(ax, -ALLOWED, "allowed")
    name_lines(ax)
    ax.set_ylabel("recall above dense")
    ax.set_title(f"{SELECTED} minus dense", fontsize=10)
    ax.legend(handles=ax.collections, fontsize=9)


def _draw_times(ax: Axes, evidence: Evidence) -> None:
    times = evidence.measured.filter(what="time")
    for choice, mark in zip(TIMED, BY_CHOICE, strict=True):
        own = times.filter(choice=choice)
        _by_seed(ax, own["seed"], own["ratio"], choice, mark)
    draw_level(ax, 1.0, "dense")
    name_lines(ax)
    ax.set_ylim(bottom=0.0)
    ax.set_ylabel("time over that of dense")
    ax.set_title(f"time at {TIMED_LENGTH} tokens", fontsize=10)
    ax.legend(handles=ax.collections, fontsize=9, loc="upper left")


def _by_seed(ax: Axes, seeds: pl.Series, numbers: pl.Series, words: str, mark: dict[str, str]) -> None:
    # Not a line: its words are in a legend.
    ax.scatter(seeds, numbers, facecolors="none", edgecolors=mark["color"], marker=mark["marker"], label=words)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("seed")


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    recall = evidence.measured.filter(what="recall").group_by("length", "choice", maintain_order=True)
    times = evidence.measured.filter(what="time").group_by("choice", "length", maintain_order=True)
    value = pl.col("accuracy")
    return {
        "Recall of the same weights when the second layer sees other keys": recall.agg(
            mean=value.mean(), smallest=value.min(), largest=value.max()
        ),
        "Seconds of a call and those of dense attention, means over seeds": times.agg(
            pl.col("seconds", "dense_seconds", "ratio").mean()
        ),
    }
