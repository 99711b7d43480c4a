"""``sparse_parity``: one model for each range of k, tested at every k and at ten times the length."""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import styled
from sparsity_lab.generators import SparseParity
from sparsity_lab.models import Decoder, IndexSampling, NoPE, Plain, PoSE, PositionScheme, RoPE
from sparsity_lab.settings import replace_at
from sparsity_lab.studies import (
    Claim,
    Evidence,
    Size,
    Study,
    difference_claim,
    draw_by_length,
    legend_below,
    looks_of,
    over_seeds,
    panels,
    same_height,
    slope_claim,
)
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["study"]

TRAINED, TWICE, FAR = 24, 48, 240
KS = (1, 2, 4, 6, 8)
RANGES = (2, 4, 6, 8)
# The range of k that claims about position schemes look at.
COMPARED = 4

SCHEMES: dict[str, tuple[PositionScheme, IndexSampling]] = {
    "RoPE": (RoPE(), Plain()),
    "RoPE + PoSE": (RoPE(), PoSE(target=FAR + 2)),
    "NoPE": (NoPE(), Plain()),
}


def arm_of(scheme: str, largest: int) -> str:
    return f"{scheme}, k up to {largest}"


def arms(size: Size) -> dict[str, list[RunConfig]]:
    steps, seeds, sequences = {"smoke": (2, 2, 8), "small": (800, 4, 256), "full": (20_000, 5, 4096)}[size]
    d_model, heads = (8, 1) if size == "smoke" else (64, 4)
    made = {}
    for scheme, (position, index_sampling) in SCHEMES.items():
        for largest in RANGES:
            run = RunConfig(
                task=SparseParity(min_k=1, max_k=largest),
                model=Decoder(d_model=d_model, num_heads=heads, position=position, index_sampling=index_sampling),
                training=Training(
                    steps=steps * (2 if largest == 8 else 1),
                    batch_size=4 if size == "smoke" else 64,
                    learning_rate=1e-3,
                    curriculum=UniformLength(low=8, high=TRAINED),
                ),
                evaluation=Evaluation(lengths=(16, TRAINED, TWICE, 96, FAR), sequences=sequences),
            )
            conditions = {f"k={k}": SparseParity(min_k=k, max_k=k) for k in KS if k <= largest}
            made[arm_of(scheme, largest)] = over_seeds(
                replace_at(run, "evaluation.conditions", conditions), range(seeds)
            )
    return made


def learnable(largest: int) -> dict[str, float]:
    """The evaluated k that a model for k up to ``largest`` was trained on, by condition."""
    return {f"k={k}": k for k in KS if k <= largest}


PAPER = "Golowich et al., arXiv 2502.16792"
LENGTHS = (TRAINED, TWICE)


def _slope_claim(largest: int) -> Claim:
    statement = f"With RoPE, the drop to twice the trained length grows with k (one model for k up to {largest})."
    arm = arm_of("RoPE", largest)
    return slope_claim(
        f"k, trained up to {largest}", statement, arm, learnable(largest), lengths=LENGTHS, source=PAPER
    )


CLAIMS = (
    *(_slope_claim(largest) for largest in RANGES if largest > 2),
    difference_claim(
        "PoSE",
        f"Skipping positions in training (PoSE) carries RoPE further, to twice the length (k up to {COMPARED}).",
        arm_of("RoPE + PoSE", COMPARED),
        arm_of("RoPE", COMPARED),
        lengths=LENGTHS,
        source="this lab, after PoSE, arXiv 2309.10400",
        conditions=("k=2", "k=4"),
    ),
    difference_claim(
        "no positions",
        f"Without positions the same task carries further than with RoPE, to twice the length (k up to {COMPARED}).",
        arm_of("NoPE", COMPARED),
        arm_of("RoPE", COMPARED),
        lengths=LENGTHS,
        source="this lab",
        conditions=("k=2", "k=4"),
    ),
    difference_claim(
        "larger k in training",
        "Having learned larger k as well helps at k=2.",
        arm_of("RoPE", 8),
        arm_of("RoPE", 2),
        lengths=LENGTHS,
        source="this lab",
        conditions=("k=2",),
    ),
)


def figure(evidence: Evidence) -> Figure:
    """Curves by k, a panel for each arm, named by the range of k that it was trained on."""
    rows = evidence.rows
    looks = looks_of([f"k={k}" for k in KS])
    shown = [(scheme, largest) for scheme in SCHEMES for largest in RANGES]
    with styled():
        chart, axes = panels(len(shown), columns=len(RANGES), width=2.6)
        for place, (ax, (scheme, largest)) in enumerate(zip(axes, shown, strict=True)):
            own = rows.filter(pl.col("arm") == arm_of(scheme, largest))
            curves = {name: own.filter(pl.col("condition") == name) for name in learnable(largest)}
            title = f"{scheme}, k ≤ {largest}"
            draw_by_length(ax, curves, looks, title=title, words="" if place % len(RANGES) else "normalized accuracy")
        same_height(axes)
        legend_below(chart, looks)
    return chart


study = Study(
    name="sparse_parity",
    title="Sparse parity: one model for many k, up to ten times the length",
    question=(
        "A decoder of two layers is trained on the parity of k marked bits among distractors, k uniform from 1 "
        "to K_train, on lengths up to 24, and tested at single k on lengths up to 240. Larger k is harder at "
        "every length, so what counts is the drop from the trained length at the same k. Which position scheme "
        "carries further?"
    ),
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=("normalized_accuracy",),
)
