"""The claims and their rules. Quality is accuracy, on text the negative loss in nats a byte."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, paired_differences
from sparsity_lab.studies import (
    ABOVE_ZERO,
    Claim,
    Decision,
    Evidence,
    decided,
    held_above,
    means_listed,
    shares_of_way,
)

from .arms import BUDGETS, MIDDLE, NATIVE, TASKS, TEXT, dense
from .measure import DENSE, ORACLE, OWN, RANDOM, TOP_K, TOP_P, UNTRAINED, WINDOW

__all__ = ["CLAIMS", "found", "learned"]

ALLOWED = 0.05
"""How much quality a retrofit may cost: five points of accuracy, or 0.05 nats."""


def learned(evidence: Evidence, arm: str) -> list[int]:
    """The seeds that learned: normalized accuracy of at least 0.9 at the trained lengths, or where there is no
    optimum, as on text, a loss below that of the law of single bytes."""
    own = evidence.rows.filter(pl.col("arm") == arm)
    by_seed = own.group_by("seed").agg(
        pl.col("learned").all(),
        unknown=pl.col("learned").is_null().any(),
        better=(pl.col("loss") < pl.col("chance_loss")).all(),
    )
    return by_seed.filter(pl.when("unknown").then("better").otherwise("learned"))["seed"].sort().to_list()


def found(evidence: Evidence, arm: str, column: str, **where: object) -> Replicates:
    """A measure of an arm by seed, of the seeds that learned."""
    own = evidence.measured.filter(pl.col("arm") == arm).filter(**where)
    own = own.filter(pl.col("seed").is_in(learned(evidence, arm)))
    return by_replicate(own, column)


def quality(evidence: Evidence, task: str, choice: str, k: int | None = MIDDLE) -> Replicates:
    """Of a dense run under a choice of keys."""
    where: dict[str, object] = {"what": "budget", "choice": choice} | ({} if k is None else {"k": k})
    return found(evidence, dense(task), "quality", **where)


def compared(values: Mapping[str, Replicates], task: str, above: float = 0.0) -> Decision:
    """The first less the second of two, against a value."""
    words = means_listed(values, 3)
    detail = f"Means: {words}." if words else "No dense run learned."
    return decided(paired_differences(*values.values()), _unit(task), detail, above=above)


def decide_choice(task: str, choice: str, minus: str, evidence: Evidence) -> Decision:
    """Whether one choice is better than another at the middle budget."""
    return compared({one: quality(evidence, task, one) for one in (choice, minus)}, task)


def decide_cost(task: str, evidence: Evidence) -> Decision:
    """Whether the retrofit costs no more than is allowed."""
    values = {TOP_K: quality(evidence, task, TOP_K), DENSE: quality(evidence, task, DENSE, None)}
    return compared(values, task, above=-ALLOWED)


def decide_oracle(evidence: Evidence) -> Decision:
    """What share of the way from random blocks to the oracle's, in retained mass, the selector goes."""
    where = {"what": "budget", "k": MIDDLE}
    chance, own, best = (
        found(evidence, dense(TEXT), "mass", choice=choice, **where) for choice in (RANDOM, TOP_K, ORACLE)
    )
    words = means_listed({RANDOM: chance, TOP_K: own, ORACLE: best}, 3)
    detail = f"Retained mass: {words}." if words else ""
    return decided(shares_of_way(chance, own, best), "of the way", detail, above=0.5)


def decide_shares(evidence: Evidence) -> Decision:
    """How much better top-p is than top-k at the same budget, between whose budgets quality is taken as linear."""
    differences = {}
    curve = evidence.measured.filter(arm=dense(TEXT), what="budget")
    for seed in learned(evidence, dense(TEXT)):
        own = curve.filter(seed=seed)
        by_rank = own.filter(choice=TOP_K).sort("budget")
        low, high = by_rank["budget"].min(), by_rank["budget"].max()
        inside = own.filter(pl.col("choice") == TOP_P, pl.col("budget").is_between(low, high))
        if inside.height:
            at_same = np.interp(inside["budget"], by_rank["budget"], by_rank["quality"])
            differences[seed] = float(np.mean(inside["quality"].to_numpy() - at_same))
    return decided(differences, _unit(TEXT))


def decide_layers(evidence: Evidence) -> Decision:
    """Whether switching the first layer alone costs more than switching the last one alone."""
    layers = evidence.measured.filter(arm=dense(TEXT), what="layers")["layers"].unique().to_list()
    alone = sorted((one for one in layers if one.isdigit()), key=int)
    names = (alone[-1], alone[0]) if alone else ("", "")
    values = [found(evidence, dense(TEXT), "quality", what="layers", layers=one) for one in names]
    return compared({"last layer alone": values[0], "first layer alone": values[1]}, TEXT)


