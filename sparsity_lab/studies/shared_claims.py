"""What several studies claim, and the numbers by seed that claims are about: differences, growths, shares, slopes and
rank correlations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy import stats

from sparsity_lab.analysis import Interval, Replicates, mean_interval, paired
from sparsity_lab.studies.claim import Claim, Outcomes
from sparsity_lab.studies.criteria import BoundedMean
from sparsity_lab.studies.drops import differences_at, learned_words, mean_value, slopes
from sparsity_lab.studies.evidence import Evidence

__all__ = [
    "advantages",
    "difference_claim",
    "growths",
    "means_listed",
    "rank_correlations",
    "shares_of_way",
    "slope_claim",
]

MATTERS = 0.05
"""A difference of normalized accuracies that matters, where a study names none of its own."""

_WORDS = {"value": "normalized accuracy", "drop": "drop of normalized accuracy"}


def growths(first: Replicates, later: Replicates) -> Replicates:
    """By which share each number has grown: later / first - 1."""
    return paired(lambda one, other: other / one - 1, first, later)


def shares_of_way(start: Replicates, own: Replicates, end: Replicates) -> Replicates:
    """Which share of the way from start to end is gone: (own - start) / (end - start)."""
    return paired(lambda begin, at, goal: (at - begin) / (goal - begin), start, own, end)


def rank_correlations(rows: pl.DataFrame, column: str, other: str, fewest: int) -> Replicates:
    """Spearman's rank correlation of two columns over the arms of each seed that has at least ``fewest`` of them, and
    not one value alone.

    Args:
        rows: one for each arm and ``seed``.
    """
    found = {}
    for (seed,), part in sorted(rows.partition_by("seed", as_dict=True, maintain_order=True).items()):
        first, second = part[column].to_numpy(), part[other].to_numpy()
        if part.height >= fewest and np.ptp(first) > 0 and np.ptp(second) > 0:
            found[seed] = float(stats.spearmanr(first, second).statistic)
    return found


def advantages(rows: pl.DataFrame, column: str, arm: str, others: Sequence[str]) -> tuple[Replicates, list[str]]:
    """Mean of a column over those of the other arms that a seed has, minus that of one arm; and which these were.

    Args:
        rows: one for each arm and ``seed`` that counts.
    """
    found, compared = {}, set()
    for (seed,), part in sorted(rows.partition_by("seed", as_dict=True).items()):
        of = dict(part.select("arm", column).iter_rows())
        known = {name: of[name] for name in others if name in of}
        if arm in of and known:
            found[seed] = sum(known.values()) / len(known) - of[arm]
            compared |= set(known)
    return found, [name for name in others if name in compared]


def means_listed(
    numbers: Mapping[str, Replicates], places: int = 2, *, between: str = "; ", missing: str = ""
) -> str:
    """``elu 2.61; softmax 1.69``: the mean of each; what has no number is left out, or named with ``missing``."""
    words = []
    for name, one in numbers.items():
        mean = mean_interval(list(one.values())).estimate
        if mean is not None:
            # Without the sign of what rounds to zero.
            words.append(f"{name} {round(mean, places) + 0.0:.{places}f}")
        elif missing:
            words.append(f"{name} {missing}")
    return between.join(words)


def slope_claim(
    name: str, statement: str, arm: str, at: Mapping[str, float], *, lengths: tuple[int, int], source: str
) -> Claim:
    """The claim that the drop between two lengths grows with ``at``, a number for each condition."""
    span = max(at.values()) - min(at.values())

    def numbers(evidence: Evidence) -> Outcomes:
        rows = evidence.rows
        seeds = rows.filter(pl.col("arm") == arm)["seed"].n_unique()
        each = []
        for condition in at:
            drop = mean_value(rows, arm, lengths[1], "drop", [condition])
            each.append(f"{condition} {_number(drop)} ({drop.count} of {seeds})")
        detail = f"Mean drop, and how many seeds learned: {', '.join(each)}."
        rises = {seed: slope * span for seed, slope in slopes(rows, arm, lengths[1], at).items()}
        return Outcomes({seed: min(max(rise, -1.0), 1.0) for seed, rise in rises.items()}, "of accuracy", detail)

    return Claim(
        name=name,
        statement=statement,
        source=source,
        outcome=f"For each seed, the least-squares line through the drops of normalized accuracy from length "
        f"{lengths[0]} to {lengths[1]} over {_range_words(at)}, those that it learned (at least three): by how much "
        f"it rises from one end to the other, cut to -1 .. 1.",
        numbers=numbers,
        criterion=BoundedMean(above=0.0, matters=MATTERS),
        arms=(arm,),
    )


def difference_claim(
    name: str,
    statement: str,
    arm: str,
    minus: str,
    *,
    lengths: tuple[int, int],
    source: str,
    column: str = "value",
    conditions: Sequence[str] | None = None,
) -> Claim:
    """The claim that ``arm`` is above ``minus`` in normalized accuracy at the second of two lengths (``value``), or
    in what it loses from the first to the second (``drop``)."""
    measure = f"{_WORDS[column]} " + (
        f"from length {lengths[0]} to {lengths[1]}" if column == "drop" else f"at length {lengths[1]}"
    )

    def numbers(evidence: Evidence) -> Outcomes:
        rows = evidence.rows
        parts = [
            f"{one} {_number(mean_value(rows, one, lengths[1], column, conditions))} "
            f"({learned_words(rows, one, conditions)})"
            for one in (arm, minus)
        ]
        every = mean_interval(list(differences_at(rows, arm, minus, lengths[1], column, conditions, False).values()))
        detail = f"{_WORDS[column]}: {', '.join(parts)}. Difference over all seeds, learned or not: {_number(every)}."
        return Outcomes(differences_at(rows, arm, minus, lengths[1], column, conditions), "of accuracy", detail)

    return Claim(
        name=name,
        statement=statement,
        source=source,
        outcome=f"{arm} minus {minus}: difference of the {measure}, by seed (and by k where one model is evaluated "
        f"at several), over what both learned.",
        numbers=numbers,
        criterion=BoundedMean(above=0.0, matters=MATTERS),
        arms=(arm, minus),
    )


def _range_words(at: Mapping[str, float]) -> str:
    return f"{next(iter(at))} to {list(at)[-1]}"


def _number(interval: Interval) -> str:
    return "not learned" if interval.estimate is None else f"{interval.estimate:.2f}"
