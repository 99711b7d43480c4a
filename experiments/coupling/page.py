"""The figure, the tables and the words of the page."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis import GRAY, INK, Look, length_axis, styled
from sparsity_lab.studies import Evidence, draw_by_length, legend_below, line_style, looks_of, panels

from .arms import (
    ADDITION,
    AHEAD,
    CLIPPED,
    GIVEN,
    NAMES,
    NOPE,
    OFFSET,
    PARITY,
    POSE,
    PREDICTED,
    PREDICTED_AHEAD,
    PREDICTED_OFFSET,
    PUBLISHED,
    ROPE,
    SHARPENED,
    SHUFFLED,
    SLACK,
    SPARSE,
    VARIABLES,
    arm,
)
from .claims import EXACT, TRAINED

__all__ = ["QUESTION", "figure", "tables"]

QUESTION = """
Position coupling gives tokens that belong together one ID, embedded and added at the input, and moves the IDs of
each training sequence by a random amount, so that the IDs of longer ones are not new. One layer with four heads of
64 and no other positions learns sums of up to 6 digits, written backwards, and is tested on up to 24; so on running
parities of the planted bits among distractors (trained on up to 8 bits, tested on 32), where the IDs of the answer
depend on the input, and with one seed on running parities of all bits and, with two layers, on chains of variables.
Beside given IDs stand predicted ones (the model predicts the next token's ID and decodes freely with it), the same
without random movement, shuffled ones, and none with three position schemes. How must IDs move in training: all by
one random offset; by one that leaves none at the table's ends rare (clipped); or to a random ascending subset of the
table, so that IDs further apart than training sequences are long meet as well (spread, the main arms)? By the
published rule nothing has the ID above the highest place, which the model has to notice; all arms but one mark the
ends of the operands with it. Two arms ask whether sharper attention adds to an offset alone: scores that grow with
log n, and re-weighted ones.
"""

OFFSETS = (GIVEN, OFFSET, CLIPPED, PUBLISHED, *SHARPENED)
"""Arms of addition with given IDs."""


def figure(evidence: Evidence) -> Figure:
    """Exact match of all tasks by arm, accuracy of single targets of the sharpened arms, mass on the sources."""
    looks = looks_of((*NAMES, OFFSET, CLIPPED, PUBLISHED, *SHARPENED, PREDICTED_OFFSET, AHEAD, PREDICTED_AHEAD))
    drawn = {
        ADDITION: (*NAMES, OFFSET, CLIPPED, PUBLISHED),
        SPARSE: (*NAMES, PREDICTED_OFFSET, AHEAD, PREDICTED_AHEAD),
        PARITY: NAMES,
        VARIABLES: NAMES,
    }
    with styled():
        chart, axes = panels(6)
        places = (axes[0], axes[1], axes[3], axes[4])
        for ax, (label, names) in zip(places, drawn.items(), strict=True):
            words = "exact match" if ax in (axes[0], axes[3]) else ""
            _draw(ax, evidence, label, names, looks, EXACT, words)
        _draw(
            axes[2],
            evidence,
            ADDITION,
            OFFSETS,
            looks,
            "accuracy",
            "accuracy of targets",
        )
        _draw_mass(axes[5], evidence, looks)
        without = (ROPE, POSE, NOPE, SHUFFLED)
        groups = [{name: one for name, one in looks.items() if (name in without) == first} for first in (True, False)]
        legend_below(chart, *groups, band="band: smallest to largest seed, line: median")
    return chart


def _draw(
    ax: Axes,
    evidence: Evidence,
    label: str,
    names: tuple[str, ...],
    looks: dict[str, Look],
    measure: str,
    words: str,
) -> None:
    rows = evidence.rows
    own = {name: rows.filter(pl.col("arm") == arm(label, name)) for name in names}
    curves = {name: part for name, part in own.items() if part.height}
    draw_by_length(ax, curves, looks, title=label, measure=measure, only_learned=False, words=words)
    ax.set_ylim(-0.04, 1.06)
    chance = rows.filter(pl.col("arm") == arm(label, GIVEN)).unique("length").sort("length")
    if measure == "accuracy":
        ax.plot(chance["length"], chance["chance_accuracy"], color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)))
        ax.annotate(
            "chance",
            (0.98, chance["chance_accuracy"][-1] + 0.02),
            xycoords=("axes fraction", "data"),
            ha="right",
            fontsize=8,
        )


def _draw_mass(ax: Axes, evidence: Evidence, looks: dict[str, Look]) -> None:
    """Mean over seeds of the mass on the sources, and what uniform attention would give."""
    for name in OFFSETS:
        own = evidence.measured.filter(pl.col("arm") == arm(ADDITION, name))
        each = own.group_by("length").agg(pl.col("mass", "uniform").mean()).sort("length")
        ax.plot(each["length"], each["mass"], **line_style(looks[name]))
        if name == GIVEN:
            ax.plot(each["length"], each["uniform"], color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)))
            ax.annotate("uniform attention", (each["length"][0], each["uniform"][0] + 0.02), fontsize=8)
    length_axis(ax, evidence.rows.filter(pl.col("arm") == arm(ADDITION, GIVEN))["length"], None, "length (log scale)")
    ax.axvspan(ax.get_xlim()[0], TRAINED, color=GRAY, alpha=0.18, linewidth=0, zorder=0)
    ax.set_ylim(-0.04, 1.06)
    ax.set_title(f"{ADDITION}: mass on the sources", fontsize=10)


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Where errors are, and the mass on the sources, for the arms of addition with IDs: means over seeds."""
    names = [arm(ADDITION, name) for name in (*OFFSETS, PREDICTED)]
    own = evidence.measured.filter(pl.col("arm").is_in(names))
    words = {
        "before": "accuracy before the last two",
        "end": "of the last two",
        "moved": f"exact match, given IDs moved by {SLACK}",
        "mass": "mass on the sources",
        "uniform": "uniform attention",
    }
    means = own.group_by("arm", "length", maintain_order=True).agg(pl.col(*words).mean())
    return {"Where in the answer and in the table errors are, and mass on the sources": means.rename(words)}
