"""The rules by which claims are decided.

Every rule has two steps: a number for each seed (a level, a difference of two arms, a share, a slope, a rank
correlation), then ``decided``, the one place where such numbers become a verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from scipy import stats

from sparsity_lab.analysis import Interval, Replicates, mean_interval, paired
from sparsity_lab.studies.claim import Claim, Decision, judged
from sparsity_lab.studies.drops import differences_at, learned_words, mean_value, slopes
from sparsity_lab.studies.evidence import Evidence

__all__ = [
    "ABOVE_ZERO",
    "advantages",
    "decide_difference",
    "decide_slope",
    "decided",
    "difference_claim",
    "growths",
    "held_above",
    "means_listed",
    "rank_correlations",
    "shares_of_way",
    "slope_claim",
    "undecided",
]


def held_above(value: float) -> str:
    """``judged`` in words, the end of a rule."""
    return (
        f"Held if the 95 % interval of the mean over seeds lies above {value:g}, did not hold if it lies at or below "
        f"{value:g}, else not decided."
    )


ABOVE_ZERO = held_above(0)

_WORDS = {"value": "normalized accuracy", "drop": "drop of normalized accuracy"}


def decided(
    numbers: Replicates,
    unit: str,
    detail: str = "",
    *,
    above: float = 0.0,
    below: float | None = None,
    at_most: float | None = None,
    over: str = "seeds",
) -> Decision:
    """The verdict on the mean of these numbers, one for each seed, by ``judged``.

    Args:
        over: what the numbers are of, where it is not seeds.
    """
    interval = mean_interval(list(numbers.values()))
    verdict = judged(interval, above=above, below=below, at_most=at_most)
    return Decision(verdict, interval, unit, detail, over)


def undecided(decision: Decision, why: str = "") -> Decision:
    """A decision whose rule says that nothing can be decided, whatever the interval; the reason goes first."""
    return replace(decision, verdict="not decided", detail=f"{why} {decision.detail}".strip())


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


def decide_slope(rows: pl.DataFrame, arm: str, length: int, at: Mapping[str, float]) -> Decision:
    """Whether the drop to ``length`` grows with ``at``, a number for each condition."""
    seeds = rows.filter(pl.col("arm") == arm)["seed"].n_unique()
    each = []
    for condition in at:
        drop = mean_value(rows, arm, length, "drop", [condition])
        each.append(f"{condition} {_number(drop)} ({drop.count} of {seeds})")
    detail = f"mean drop, and how many seeds learned: {', '.join(each)}."
    return decided(slopes(rows, arm, length, at), "of drop for each more k", detail)


def decide_difference(
    rows: pl.DataFrame,
    arm: str,
    minus: str,
    length: int,
    column: str = "value",
    conditions: Sequence[str] | None = None,
) -> Decision:
    """Whether ``arm`` is above ``minus`` at ``length`` in a column of ``values_at``."""
    parts = [
        f"{one} {_number(mean_value(rows, one, length, column, conditions))} ({learned_words(rows, one, conditions)})"
        for one in (arm, minus)
    ]
    differences = differences_at(rows, arm, minus, length, column, conditions)
    return decided(differences, _WORDS[column], f"{_WORDS[column]}: {', '.join(parts)}.")


def slope_claim(
    name: str, statement: str, arm: str, at: Mapping[str, float], *, lengths: tuple[int, int], source: str
) -> Claim:
    """The claim that the drop between two lengths grows with ``at``."""

    def decide(evidence: Evidence) -> Decision:
        return decide_slope(evidence.rows, arm, lengths[1], at)

    rule = (
        f"For each seed, the least-squares slope in k of the drop of normalized accuracy from length {lengths[0]} to "
        f"{lengths[1]}, over the evaluated k that it learned (at least three). {ABOVE_ZERO}"
    )
    return Claim(name=name, statement=statement, source=source, rule=rule, decide=decide)


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
    what = f"{_WORDS[column]} " + (
        f"from length {lengths[0]} to {lengths[1]}" if column == "drop" else f"at length {lengths[1]}"
    )
    rule = (
        f"{arm} minus {minus}: difference of the {what}, paired by seed (and by k where one model is evaluated at "
        f"several), over what both learned. {ABOVE_ZERO}"
    )

    def decide(evidence: Evidence) -> Decision:
        return decide_difference(evidence.rows, arm, minus, lengths[1], column, conditions)

    return Claim(name=name, statement=statement, source=source, rule=rule, decide=decide)


def _number(interval: Interval) -> str:
    return "not learned" if interval.estimate is None else f"{interval.estimate:.2f}"
