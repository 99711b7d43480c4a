"""Rules that several studies share: a slope, or a difference of two arms, judged by its interval over seeds."""

from collections.abc import Mapping, Sequence

import polars as pl

from sparsity_lab.analysis import Interval
from sparsity_lab.studies.claim import Claim, Decision, judged
from sparsity_lab.studies.drops import learned_words, mean_value, paired_difference, slope, values_at
from sparsity_lab.studies.evidence import Evidence

__all__ = ["ABOVE_ZERO", "decide_difference", "decide_slope", "difference_claim", "held_above", "slope_claim"]


def held_above(value: float) -> str:
    """``judged`` in words, the end of a rule."""
    return (
        f"Held if the 95 % interval of the mean over seeds lies above {value:g}, did not hold if it lies at or below "
        f"{value:g}, else not decided."
    )


ABOVE_ZERO = held_above(0)

_WORDS = {"value": "normalized accuracy", "drop": "drop of normalized accuracy"}


def decide_slope(rows: pl.DataFrame, arm: str, length: int, at: Mapping[str, float]) -> Decision:
    """Whether the drop to ``length`` grows with ``at``, a number for each condition."""
    interval = slope(rows, arm, length, at)
    seeds = rows.filter(pl.col("arm") == arm)["seed"].n_unique()
    each = []
    for condition in at:
        drop = mean_value(rows, arm, length, "drop", [condition])
        each.append(f"{condition} {_number(drop)} ({drop.count} of {seeds})")
    detail = f"mean drop, and how many seeds learned: {', '.join(each)}."
    return Decision(judged(interval), interval, "of drop for each more k", detail)


def decide_difference(
    rows: pl.DataFrame,
    arm: str,
    minus: str,
    length: int,
    column: str = "value",
    conditions: Sequence[str] | None = None,
) -> Decision:
    """Whether ``arm`` is above ``minus`` at ``length`` in a column of ``values_at``."""
    first, second = (values_at(rows, one, length, conditions) for one in (arm, minus))
    interval = paired_difference(first, second, column)
    parts = [
        f"{one} {_number(mean_value(rows, one, length, column, conditions))} ({learned_words(rows, one, conditions)})"
        for one in (arm, minus)
    ]
    return Decision(judged(interval), interval, _WORDS[column], f"{_WORDS[column]}: {', '.join(parts)}.")


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
