"""The figure, the tables and the words of the page."""

from collections.abc import Mapping
from statistics import fmean

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis.style import GRAY, INK, Look, styled
from sparsity_lab.recipes.softplus_extrapolation.arms import (
    KERNELS,
    MARKOV,
    NOPE,
    NORMS,
    PASSKEY,
    PHIS,
    TEXT,
    WINDOW,
    activation,
    arm,
)
from sparsity_lab.recipes.softplus_extrapolation.claims import NEARLY
from sparsity_lab.studies import Evidence
from sparsity_lab.studies.figures import draw_by_length, legend_below, looks_of, panels, same_height

__all__ = ["NOTES", "QUESTION", "figure", "tables"]

QUESTION = """
A small decoder is trained on windows of 32 bytes of text and tested on windows of up to 16 times that length. Does
LSSAR with p=15 keep its loss where softmax does not, and what of it does the work? Each arm changes one thing: cosine
softmax norms queries and keys, cosine log-n makes scores grow with log n on top, LSSA puts softplus in place of the
exponential, and LSSAR re-weights what exceeds the uniform share by a power p. The same without positions, on
SparseMarkov, whose optimum is known, and on the passkey. An ablation takes softmax apart: activations with the row's
own sum as divisor (l1), with n, and with nothing.
"""

NOTES = f"""
- **Windows.** The loss of text at a length is the mean over windows of that length, first places included, as in the
  source. All lengths are tested on the same bytes, cut into longer or shorter windows, since texts differ by more
  than what is to be seen. A model that made use of no more than the trained length would fall a little with length:
  that is what "{WINDOW}" shows, the softmax runs with a window of the trained length.
- **Nearly constant** was fixed at {NEARLY:.0%} before the runs: the source has 3.19 at its trained length and 3.32 at
  eight times it.
- **Calibration** (seed 100, one run each, not part of the result; nats at the trained length). Text with RoPE, 600
  steps, at rates of 0.003, 0.006 and 0.01: LSSAR p=15 2.01, 1.92, 1.90; at the last two softmax 1.82 and 1.82, cosine
  log-n 1.83 and 1.81. So 0.01 for all with RoPE; without positions 0.006, at which softmax had 2.17 and LSSAR p=15
  2.30. Activations without l1 had 1.87 to 1.99 at 0.006: none collapsed. On SparseMarkov softmax came to the optimum
  in 400 steps at 0.003, LSSAR p=15 in 800 at 0.006 and not in 400 at 0.003. The passkey was learned in 600 steps at
  0.003 by softmax and LSSAR p=15, which were cut to 400.
- **Seeds.** A seed draws data, initial weights and the tested sequences. Activations have one; their intervals are
  over activations.
- **Seen after the runs**, so no claim. LSSAR p=15 loses about half of what softmax loses, not next to nothing. What
  is lost is not what was learned: the same softmax weights with a window of the trained length lose nothing. In the
  mean, most of what LSSAR p=15 gains over softmax cosine softmax has too, with no more than normed queries and keys;
  log n added nothing to them, and softplus alone, without re-weighting, was the worst of all. Without positions all
  three kernels lose much less than with RoPE, and LSSAR p=15 no less than the others: so most of the loss with RoPE
  seems to lie in distances that were never trained, which no kernel here treats.
- **l1.** Nothing collapsed without it. At the trained length its absence cost exp and sigmoid something, softplus and
  ReLU next to nothing; far away the activations that are no exponentials did better divided by n than with l1. At
  this scale it is the exponential that matters far away, more than l1, against the claim.
- **What was looked at for the reason.** The rate: three were tried for LSSAR p=15, and the chosen one is the best at
  the trained length. The trained length (calibration, LSSAR p=15, rate 0.006, equal bytes a step): on 64 bytes the
  loss grew by 23 % at 8 times and 25 % at 16 times the trained length, on 32 bytes by 20 % and 39 %. The seed: with
  the settings of the result the calibration seed grew by 12 % at 8 times (64 windows), less than any of the three, so
  seeds differ by more than these show. Not tried: more steps, layers and data; the source trains 124 million weights
  on 10 billion tokens, 1024 a window.
- **Not learned in distribution.** On SparseMarkov softmax and LSSAR p=15 each failed with one seed, not the same one,
  so that a single seed is left to compare. Both failed in the same way (256 windows of 32, looked at after the runs):
  the sum modulo 2 is right as often as in a run that learned (0.93 of the targets, which is what the noise allows),
  the rest of it hardly known (0.63 and 0.57 nats given the sum modulo 2, of 0.69 for nothing known; 0.19 where it was
  learned). That is a plateau on the way, which other runs leave sooner or later; these had not by the last step. On
  the passkey LSSAR p=15 is the one kernel that fell short at the trained lengths, with one seed below what counts as
  learned: its training loss was still falling with every seed, from 0.4 to 0.6 after two thirds of the 400 steps to
  0.2 to 0.3 at the end, while those of all others were next to nothing from two thirds on. Both claims are open for
  want of training, not of seeds alone.
- **Cost.** The size `full` (107 runs, 6 layers of width 384, trained on 256 tokens, 5 seeds) is estimated at 30 hours
  on one GPU. It has not been run. The core minutes of the small size are clocks of a machine that was shared; alone,
  its runs took 10 to 20 seconds each in calibration, about 20 minutes of one core in all.
"""

