"""``locality_repair``: do coupled position IDs repair what fails far from the query?"""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import Replicates, by_seed, looks_of, styled
from sparsity_lab.generators import Anchored, Lookup, Majority, Planted, Recent, Rule
from sparsity_lab.models import Coupling, Decoder, NoPE, Oracle, PositionScheme, Predicted, RoPE, Shuffled
from sparsity_lab.studies import (
    Arm,
    Claim,
    Evidence,
    MostSeeds,
    Outcomes,
    Size,
    Study,
    difference_claim,
    draw_by_length,
    how_far,
    learned_words,
    means_at,
    means_listed,
    panels,
    same_height,
    seeded,
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


def arms(size: Size) -> dict[str, Arm]:
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
            made[arm_of(rule_name, kind)] = Arm(seeded(run, "task.position_seed"), seeds)
    return made


def both(kind: str) -> tuple[str, ...]:
    """The arms of a kind, one for each rule."""
    return tuple(arm_of(rule, kind) for rule in RULES)


def lost(evidence: Evidence, kind: str, *, only_learned: bool = True) -> Replicates:
    """The drop of each seed, the mean over the rules that it learned, or over both."""
    drops = {arm: means_at(evidence.rows, arm, FAR, "drop", only_learned=only_learned) for arm in both(kind)}
    return by_seed({(seed, arm): drop for arm, own in drops.items() for seed, drop in own.items()})


def _lost_claim(name: str, statement: str, kind: str, criterion: MostSeeds) -> Claim:
    def numbers(evidence: Evidence) -> Outcomes:
        words = []
        for arm in both(kind):
            drop = means_listed({arm: means_at(evidence.rows, arm, FAR, "drop")}, missing="nothing")
            words.append(f"{drop} ({learned_words(evidence.rows, arm)})")
        every = means_listed({"Over all seeds, learned or not:": lost(evidence, kind, only_learned=False)})
        return Outcomes(lost(evidence, kind), "of accuracy", f"Mean drop: {', '.join(words)}. {every}.")

    return Claim(
        name=name,
        statement=statement,
        source="this lab",
        outcome=f"Drop of normalized accuracy from length {TRAINED} to {FAR} of {' and '.join(both(kind))}: the mean "
        "over what the seed learned of them.",
        numbers=numbers,
        criterion=criterion,
        arms=both(kind),
    )


def _gain(name: str, statement: str, kind: str, minus: str, source: str = "this lab") -> Claim:
    return difference_claim(name, statement, both(kind), both(minus), lengths=(TRAINED, FAR), source=source)


IN_PLACE, BESIDE = "anchored, coupled", "anchored, coupled beside RoPE"
CLAIMS = (
    _gain(
        "repaired",
        "Coupled IDs instead of RoPE reduce the loss for places at the start.",
        IN_PLACE,
        "anchored",
        "this lab, after Golowich et al., arXiv 2502.16792",
    ),
    _lost_claim(
        "repaired wholly",
        "With coupled IDs instead of RoPE, at most a quarter is lost at four times the trained length.",
        IN_PLACE,
        MostSeeds(at_most=LOST),
    ),
    _gain("in place of RoPE", "Coupled IDs lose less without RoPE than together with it.", IN_PLACE, BESIDE),
    _gain(
        "by marking alone",
        "The same IDs, shuffled among the same tokens, also reduce the loss for places at the start.",
        "anchored, shuffled",
        "anchored",
    ),
    _lost_claim(
        "far fails",
        "With RoPE, places at the start lose at least a quarter at four times the trained length.",
        "anchored",
        MostSeeds(at_least=LOST),
    ),
    _lost_claim(
        "near fails",
        "With RoPE, places near the query lose at least a quarter at four times the trained length.",
        "recent",
        MostSeeds(at_least=LOST),
    ),
    _gain(
        "order of the IDs",
        "Coupled IDs do better than the same IDs shuffled among the same tokens.",
        IN_PLACE,
        "anchored, shuffled",
    ),
)


NAMES = {kind: kind.removeprefix("anchored, ") for kind in KINDS}
"""In the figure and its title."""


def finding(evidence: Evidence) -> str:
    """How far each kind carries, over both rules."""
    of_kind = {name: evidence.rows.filter(pl.col("arm").is_in(both(kind))) for kind, name in NAMES.items()}
    return f"Three fixed places: {how_far(of_kind)}."


def figure(evidence: Evidence) -> Figure:
    """For each rule, the arms without IDs, each followed by its arm with coupled IDs."""
    rows = evidence.rows
    looks = looks_of(list(NAMES.values()))
    plain = [kind for kind, (_, coupling) in KINDS.items() if coupling is None]
    coupled = ["anchored", *(kind for kind in KINDS if kind not in plain)]
    with styled():
        chart, axes = panels(2 * len(RULES), height=2.7)
        for row, rule in enumerate(RULES):
            for column, (kinds, what) in enumerate(((plain, "no IDs"), (coupled, "coupled IDs"))):
                curves = {NAMES[kind]: rows.filter(pl.col("arm") == arm_of(rule, kind)) for kind in kinds}
                words = "" if column else "normalized accuracy"
                draw_by_length(axes[2 * row + column], curves, looks, title=f"{rule} of {K}, {what}", words=words)
        same_height(axes)
    return chart


study = Study(
    name="locality_repair",
    title="What fails far from the query, and what coupled position IDs repair",
    question=(
        "A decoder of two layers with RoPE is trained on lengths up to 24 to combine three tokens at fixed places. "
        "These are at distances of at most 8 from the query (recent), or among the first 8 (anchored). Anchored "
        "places move away from the query as the length grows. Coupled IDs can make up for that: at every length the "
        "j-th relevant token has ID j, the query has the next one, and all others have none. They replace RoPE, and "
        "one arm has both. The controls are the same IDs, shuffled among the same tokens, and no positions at all."
    ),
    arms=arms,
    claims=CLAIMS,
    primary=("repaired", "repaired wholly", "in place of RoPE", "by marking alone"),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
)
