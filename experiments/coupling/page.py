"""The figure and the words of the page."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsity_lab.analysis import INK, Look, draw_level, looks_of, styled
from sparsity_lab.studies import Evidence, draw_by_length, panels

from .arms import NAMES, PARTS, arm
from .claims import EXACT, MOST, better, close, tasks

__all__ = ["QUESTION", "figure", "finding"]

QUESTION = """
Position coupling gives tokens that belong together one ID, embedded and added at the input. Predictive position
coupling lets the model predict the IDs of its answer, so that it also serves tasks whose IDs depend on the input.
Five tasks ask whether that costs anything: sums written backwards, running parities of all bits, running parities of
the planted bits among distractors, chains of variables, and copying. Each is learned with the IDs given, with the IDs
of the answer predicted and fed back, and without IDs, and is tested at four times the longest trained length. IDs of
training sequences are spread out at random over the table, so that those of longer ones are not new. A seed counts
the tasks on which predicted IDs do what is asked.
"""


def finding(evidence: Evidence) -> str:
    """The smallest and the largest exact match of a task at its longest length, with IDs and without."""
    each = []
    for name in NAMES:
        ends = [(arm(label, name), part.longest) for label, part in PARTS.items()]
        own = [evidence.rows.filter(arm=one, length=longest)[EXACT].mean() for one, longest in ends]
        if known := [value for value in own if isinstance(value, float)]:
            each.append(f"{name} {min(known):.2f} to {max(known):.2f}")
    return f"Exact match of {len(PARTS)} tasks at four times the trained length: {', '.join(each)}."


def figure(evidence: Evidence) -> Figure:
    """Exact match by length for each task, and how many tasks count in each seed."""
    looks = looks_of(NAMES)
    with styled():
        chart, axes = panels(len(PARTS) + 1)
        for ax, label in zip(axes, PARTS, strict=False):
            _draw(ax, evidence, label, looks)
        _draw_counts(axes[-1], evidence)
    return chart


def _draw(ax: Axes, evidence: Evidence, label: str, looks: dict[str, Look]) -> None:
    own = {name: evidence.rows.filter(pl.col("arm") == arm(label, name)) for name in NAMES}
    curves = {name: rows for name, rows in own.items() if rows.height}
    if curves:
        draw_by_length(ax, curves, looks, title=label, measure=EXACT, only_learned=False, words="exact match")
    ax.set_ylim(-0.04, 1.06)


def _draw_counts(ax: Axes, evidence: Evidence) -> None:
    """A mark for each seed that all arms have."""
    ax.set_title("tasks that count, by seed", fontsize=10)
    ax.set_ylabel("tasks")
    ax.set_xlabel("seed")
    ax.set_ylim(-0.4, len(PARTS) + 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    draw_level(ax, MOST)
    if not {arm(label, name) for label in PARTS for name in NAMES} <= set(evidence.rows["arm"]):
        return
    for mark, (good, words) in zip(("o", "x"), ((close, "close to given"), (better, "above none")), strict=True):
        counts = tasks(good, evidence)
        ax.plot(
            list(counts), list(counts.values()), color=INK, marker=mark, linestyle="", fillstyle="none", label=words
        )
    ax.legend(fontsize=9, loc="lower left")
