"""``locality_repair``: do coupled position IDs repair what fails far from the query?"""

from functools import partial

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import Replicates, by_replicate, styled
from sparsity_lab.generators import Anchored, Lookup, Majority, Planted, Recent, Rule
from sparsity_lab.models import Coupling, Decoder, NoPE, Oracle, PositionScheme, Predicted, RoPE, Shuffled
from sparsity_lab.studies import (
    Claim,
    Decision,
    Evidence,
    Size,
    Study,
    decided,
    difference_claim,
    draw_by_length,
    draw_interval,
    learned_words,
    legend_below,
    levels,
    looks_of,
    mean_value,
    over_seeds,
    panels,
    same_height,
    values_at,
)
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["study"]

TRAINED, FAR = 24, 96
K = 3
LOST = 0.25
"""A drop of normalized accuracy that counts as failing far away."""

RULES: dict[str, Rule] = {"majority": Majority(), "table": Lookup(seed=1)}
KINDS: dict[str, tuple[PositionScheme, Coupling | None]] = {
    "recent": (RoPE(), None),
    "anchored": (RoPE(), None),
    "anchored, no positions": (NoPE(), None),
    "anchored, coupled": (NoPE(), Oracle(max_id=K + 1)),
    "anchored, coupled beside RoPE": (RoPE(), Oracle(max_id=K + 1)),
    "anchored, predicted": (NoPE(), Predicted(max_id=K + 1)),
    "anchored, shuffled": (NoPE(), Shuffled(max_id=K + 1)),
}
"""Position scheme and coupling of the arms; the first is the only one with places near the query."""


def arm_of(rule: str, kind: str) -> str:
    return f"{rule}: {kind}"


def arms(size: Size) -> dict[str, list[RunConfig]]:
    steps, seeds, sequences = {"smoke": (2, 2, 8), "small": (300, 5, 256), "full": (4000, 10, 4096)}[size]
    d_model, heads = (8, 1) if size == "smoke" else (64, 4)
    made = {}
    for rule_name, rule in RULES.items():
        for kind, (position, coupling) in KINDS.items():
            run = RunConfig(
                task=Planted(
                    k=K,
                    marking="position",
                    rule=rule,
                    locality=Recent(width=8) if kind == "recent" else Anchored(width=8),
                    # No farther than the shortest trained length, also for laws that reach as far as they can.
                    reference_length=16,
                    coupled=coupling is not None,
                ),
                model=Decoder(d_model=d_model, num_heads=heads, position=position, coupling=coupling),
                training=Training(
                    # Without positions or IDs a place is learned three times as slowly.
                    steps=steps * (1 if coupling or isinstance(position, RoPE) else 3),
                    batch_size=4 if size == "smoke" else 64,
                    learning_rate=1e-3,
                    curriculum=UniformLength(low=16, high=TRAINED),
                ),
                evaluation=Evaluation(lengths=(16, TRAINED, 48, FAR, 240), sequences=sequences),
            )
            made[arm_of(rule_name, kind)] = over_seeds(run, range(seeds), "task.position_seed")
    return made


def lost(evidence: Evidence, arm: str) -> Replicates:
    """The drop of each seed that learned."""
    return by_replicate(values_at(evidence.rows, arm, FAR), "drop")


def decide_failure(arm: str, evidence: Evidence) -> Decision:
    """Whether the arm loses more than ``LOST``."""
    return decided(lost(evidence, arm), "drop", _words(evidence, arm), above=LOST)


def decide_whole(arm: str, evidence: Evidence) -> Decision:
    """Whether the arm loses less than ``LOST``."""
    return decided(lost(evidence, arm), "drop", _words(evidence, arm), below=LOST)


def _words(evidence: Evidence, arm: str) -> str:
    far, near = (mean_value(evidence.rows, arm, FAR, column).estimate for column in ("value", "at_trained"))
    values = "nothing learned" if far is None else f"{near:.2f} at length {TRAINED}, {far:.2f} at {FAR}"
    return f"normalized accuracy {values} ({learned_words(evidence.rows, arm)})."


