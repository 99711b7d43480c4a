"""Pairs of arms that theory has a word on, and what their drops say about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsity_lab.analysis.drop import Drop
from sparsity_lab.analysis.pairing import Difference
from sparsity_lab.analysis.runs import kind_of, natural_key
from sparsity_lab.settings.markup import number, signed_interval

__all__ = ["Comparison", "comparison_words", "comparisons_of", "overall_words"]


@dataclass(frozen=True)
class Comparison:
    """Two arms that differ in one thing, and what theory expects of them.

    Attributes:
        difference: drop of the arm that is expected to drop more, minus drop of the other.
        expected: whether anything is expected; if not, the two are merely compared.
        less, more: what the arm that is expected to drop less, and the other, are in all comparisons of this kind.
    """

    difference: Difference
    expected: bool
    less: str
    more: str


def comparisons_of(drops: Drop, position: str | None) -> list[Comparison]:
    """The comparisons that theory has a word on, between arms that differ in one column only.

    A larger k is expected to drop more than the next smaller one, under any position scheme; ``Anchored`` is
    expected to drop more than ``Recent`` with RoPE, and is merely compared with it under other schemes.
    """
    rows = drops.frame().select("arm", *drops.by).to_dicts()
    rope = kind_of(f"{position}()" if position and "(" not in position else position) == "RoPE"
    found = []
    for of in rows:
        for minus in rows:
            changed = [name for name in drops.by if of[name] != minus[name]]
            if changed == ["task.k"] and _next_smaller(minus["task.k"], of["task.k"], [r["task.k"] for r in rows]):
                difference = drops.difference(of["arm"], minus["arm"])
                found.append(Comparison(difference, True, "the smaller k", "the larger"))
            if changed == ["task.locality"]:
                kinds = kind_of(of["task.locality"]), kind_of(minus["task.locality"])
                if kinds == ("Anchored", "Recent"):
                    difference = drops.difference(of["arm"], minus["arm"])
                    found.append(Comparison(difference, rope, "Recent", "Anchored"))
    return found


def overall_words(comparisons: Sequence[Comparison], position: str | None, *, lengths: bool = True) -> str:
    """What several comparisons of one kind say together, in one sentence; names the position scheme.

    ``With RoPE, the smaller k dropped less than the larger in 3 of 4 pairs; the interval decides none of them, so
    the expected order is not established here.`` A single comparison is said with its numbers.
    """
    if len(comparisons) == 1:
        return comparison_words(comparisons[0], position, lengths=lengths)
    first = comparisons[0]
    intervals = [c.difference.interval for c in comparisons if c.difference.interval.estimate is not None]
    scheme = f"With {position}, " if position else ""
    expected = first.expected
    if not intervals:
        tail = f"; whether {first.less} drops less, as expected, is neither seen nor ruled out" if expected else ""
        return f"{scheme}none of the {len(comparisons)} pairs of {first.less} and {first.more} can be compared{tail}."
    count = len(intervals)
    apart = len(comparisons) - count
    less = sum(i.estimate is not None and i.estimate > 0 for i in intervals)
    decided = [i for i in intervals if i.decided]
    agree = sum(i.estimate is not None and i.estimate > 0 for i in decided)
    against = len(decided) - agree
    all_agree = less == count > 1
    pairs = f"all {count} pairs" if all_agree else f"{less or 'none'} of {count} pair{'s' if count > 1 else ''}"
    left = f" ({apart} more cannot be compared)" if apart else ""
    seen = f"{scheme}{first.less} dropped less than {first.more} in {pairs}{left}"
    if not decided:
        verdict = "the intervals decide none of them"
    elif agree == count:
        verdict = "the intervals decide all of them"
    else:
        sides = [f"{agree} that way"] * bool(agree) + [f"{against} the other way"] * bool(against)
        verdict = f"the intervals decide {' and '.join(sides)}"
    if not expected:
        return f"{seen}; {verdict}."
    if against:
        order = "the expected order does not show: there, the opposite does"
    elif agree == len(comparisons):
        return f"{seen}, as expected; {verdict}."
    else:
        order = "the expected order is not established" + (" in the others" if agree else " here")
    return f"{seen}; {verdict}, so {order}."


def comparison_words(
    comparison: Comparison, position: str | None, *, lengths: bool = True, brief: bool = False
) -> str:
    """Which of two arms dropped less, by how much, and whether that is decided; names the position scheme.

    ``With RoPE, Recent dropped less than Anchored by 0.11 [−1.34, 1.57] (3 seeds paired); the interval contains 0, so
    the expected order is not established here.``

    Args:
        lengths: say over which lengths; to be left out where that has been said.
        brief: the numbers and the verdict only, for a list whose reader knows what is expected.
    """
    difference, expected = comparison.difference, comparison.expected and not brief
    interval = difference.interval
    scheme = f"With {position}, " if position else ""
    less, more = difference.minus, difference.of
    if interval.estimate is None:
        order = f"; the expected order ({less} drops less) is neither seen nor ruled out" if expected else ""
        return f"{scheme}{less} and {more} cannot be compared: {difference.reason}{order}."
    as_expected = interval.estimate >= 0
    sign = 1 if as_expected else -1
    low, high = [None if end is None else sign * end for end in (interval.low, interval.high)][::sign]
    pairs = f"{difference.pairs} seed{'s' if difference.pairs != 1 else ''} paired"
    left = f", {difference.unpaired} left without a pair" if difference.unpaired else ""
    where = f", from length {difference.trained_length} to {difference.length}" if lengths else ""
    numbers = f"{number(abs(interval.estimate))} {signed_interval(low, high)} ({pairs}{left}{where})"
    first, second = (less, more) if as_expected else (more, less)
    seen = f"{scheme}{first} dropped less than {second} by {numbers}"
    if interval.decided:
        if not expected:
            return f"{seen}: decided."
        return (
            f"{seen}, as expected."
            if as_expected
            else f"{seen}; the expected order does not show, the opposite does."
        )
    if brief:
        return f"{seen}: undecided."
    why = "one pair has no interval" if interval.low is None else "the interval contains 0"
    order = "the expected order is not established here" if expected else "which drops less is undecided"
    return f"{seen}; {why}, so {order}."


def _next_smaller(smaller: Any, larger: Any, values: Sequence[Any]) -> bool:
    order = sorted(set(values), key=lambda value: natural_key([value]))
    return order.index(larger) == order.index(smaller) + 1
