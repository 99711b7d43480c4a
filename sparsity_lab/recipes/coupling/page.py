"""The figure, the tables and the words of the page."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.analysis.style import GREY, INK, Look, styled
from sparsity_lab.recipes.coupling.arms import (
    ADDITION,
    CLIPPED,
    GIVEN,
    NAMES,
    NOPE,
    OFFSET,
    PARITY,
    POSE,
    PREDICTED,
    PUBLISHED,
    ROPE,
    SHARPENED,
    SHUFFLED,
    SPARSE,
    VARIABLES,
    arm,
)
from sparsity_lab.recipes.coupling.claims import EXACT, TRAINED
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.figures import draw_by_length, legend_below, line_style, looks_of, panels

__all__ = ["NOTES", "QUESTION", "figure", "tables"]

QUESTION = """
Position coupling gives tokens that belong together one ID, embedded and added at the input, and moves the IDs of
each training sequence by a random amount, so that the IDs of longer ones are not new. One layer with four heads of
64 and no other positions learns sums of up to 6 digits, written backwards, and is tested on up to 24; so on running
parities of the planted bits among distractors (trained on up to 8 bits, tested on 32), where the IDs of the answer
depend on the input, and with one seed on running parities of all bits and on chains of variables. Beside given IDs
stand predicted ones (the model predicts the next token's ID and decodes freely with it), the same without random
offset, shuffled ones, and none with three position schemes. What fails first, a place that is not found or a mass
that is spread thin? Scores that grow with log n and re-weighted ones are there to tell, and so are IDs at the ends:
the published rule asks the model to notice, at the highest place, that no token has the next ID.
"""

NOTES = """
- **Calibration** (one seed, 100, exact match at 6, 9, 12, 15, 18 and 24 digits; two heads of 64 unless said). With
  the published IDs: 0.89 0.13 0.18 0.07 0 0; at width 256 with four heads of 64: 1.00 0.44 0.02 0 0.02 0.02.
  Attention found the right place in nearly all rows; what failed were the last two targets, where there is no digit
  to find: what is looked for is absent, and IDs too far apart to have met in training draw the mass. Weight decay
  of 1 (1.00, then 0) and attention without normalisation (sigmoid 0.98, then 0; ReLU 0.86, then 0) made it worse,
  for there all rows fail; larger initial tables changed little (standard deviation 0.5: 0.97 0.27 0.02 0.05 0.01
  0). With the end of each operand marked by an ID: 1.00 0.82 0.33 0.86 0.05 0.60 after 2000 steps, 1.00 0.99 0.85
  0.84 0.81 0.54 after 3000; at width 256 with four heads 1.00 0.95 0.93 0.90 0.70 0.51 after 1500. Four heads of 32
  learned more slowly (0.04 after 2000 steps).
- **Trained on 8 digits** (published IDs, batch 64, 2000 steps, at 8, 12 and 16 digits): four heads of 32 1.00 0
  0.01; two of 64 at three times the rate 0.99 0.16 0.04; only lengths 5 to 8 did not learn.
- **Predicted IDs** (sparse parity, free-running against given IDs). A quarter of the bits planted, two layers of
  width 64 with ALiBi, trained on 16, at 16, 24 and 32 bits: 0.79 0.07 0.01 against 0.97 0.33 0.34. Without
  look-ahead and with the end marked: 0.95 0.43 0.02 against 0.96 0.59 0.20. One layer with two heads of 64, half
  the bits planted, trained on 8, at 8, 12, 16 and 32 bits: 1.00 0.66 0.25 0.01 against 1.00 0.76 0.41 0.13. There
  the next ID is the next in order, so a random ascending subset of the table can stand for the IDs in place of an
  offset, and IDs that are far apart meet in training: 0.59 0.56 0.52 0.45 against 0.62 0.59 0.55 0.48, with 0.99 of
  the IDs right at all lengths. What is wrong there is the parity at the rare smallest IDs; the study draws subsets
  of windows, which makes those more frequent. This was not calibrated again. For addition random gaps are no help:
  its rule asks for the next ID, and 2000 steps did not learn.
- **A first run** (two heads of 64, 2500 steps at twice the rate; 30 of its runs) left seeds that had not learned:
  with IDs given, exact match at 6, 9, 15 and 24 digits was 1.00 0.99 0.82 0.26, then 0.14 0.05 0 0, then 1.00 0.28
  0.24 0; predicted IDs came to 1.00 and 0.95, 1.00 and 1.00, 0 and 0 at 6 and 9 digits; 5000 steps did not help
  seed 101 (0 at all lengths). Four heads of 64 learn it sooner and more surely: seed 101 had 1.00 0.99 0.55 0.09
  after 2500 steps; on sparse parity, at 8, 12, 16 and 32 bits after 2000 steps, given IDs 0.99 0.91 0.96 0.80 and
  predicted ones 0.96 0.93 0.88 0.88; on variables, after 1000, 0.65 at the trained length. So the width and the
  rate were changed, and everything run again; the rules stayed. When two seeds with IDs given had come in, and none
  with log-n softmax, the same rule was written down for the latter, so that the level is asked of both.
- **A second run** (1600 steps for addition, three seeds) had 0.93 (0.88 to 1.00) at 9 digits and 0.72 at 15 with IDs
  given, and 0.86 against 0.93 for predicted and given IDs of sparse parity at 32 bits. So addition got 2500 steps,
  and the arms that claims compare closely more seeds; the rules stayed. That a predicting model was to be compared
  with itself given its IDs was written down when those three seeds had been seen. For sparse parity 3000 steps were
  tried on seed 100, and left: 0.95 with given IDs, 0.88 with predicted ones (0.97 when it is given them).
- **More digits** (trained on 1 to 10, 2000 steps, seeds 100 and 101): 0.98 and 0.83 at 15 digits, 0.98 and 0.66 at
  20, 0.70 and 0.50 at 25. The same share of the trained length, and no more.
- **Where errors are.** Of the seeds with IDs given, the sums of 9 digits that seeds 0 and 3 got wrong at 2500 steps
  (0.77 and 0.79 right, of 256) were right when all IDs were moved by 8, to the middle of the table (1.00 and 1.00):
  so rare IDs looked at fault. A uniform offset shows ID 1 once where it shows one in the middle six times.
  With offsets clipped to what fits, so that no ID is rare, seeds 100 and 101 had 1.00 0.95 0.92 0.92 0.59 and 1.00
  0.96 0.79 0.73 0.25, against 0.99 at 9 and (seed 101) 0.55 at 15 and 0.09 at 24 digits before. Then that arm was
  added, with the rules of the others: it carries a little further, and no more is decided. What is left are single
  wrong digits anywhere in the sum, at IDs that are further apart than they ever were in training.
- **Without IDs** addition was not learned at the trained lengths either (tokens right: 0.25 to 0.4 at 6 digits), so
  the comparison says what IDs are worth in this many steps, not how the other schemes carry a rule that they know.
- **Not learned in calibration:** chains of two hops (two layers, 1500 steps: 0.11 at the trained length), and log-n
  softmax at three times the rate (0.09).
- **Cost.** The small size takes about an hour and a half of one core; the clocks below are from one that was shared.
  `full` trains 20 times as many steps on batches of four times the size, from 8 seeds: about 260 runs of an hour on
  one core each, for a cluster or a GPU.
"""


def figure(evidence: Evidence) -> Figure:
    """Exact match of all tasks by arm, accuracy of single targets of the sharpened arms, mass on the sources."""
    looks = looks_of((*NAMES, PUBLISHED, CLIPPED, *SHARPENED, OFFSET))
    drawn = {
        ADDITION: (*NAMES, PUBLISHED, CLIPPED),
        SPARSE: (*NAMES, OFFSET),
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
            (GIVEN, CLIPPED, PUBLISHED, *SHARPENED),
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
    for name in (GIVEN, CLIPPED, PUBLISHED, *SHARPENED):
        own = evidence.measured.filter(pl.col("arm") == arm(ADDITION, name))
        each = own.group_by("length").agg(pl.col("mass", "uniform").mean()).sort("length")
        ax.plot(each["length"], each["mass"], **line_style(looks[name]))
        if name == GIVEN:
            ax.plot(each["length"], each["uniform"], color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)))
            ax.annotate("uniform attention", (each["length"][0], each["uniform"][0] + 0.02), fontsize=8)
    length_axis(ax, evidence.rows.filter(pl.col("arm") == arm(ADDITION, GIVEN))["length"], None, "length (log scale)")
    ax.axvspan(ax.get_xlim()[0], TRAINED, color=GREY, alpha=0.18, linewidth=0, zorder=0)
    ax.set_ylim(-0.04, 1.06)
    ax.set_title(f"{ADDITION}: mass on the sources", fontsize=10)


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Where in the answer errors are, and the mass on the sources, for the arms of addition with IDs."""
    names = [arm(ADDITION, name) for name in (GIVEN, CLIPPED, PUBLISHED, PREDICTED, *SHARPENED)]
    own = evidence.measured.filter(pl.col("arm").is_in(names))
    means = own.group_by("arm", "length", maintain_order=True).agg(pl.col("before", "end", "mass", "uniform").mean())
    words = {"before": "accuracy before the last two", "end": "of the last two", "uniform": "uniform attention"}
    return {"Where in the answer, and mass on the sources": means.rename({"mass": "mass on the sources", **words})}