def decide_native(above: float, minus: str, evidence: Evidence) -> Decision:
    """Whether training with selection is better than a retrofit, or costs no more than is allowed."""
    own = found(evidence, NATIVE[0], "quality", choice=OWN)
    other = quality(evidence, TEXT, minus, None if minus == DENSE else MIDDLE)
    return compared({NATIVE[0]: own, f"{TEXT}: {minus}": other}, TEXT, above=above)


def _unit(task: str) -> str:
    return "nats a byte" if task == TEXT else "accuracy"


LEARNED = "at the longest trained length, by seed, of the dense runs that learned"


def _choice_claim(task: str, name: str, words: str, choice: str, minus: str) -> Claim:
    return Claim(
        name=f"{task}: {name}",
        statement=f"{task.capitalize()}: {words}.",
        source="this lab",
        rule=f"Quality of {choice} minus that of {minus}, both with {MIDDLE} blocks in all layers, {LEARNED}. "
        f"{ABOVE_ZERO}",
        decide=partial(decide_choice, task, choice, minus),
    )


def _claims_of(task: str) -> tuple[Claim, ...]:
    cost = "0.05 nats a byte" if task == TEXT else "5 points of accuracy"
    return (
        Claim(
            name=f"{task}: retrofit",
            statement=f"{task.capitalize()}: a dense model that is switched to trained top-k in all layers loses "
            f"less than {cost}.",
            source="this lab",
            rule=f"Quality of {TOP_K} with {MIDDLE} blocks in all layers minus that of dense attention, {LEARNED}. "
            f"{held_above(-ALLOWED)}",
            decide=partial(decide_cost, task),
        ),
        _choice_claim(task, "window", "selection beats a window with sinks at equal budget", TOP_K, WINDOW),
        _choice_claim(task, "random", "selection beats random blocks at equal budget", TOP_K, RANDOM),
        _choice_claim(
            task, "training", "a selector trained on the frozen model beats one as it began", TOP_K, UNTRAINED
        ),
        _choice_claim(task, "oracle", "the oracle's blocks are better than those selected", ORACLE, TOP_K),
    )


CLAIMS = (
    *(claim for task in TASKS for claim in _claims_of(task)),
    Claim(
        name="way to the oracle",
        statement="Text: in retained mass, selection goes more than half of the way from random blocks to the "
        "oracle's.",
        source="this lab",
        rule=f"Mass that {TOP_K} keeps less that of {RANDOM}, over that of {ORACLE} less that of {RANDOM}, with "
        f"{MIDDLE} blocks, {LEARNED}. {held_above(0.5)}",
        decide=decide_oracle,
    ),
    Claim(
        name="top-p",
        statement="Text: at equal budget, top-p is better than top-k.",
        source="this lab",
        rule="Quality of trained top-p minus that of trained top-k at the same share of pairs, read off lines "
        f"between those of {', '.join(map(str, BUDGETS))} blocks; the mean over the shares p that fall inside, "
        f"{LEARNED}. {ABOVE_ZERO}",
        decide=decide_shares,
    ),
    Claim(
        name="first layer",
        statement="Text: switching the first layer alone costs more than switching the last one alone.",
        source="this lab, after the practice of keeping first layers dense",
        rule=f"Quality with the last layer alone on {TOP_K} with {MIDDLE} blocks minus that with the first alone, "
        f"{LEARNED}. {ABOVE_ZERO}",
        decide=decide_layers,
    ),
    Claim(
        name="from the start",
        statement="Text: a model that is trained with top-k selection beats a dense one that is switched to it.",
        source="this lab",
        rule=f"Quality of the model trained with {MIDDLE} blocks minus that of {TOP_K} with as many on the dense "
        f"one, {LEARNED}. {ABOVE_ZERO}",
        decide=partial(decide_native, 0.0, TOP_K),
    ),
    Claim(
        name="from the start, beside dense",
        statement="Text: a model that is trained with top-k selection loses less than 0.05 nats a byte to a dense "
        "one.",
        source="this lab",
        rule=f"Quality of the model trained with {MIDDLE} blocks minus that of the dense one, {LEARNED}. "
        f"{held_above(-ALLOWED)}",
        decide=partial(decide_native, -ALLOWED, DENSE),
    ),
)
