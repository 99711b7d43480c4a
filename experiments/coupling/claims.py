"""The claims: what the number of a seed is, and what is asked of it."""

from collections.abc import Callable
from functools import partial
from statistics import fmean

from sparsity_lab.analysis import Replicates, paired_differences
from sparsity_lab.studies import Claim, Evidence, MostSeeds, Outcomes, numbers_at

from .arms import GIVEN, PARTS, PREDICTED, WITHOUT, arm

__all__ = ["BETTER", "CLAIMS", "CLOSE", "EXACT", "better", "close", "tasks"]

EXACT = "free_exact_match"
POINTS, WORTH, MORE, MOST = 0.05, 0.5, 0.2, 3
"""How far predicted IDs may be below given ones, what they must reach themselves, how far they must be above none,
and on how many tasks."""
CLOSE, BETTER = "headline_ppc_close_to_given_ids", "headline_ppc_above_no_ids"

Good = Callable[[Evidence, str], dict[int, bool]]
"""Whether a seed has what is asked on a task, by seed."""


def _exact(evidence: Evidence, label: str, name: str) -> Replicates:
    return numbers_at(evidence.rows, arm(label, name), PARTS[label].longest, EXACT)


def close(evidence: Evidence, label: str) -> dict[int, bool]:
    """Whether predicted IDs are close to given ones, and right more often than not."""
    predicted = _exact(evidence, label, PREDICTED)
    below = paired_differences(_exact(evidence, label, GIVEN), predicted)
    return {seed: number <= POINTS and predicted[seed] >= WORTH for seed, number in below.items()}


def better(evidence: Evidence, label: str) -> dict[int, bool]:
    """Whether predicted IDs are that much above none."""
    above = paired_differences(_exact(evidence, label, PREDICTED), _exact(evidence, label, WITHOUT))
    return {seed: number >= MORE for seed, number in above.items()}


def tasks(good: Good, evidence: Evidence) -> Replicates:
    """On how many of the tasks it is so, of the seeds that have run on all."""
    each = [good(evidence, label) for label in PARTS]
    shared = set(each[0]).intersection(*each[1:])
    return {seed: float(sum(one[seed] for one in each)) for seed in sorted(shared)}


def _means(evidence: Evidence, label: str, names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {fmean(_exact(evidence, label, name).values()):.2f}" for name in names)


def _tasks(good: Good, other: str, evidence: Evidence) -> Outcomes:
    each = []
    for label in PARTS:
        seeds = good(evidence, label)
        means = _means(evidence, label, (PREDICTED, other))
        each.append(f"{label} in {sum(seeds.values())} of {len(seeds)} seeds ({means})")
    return Outcomes(tasks(good, evidence), "tasks", f"So on {'; '.join(each)}. In brackets: mean exact match.")


def _difference(label: str, other: str, evidence: Evidence) -> Outcomes:
    values = [_exact(evidence, label, one) for one in (PREDICTED, other)]
    detail = f"Mean exact match: {_means(evidence, label, (PREDICTED, other))}."
    return Outcomes(paired_differences(*values), "of exact match", detail)


LONGEST = "free exact match at four times the longest trained length"


def _count_claim(name: str, statement: str, good: Good, other: str, words: str) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source="this lab",
        outcome=f"The number of tasks, of {len(PARTS)}, on which {words}, in {LONGEST}.",
        numbers=partial(_tasks, good, other),
        criterion=MostSeeds(at_least=MOST),
        arms=tuple(arm(label, one) for label in PARTS for one in (PREDICTED, other)),
    )


def _task_claim(label: str, words: str, other: str, least: float) -> Claim:
    return Claim(
        name=f"{label}: {words}",
        statement=f"{label.capitalize()}: predicted IDs are {words} at four times the trained length.",
        source="this lab",
        outcome=f"{arm(label, PREDICTED)} minus {other}: difference of {LONGEST}, paired by seed.",
        numbers=partial(_difference, label, other),
        criterion=MostSeeds(at_least=least),
        arms=(arm(label, PREDICTED), arm(label, other)),
    )


CLAIMS = (
    _count_claim(
        CLOSE,
        f"In more than half of the seeds predicted IDs are within {POINTS} of given ones at four times the trained "
        f"length on at least {MOST} of {len(PARTS)} tasks.",
        close,
        GIVEN,
        f"predicted IDs are at most {POINTS} below given ones and themselves at least at {WORTH}",
    ),
    _count_claim(
        BETTER,
        f"In more than half of the seeds predicted IDs are at least {MORE} above no IDs at four times the trained "
        f"length on at least {MOST} of {len(PARTS)} tasks.",
        better,
        WITHOUT,
        f"predicted IDs are at least {MORE} above no IDs",
    ),
    *(_task_claim(label, "close to given ones", GIVEN, -POINTS) for label in PARTS),
    *(_task_claim(label, "above none", WITHOUT, MORE) for label in PARTS),
)
