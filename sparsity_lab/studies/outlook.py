"""``outlook``: an estimate of the seeds and core-minutes that a claim still needs."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from sparsity_lab.studies.claim import Claim, Decision
from sparsity_lab.studies.criteria import Criterion, MostSeeds
from sparsity_lab.studies.e_values import ALPHA

_MOST_SEEDS = 200
"""The largest number of seeds in an outlook."""
_FEWEST = 3
"""The fewest numbers that show a spread."""


@dataclass(frozen=True)
class Outlook:
    """The seeds and core-minutes that a claim still needs, if new seeds are like those so far.

    Attributes:
        seeds: the number of seeds in each arm. None if it is unknown: there are too few seeds, or the claim would
            need too many.
        core_minutes: the cost of these seeds; None if it is unknown.
    """

    seeds: int | None
    core_minutes: float | None


def outlook(claim: Claim, decision: Decision, primary: int, rows: pl.DataFrame) -> Outlook:
    """The outlook of a claim, if it is the only decided one of the ``primary`` claims of its study."""
    if decision.cannot_tell:
        return Outlook(None, None)
    bound = (primary if decision.primary else 1) / ALPHA
    seeds = _seeds_needed(claim.criterion, list(decision.outcomes.numbers.values()), bound)
    each = core_minutes_of_a_seed(rows, claim.arms)
    return Outlook(seeds, None if seeds is None or each is None else seeds * each)


def core_minutes_of_a_seed(rows: pl.DataFrame, arms: Iterable[str]) -> float | None:
    """The mean cost of one seed of all these arms over the finished runs. Parent runs that several arms share are
    counted once. None if an arm has no finished run with a clock."""
    total, parents = 0.0, dict[float, float]()
    for arm in arms:
        runs = rows.filter(pl.col("arm") == arm).unique("run", maintain_order=True)
        if "seconds" not in runs.columns or runs["seconds"].null_count() == runs.height:
            return None
        total += _mean(runs["seconds"])
        # Arms with the same parents have the same times for them.
        parents[round(runs["parent_seconds"][0] or 0.0, 3)] = _mean(runs["parent_seconds"])
    return (total + sum(parents.values())) / 60


def _mean(values: pl.Series) -> float:
    known: list[float] = values.drop_nulls().to_list()
    return sum(known) / len(known) if known else 0.0


def _seeds_needed(criterion: Criterion, numbers: list[float], bound: float) -> int | None:
    """The number of additional seeds that reach the bound in one direction, if the numbers so far repeat in turn."""
    if len(numbers) < (1 if isinstance(criterion, MostSeeds) else _FEWEST):
        return None

    def reaches(more: int) -> bool:
        repeated = numbers * (1 + more // len(numbers)) + numbers[: more % len(numbers)]
        return max(criterion.evidences(repeated)) >= bound

    if not reaches(_MOST_SEEDS):
        return None
    low, high = 0, _MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle + 1, high)
    return low


def total_core_minutes(rows: pl.DataFrame) -> float:
    """The core-minutes of all runs in the rows, without their parents."""
    if "seconds" not in rows.columns:
        return 0.0
    return float(rows.unique("run")["seconds"].sum()) / 60
