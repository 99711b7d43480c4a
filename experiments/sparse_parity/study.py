"""``sparse_parity``: one model for each range of k, tested at every k and at ten times the length."""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import looks_of, styled
from sparsity_lab.generators import SparseParity
from sparsity_lab.models import Decoder, IndexSampling, NoPE, Plain, PoSE, PositionScheme, RoPE
from sparsity_lab.settings import replace_at
from sparsity_lab.studies import (
    Arm,
    Claim,
    Evidence,
    Size,
    Study,
    difference_claim,
    draw_by_length,
    how_far,
    panels,
    same_height,
    seeded,
    slope_claim,
)
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["study"]

TRAINED, TWICE, FAR = 24, 48, 240
KS = (1, 2, 4, 6, 8)
COLUMNS = 2
RANGES = (2, 4, 6, 8)
FIRST_SEED = 4
"""The rules were written after a look at seeds 0 to 3."""
# The range of k that claims about position schemes look at.
COMPARED = 4

SCHEMES: dict[str, tuple[PositionScheme, IndexSampling]] = {
    "RoPE": (RoPE(), Plain()),
    "RoPE + PoSE": (RoPE(), PoSE(target=FAR + 2)),
    "NoPE": (NoPE(), Plain()),
}


def arm_of(scheme: str, largest: int) -> str:
    return f"{scheme}, k up to {largest}"


def arms(size: Size) -> dict[str, Arm]:
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
            run = replace_at(run, "evaluation.conditions", conditions)
            made[arm_of(scheme, largest)] = Arm(seeded(run), seeds, first=FIRST_SEED)
    return made


def learnable(largest: int) -> dict[str, float]:
    """The evaluated k that a model for k up to ``largest`` was trained on, by condition."""
    return {f"k={k}": k for k in KS if k <= largest}


PAPER = "Golowich et al., arXiv 2502.16792"
LENGTHS = (TRAINED, TWICE)


def _further_claim(name: str, statement: str, scheme: str, source: str) -> Claim:
    return difference_claim(
        name,
        statement,
        arm_of(scheme, COMPARED),
        arm_of("RoPE", COMPARED),
        lengths=LENGTHS,
        source=source,
        conditions=("k=2", "k=4"),
    )


CLAIMS = (
    slope_claim(
        "headline_sparsity_drop_grows_with_k",
        "With RoPE, the drop to twice the trained length grows with k, in each of three models, for k up to 4, 6 and "
        "8.",
        {arm_of("RoPE", largest): learnable(largest) for largest in RANGES if largest > 2},
        lengths=LENGTHS,
        source=PAPER,
    ),
    slope_claim(
        "k, without positions",
        "Without positions, the drop to ten times the trained length also grows with k (k up to 8).",
        {arm_of("NoPE", 8): learnable(8)},
        lengths=(TRAINED, FAR),
        source=PAPER,
    ),
    _further_claim(
        "PoSE",
        f"Skipping positions in training (PoSE) makes RoPE lose less to twice the length (k up to {COMPARED}).",
        "RoPE + PoSE",
        "this lab, after PoSE, arXiv 2309.10400",
    ),
    _further_claim(
        "no positions",
        f"Without positions less is lost to twice the length than with RoPE (k up to {COMPARED}).",
        "NoPE",
        "this lab",
    ),
)


def finding(evidence: Evidence) -> str:
    """How far the smallest and the largest k carry under each position scheme, of the models that claims compare."""
    each = []
    for name in (f"k={k}" for k in (KS[0], COMPARED)):
        own = evidence.rows.filter(condition=name)
        each.append(f"{name}: {how_far({scheme: own.filter(arm=arm_of(scheme, COMPARED)) for scheme in SCHEMES})}")
    return f"Trained on k up to {COMPARED}. {'. '.join(each)}."


def figure(evidence: Evidence) -> Figure:
    """Curves by k, a panel for each arm that has a run, named by the range of k that it was trained on."""
    rows = evidence.rows
    looks = looks_of([f"k={k}" for k in KS])
    run = set(rows["arm"])
    shown = [(scheme, largest) for scheme in SCHEMES for largest in RANGES if arm_of(scheme, largest) in run]
    with styled():
        chart, axes = panels(len(shown), columns=COLUMNS)
        for place, (ax, (scheme, largest)) in enumerate(zip(axes, shown, strict=True)):
            own = rows.filter(pl.col("arm") == arm_of(scheme, largest))
            curves = {name: own.filter(pl.col("condition") == name) for name in learnable(largest)}
            title = f"{scheme}, k ≤ {largest}"
            draw_by_length(ax, curves, looks, title=title, words="" if place % COLUMNS else "normalized accuracy")
        same_height(axes)
    return chart


study = Study(
    name="sparse_parity",
    title="Sparse parity: one model for many k, up to ten times the length",
    question=(
        "A decoder of two layers is trained on the parity of k marked bits among distractors, on lengths up to 24, "
        "with k uniform from 1 to K_train. It is tested at single k on lengths up to 240. Larger k is harder at "
        "every length, so what counts is the drop from the trained length at the same k. With which position scheme "
        "is less lost?"
    ),
    arms=arms,
    claims=CLAIMS,
    primary=tuple(claim.name for claim in CLAIMS),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
)