LOOKS = looks_of(KERNELS) | {WINDOW: Look(GRAY, "X", (1.5, 1.2))}
DASHES = {name: one.dash for name, one in looks_of(list(NORMS)).items()}
MARKERS = {name: one.marker for name, one in looks_of(list(NORMS)).items()}
COLORS = {name: one.color for name, one in looks_of(PHIS).items()}
ACTIVATIONS = {
    activation(phi, norm): Look(COLORS[phi], MARKERS[norm], DASHES[norm]) for phi in PHIS for norm in NORMS
}
NAMED = {f"activation {phi}": Look(COLORS[phi], "", "") for phi in PHIS} | {
    f"activations, {norm}": Look(INK, MARKERS[norm], DASHES[norm]) for norm in NORMS
}
"""What colors and dashes of activations mean."""


def figure(evidence: Evidence) -> Figure:
    """Loss by length of text with and without RoPE and by activation, distance to the optimum, and the passkey."""
    text = with_windows(evidence)
    with styled():
        chart, axes = panels(5)
        for ax, part, words in ((axes[0], TEXT, "loss (nats a byte)"), (axes[1], NOPE, "")):
            _draw(ax, text, _arms(part), title=part, measure="loss", words=words)
        _draw(
            axes[2],
            text,
            dict(zip(ACTIVATIONS, ACTIVATIONS, strict=True)),
            title="text, RoPE: activations",
            measure="loss",
            words="",
        )
        same_height(axes[:3])
        for ax, part, measure, words in (
            (axes[3], MARKOV, "excess_loss", "loss above the optimum (nats)"),
            (axes[4], PASSKEY, "normalized_accuracy", "normalized accuracy"),
        ):
            _draw(ax, evidence.rows, _arms(part), title=part, measure=measure, words=words)
        legend_below(chart, LOOKS, NAMED, band="line: median over seeds; band: smallest to largest")
    return chart


def _arms(part: str) -> dict[str, str]:
    """The arms of a part by the names of their looks."""
    return {kernel: arm(part, kernel) for kernel in LOOKS}


def with_windows(evidence: Evidence) -> pl.DataFrame:
    """The losses of text that the claims rest on, in the form of ``Evidence.rows``."""
    trained = evidence.rows.select("run", "length", "trained", "learned")
    return evidence.measured.drop_nulls("loss").join(trained, on=["run", "length"], how="left", maintain_order="left")


def _draw(ax: Axes, rows: pl.DataFrame, curves: Mapping[str, str], *, title: str, measure: str, words: str) -> None:
    """Draw the arms of which there are rows, each under its name in the legend."""
    found = {name: rows.filter(pl.col("arm") == one) for name, one in curves.items()}
    known = {name: own for name, own in found.items() if not own.is_empty()}
    if known:
        draw_by_length(ax, known, LOOKS | ACTIVATIONS, title=title, measure=measure, only_learned=False, words=words)


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Means over seeds, and the smallest and largest."""
    text = with_windows(evidence)
    rows = evidence.rows
    return {
        "Loss of text (nats a byte) by length, on the same bytes": _by_length(
            text.filter(~pl.col("arm").is_in(list(ACTIVATIONS))), "loss"
        ),
        "Loss of text by activation, with RoPE, one seed": _by_length(
            text.filter(pl.col("arm").is_in(list(ACTIVATIONS))), "loss"
        ),
        "Loss above the optimum (nats a token), SparseMarkov": _by_length(
            rows.filter(pl.col("condition") == MARKOV), "excess_loss"
        ),
        "Normalized accuracy of the passkey's digits": _by_length(
            rows.filter(pl.col("condition") == PASSKEY), "normalized_accuracy"
        ),
    }


def _by_length(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """Arms by lengths."""
    lengths = rows["length"].unique().sort()
    made = []
    for (name,), own in rows.partition_by("arm", as_dict=True, maintain_order=True).items():
        cells = {str(length): _spread(own.filter(pl.col("length") == length)[column]) for length in lengths}
        made.append({"arm": name} | cells)
    return pl.DataFrame(made)


def _spread(values: pl.Series) -> str | None:
    found = values.drop_nulls().to_list()
    if not found:
        return None
    mean = f"{fmean(found):.3f}"
    return f"{mean} [{min(found):.3f}, {max(found):.3f}]" if len(found) > 1 else mean
