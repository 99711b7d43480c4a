"""``sparse_parity``: one model for each range of k, tested at every k and at ten times the length."""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis.style import styled
from sparsity_lab.generators import SparseParity
from sparsity_lab.models import Decoder, NoPE, Plain, PoSE, RoPE
from sparsity_lab.models.index_sampling import IndexSampling
from sparsity_lab.models.positions import PositionScheme
from sparsity_lab.settings import replace_at
from sparsity_lab.studies.arms import over_seeds
from sparsity_lab.studies.claim import Claim
from sparsity_lab.studies.decisions import difference_claim, slope_claim
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.figures import draw_by_length, legend_below, looks_of, panels, same_height
from sparsity_lab.studies.recipe import Size, recipe
from sparsity_lab.studies.study import Study
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["sparse_parity"]

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


NOTES = """
- The trained lengths (up to 24) and models are far smaller than those of the paper, whose token layout is not known
  here; this re-creates its question.
- The settings come from the calibration of token marking in `k_locality`: at a rate of 0.001, 800 steps were enough
  for k up to 6. A first look at three seeds of RoPE showed that they are too few where k goes up to 8 (normalized
  accuracy of 0.44 to 0.91 at k=8 and the longest trained length), so those models got twice the steps, and all arms
  a fourth seed; the rules stayed.
- **What is not decided.** Without positions three of four seeds hold fully at 48 and one falls to 0.46 at k=2, and
  did not learn k=4. The same difference (k=2 and 4), which no rule judges, is 0.46 [0.27, 0.66] for k up to 2, 0.69
  [0.47, 0.91] up to 6 and 0.67 [0.31, 1.04] up to 8. At k=2 seeds differ from 0.17 to 0.97 with RoPE, k up to 8: four
  are too few. Depth and rate were not varied.
- PoSE at ten times the length: 0.711 against 0.273 at k=2 (k up to 4), but no clear gain for k up to 6 and 8
  (intervals of the difference at 240 hold 0).
- From k=4 on, parity with RoPE is near chance at 48, and a drop cannot exceed 1: slopes flatten there.
- The size `full` has 60 runs, 5 seeds and 20,000 steps (40,000 for k up to 8): about 19 hours on one core.
"""

sparse_parity = recipe(
    Study(
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
        notes=NOTES,
    )
)
