"""The figure, the tables and the words of the page."""

from collections.abc import Mapping
from statistics import fmean

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis import GRAY, INK, Look, styled
from sparsity_lab.studies import Evidence, draw_by_length, legend_below, looks_of, panels, same_height

from .arms import KERNELS, MARKOV, NOPE, NORMS, PASSKEY, PHIS, TEXT, WINDOW, activation, arm

__all__ = ["QUESTION", "figure", "tables"]

QUESTION = """
A small decoder is trained on windows of 32 bytes of text and tested on windows of up to 16 times that length. Does
LSSAR with p=15 keep its loss where softmax does not, and what of it does the work? Each arm changes one thing: cosine
softmax norms queries and keys, cosine log-n makes scores grow with log n on top, LSSA puts softplus in place of the
exponential, and LSSAR re-weights what exceeds the uniform share by a power p. The same without positions, on
SparseMarkov, whose optimum is known, and on the passkey. An ablation takes softmax apart: activations with the row's
own sum as divisor (l1), with n, and with nothing.
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
