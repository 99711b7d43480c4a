"""``demo``: a small study that shows how the lab works."""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import looks_of, paired_differences, styled
from sparsity_lab.generators import Anchored, Majority, Mixture, Planted, Recent
from sparsity_lab.models import Decoder, NoPE, Oracle, Predicted, RoPE
from sparsity_lab.settings import replace_at
from sparsity_lab.studies.arms import Arm, seeded
from sparsity_lab.studies.claim import Claim, Outcomes
from sparsity_lab.studies.criteria import MostSeeds
from sparsity_lab.studies.drops import numbers_at
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.figures import draw_by_length, how_far, panels, same_height
from sparsity_lab.studies.shared_claims import means_listed, slope_claim
from sparsity_lab.studies.study import Size, Study
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

TRAINED, FOUR_TIMES, EIGHT_TIMES = 24, 96, 192
CONDITIONS = {f"k={k}": float(k) for k in (1, 2, 3)}
MARKED = "marked tokens, anywhere"
START, COUPLED, PREDICTED, NEAR = (
    "at the start, RoPE", "at the start, coupled IDs", "at the start, predicted IDs", "near the query, RoPE",
)  # fmt: skip


def arms(size: Size) -> dict[str, Arm]:
    """One model for the parity of marked tokens with every k, and models for the majority of three fixed places. Each
    seed draws its own places. Seven seeds decide a claim if they agree; exploratory arms have three."""
    steps, sequences, seeds, few = {
        "smoke": (6, 64, 1, 1), "small": (400, 512, 7, 3), "full": (4000, 4096, 12, 12),
    }[size]  # fmt: skip
    base = RunConfig(
        task=Mixture(tasks=tuple(Planted(k=int(k)) for k in CONDITIONS.values())),
        model=Decoder(position=RoPE()),
        training=Training(steps=steps, learning_rate=1e-3, curriculum=UniformLength(low=8, high=TRAINED)),
        evaluation=Evaluation(lengths=(16, TRAINED, 48, FOUR_TIMES, EIGHT_TIMES), sequences=sequences),
    )
    tasks = {name: Planted(k=int(k)) for name, k in CONDITIONS.items()}
    made = {MARKED: Arm(seeded(replace_at(base, "evaluation.conditions", tasks)), seeds)}
    # The places reach up to 16 back, so shorter sequences have no room for them.
    placed = replace_at(base, "training.curriculum", UniformLength(low=16, high=TRAINED))
    task = Planted(marking="position", rule=Majority(), locality=Anchored(width=8), reference_length=16)
    max_id = task.k + 1
    for name, law, model, count in (
        (START, task.locality, Decoder(position=RoPE()), seeds),
        (COUPLED, task.locality, Decoder(position=NoPE(), coupling=Oracle(max_id=max_id)), seeds),
        (PREDICTED, task.locality, Decoder(position=NoPE(), coupling=Predicted(max_id=max_id)), few),
        (NEAR, Recent(width=8), Decoder(position=RoPE()), few),
    ):
        own = task.replace(locality=law, coupled=model.coupling is not None)
        made[name] = Arm(seeded(placed.replace(task=own, model=model), "task.position_seed"), count)
    return made


def loss_saved(evidence: Evidence) -> Outcomes:
    """The loss that coupled IDs save at the largest length, by seed."""
    losses = {name: numbers_at(evidence.rows, name, EIGHT_TIMES, "loss") for name in (START, COUPLED)}
    found = paired_differences(losses[START], losses[COUPLED])
    return Outcomes(found, "nats", f"Mean losses: {means_listed(losses)}.")


def curves(evidence: Evidence) -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame]]:
    """The rows by k, and by the method for places at the start."""
    by_k = {name: evidence.rows.filter(arm=MARKED, condition=name) for name in CONDITIONS}
    return by_k, {name: evidence.rows.filter(arm=name) for name in (START, COUPLED, PREDICTED, NEAR)}


def finding(evidence: Evidence) -> str:
    """How far the curves of the decided claims extrapolate."""
    by_k, placed = curves(evidence)
    decided = {"RoPE": placed[START], "with coupled IDs": placed[COUPLED]}
    return f"Marked tokens: {how_far(by_k)}. Places at the start: {how_far(decided)}."


def figure(evidence: Evidence) -> Figure:
    """The curves in two panels."""
    by_k, placed = curves(evidence)
    looks = looks_of(list(by_k), list(placed))
    with styled():
        chart, axes = panels(2, columns=1, width=6.6, height=2.9)
        draw_by_length(axes[0], by_k, looks, title="parity of k marked tokens, RoPE")
        draw_by_length(axes[1], placed, looks, title="majority of three fixed places")
        same_height(axes)
    return chart


demo = Study(
    name="demo",
    title="The demo",
    question="How far do models extrapolate that are trained on lengths up to 24, by k and by place? Do coupled "
    "position IDs help? Locality and predicted IDs are drawn too, but not decided.",
    arms=arms,
    claims=(
        slope_claim(
            "k",
            "With RoPE, the drop to four times the trained length grows with k.",
            {MARKED: CONDITIONS},
            lengths=(TRAINED, FOUR_TIMES),
            source="Golowich et al., arXiv 2502.16792",
        ),
        Claim(
            name="coupled IDs",
            statement="At eight times the trained length, coupled IDs predict better than RoPE where three places at "
            "the start decide.",
            source="Golowich et al., arXiv 2502.16792",
            outcome=f"Loss at length {EIGHT_TIMES} with RoPE minus that with coupled IDs, learned or not.",
            numbers=loss_saved,
            criterion=MostSeeds(at_least=0.01),
            arms=(START, COUPLED),
        ),
    ),
    primary=("k", "coupled IDs"),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
)