def _claims(rule: str) -> list[Claim]:
    anchored, coupled = arm_of(rule, "anchored"), arm_of(rule, "anchored, coupled")
    drop = f"Drop of normalized accuracy from length {TRAINED} to {FAR}, over the seeds that learned"
    gain = partial(difference_claim, lengths=(TRAINED, FAR))
    return [
        Claim(
            name=f"far fails, {rule}",
            statement=f"With RoPE, places at the start lose over a quarter at four times the length ({rule}).",
            source="this lab",
            rule=(
                f"{drop}, of {anchored}. Held if the 95 % interval of the mean lies above {LOST}, did not hold if it "
                "lies at or below, else not decided."
            ),
            decide=partial(decide_failure, anchored),
        ),
        gain(
            f"repaired, {rule}",
            f"Coupled IDs in place of positions repair what lies at the start ({rule}).",
            coupled,
            anchored,
            source="this lab, after Golowich et al., arXiv 2502.16792",
        ),
        Claim(
            name=f"repaired wholly, {rule}",
            statement=f"With coupled IDs, less than a quarter is lost at four times the trained length ({rule}).",
            source="this lab",
            rule=(
                f"{drop}, of {coupled}. Held if the 95 % interval of the mean lies below {LOST}, did not hold if it "
                "lies at or above, else not decided."
            ),
            decide=partial(decide_whole, coupled),
        ),
        gain(
            f"in place of RoPE, {rule}",
            f"Coupled IDs carry further in place of RoPE than beside it ({rule}).",
            coupled,
            arm_of(rule, "anchored, coupled beside RoPE"),
            source="this lab",
        ),
        gain(
            f"not for want of RoPE, {rule}",
            f"It is the IDs, and not the absence of RoPE, that repair ({rule}).",
            coupled,
            arm_of(rule, "anchored, no positions"),
            source="this lab",
        ),
        gain(
            f"predicted, {rule}",
            f"Coupled IDs that the model also learns to predict do better than RoPE at the start ({rule}).",
            arm_of(rule, "anchored, predicted"),
            anchored,
            source="this lab",
        ),
        gain(
            f"not by marking alone, {rule}",
            f"Coupled IDs do better than the same IDs shuffled among the same tokens ({rule}).",
            coupled,
            arm_of(rule, "anchored, shuffled"),
            source="this lab",
        ),
    ]


CLAIMS = tuple(claim for rule in RULES for claim in _claims(rule))


def figure(evidence: Evidence) -> Figure:
    """Curves of all arms for each rule, and where they are at four times the trained length."""
    rows = evidence.rows
    looks = looks_of(list(KINDS))
    with styled():
        chart, axes = panels(len(RULES) + 1, height=2.9)
        for ax, rule in zip(axes, RULES, strict=False):
            curves = {kind: rows.filter(pl.col("arm") == arm_of(rule, kind)) for kind in KINDS}
            words = "normalized accuracy" if ax is axes[0] else ""
            draw_by_length(ax, curves, looks, title=f"{rule} of three fixed positions", words=words)
        same_height(axes[:-1])
        last = axes[-1]
        for place, rule in enumerate(RULES):
            for index, (kind, style) in enumerate(looks.items()):
                interval = mean_value(rows, arm_of(rule, kind), FAR)
                draw_interval(last, place + 0.11 * (index - len(looks) // 2), interval, style)
        levels(last)
        last.set_xticks(range(len(RULES)), list(RULES))
        last.set_xlim(-0.5, len(RULES) - 0.5)
        last.set_ylim(-0.4, 1.4)
        last.set_title(f"at length {FAR}: mean, 95 % interval", fontsize=10)
        legend_below(chart, looks)
    return chart


study = Study(
    name="locality_repair",
    title="What fails far from the query, and what coupled position IDs repair",
    question=(
        "A decoder of two layers with RoPE is trained on lengths up to 24 to combine three tokens at fixed "
        "places: at distances of at most 8 from the query (recent), or among the first 8 (anchored). Anchored "
        "places move away from the query as length grows. Coupled IDs are to make up for it: the j-th relevant "
        "token has ID j at every length, the query the next one, all others none. They stand in place of RoPE, "
        "and in one arm beside it. The same IDs shuffled among the same tokens, and no positions at all, are the "
        "controls."
    ),
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=("normalized_accuracy",),
)
