"""Sentences made of numbers: what a report says, and no more than the numbers say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsity_lab.analysis.drop import Difference, Drop
from sparsity_lab.analysis.markup import number, signed_interval
from sparsity_lab.analysis.runs import kind_of, natural_key

__all__ = ["Comparison", "comparison_words", "comparisons_of", "counts_words", "drop_words", "listed"]


@dataclass(frozen=True)
class Comparison:
    """Two arms that differ in one thing, and what theory expects of them.

    Attributes:
        difference: drop of the arm that is expected to drop more, minus drop of the other.
        expected: whether anything is expected; if not, the two are merely compared.
    """

    difference: Difference
    expected: bool


def counts_words(finished: int, learned: int, failed: int, unfinished: int = 0, threshold: float | None = 0.9) -> str:
    """How many runs finished, learned and failed; ``threshold`` is None if the runs do not share one."""
    waiting = f", {unfinished} not finished yet" if unfinished else ""
    total = _runs(finished + failed + unfinished)
    parts = [f"{total} in all: {finished or 'none'} finished, {failed or 'none'} failed{waiting}."]
    if finished:
        least = "its run's threshold" if threshold is None else f"{threshold:g}"
        measure = f"(normalised accuracy of at least {least} at every evaluated trained length)"
        if learned == finished:
            parts.append(f"Every finished run learned its task {measure}.")
        else:
            never = f"{finished - learned} never did"
            parts.append(f"Of the finished, {learned or 'none'} learned their task {measure} and {never}.")
    if finished - learned:
        parts.append("Runs that never learned are counted apart and enter no median, drop or interval.")
    return " ".join(parts)


def drop_words(row: Mapping[str, Any], position: str | None, factor: float, reach: str = "–") -> str:
    """What one arm did, from a row of ``Drop.frame``; names the position scheme.

    ``With RoPE, Recent drops by 0.21 [0.05, 0.37] from length 24 to 96 (2 of 2 runs learned; median reach 48).``
    """
    scheme = f"With {position}, " if position else ""
    counts = f"{row['learned']} of {_runs(row['runs'])} learned"
    if not row["learned"]:
        return f"{scheme}{row['arm']} was never learned (0 of {_runs(row['runs'])}), so nothing is said of its drop."
    held = "" if reach == "–" else f"; median reach {reach}"
    if row["drop"] is None:
        return f"{scheme}{row['arm']} was not evaluated beyond its trained lengths ({counts}{held})."
    alone = row["low"] is None
    interval = "(one learned run, so no interval)" if alone else signed_interval(row["low"], row["high"])
    # The sign as the reader sees it: what rounds to zero neither drops nor rises.
    shown = round(row["drop"], 2)
    moves = f"rises by {number(-shown)}, a drop of {number(shown)}" if shown < 0 else f"drops by {number(shown)}"
    wanted = factor * row["trained_length"]
    nearest = "" if row["exact"] else f" (the evaluated length nearest to {wanted:g})"
    lengths = f"from length {row['trained_length']} to {row['length']}{nearest}"
    return f"{scheme}{row['arm']} {moves} {interval} {lengths} ({counts}{held})."


def comparisons_of(drops: Drop, position: str | None) -> list[Comparison]:
    """The comparisons that theory has a word on, between arms that differ in one column only.

    A larger k is expected to drop more than the next smaller one, under any position scheme; ``Anchored`` is
    expected to drop more than ``Recent`` with RoPE, and is merely compared with it under other schemes.
    """
    rows = drops.frame().select("arm", *drops.by).to_dicts()
    found = []
    for of in rows:
        for minus in rows:
            changed = [name for name in drops.by if of[name] != minus[name]]
            if changed == ["task.k"] and _next_smaller(minus["task.k"], of["task.k"], [r["task.k"] for r in rows]):
                found.append(Comparison(drops.difference(of["arm"], minus["arm"]), True))
            if changed == ["task.locality"]:
                kinds = kind_of(of["task.locality"]), kind_of(minus["task.locality"])
                if kinds == ("Anchored", "Recent"):
                    rope = kind_of(f"{position}()" if position and "(" not in position else position) == "RoPE"
                    found.append(Comparison(drops.difference(of["arm"], minus["arm"]), rope))
    return found


def comparison_words(comparison: Comparison, position: str | None) -> str:
    """Whether two arms differ as expected, against it, or undecided; names the position scheme."""
    difference = comparison.difference
    scheme = f"With {position}, " if position else ""
    more, less = difference.of, difference.minus
    expectation = f"The expected order ({less} drops less than {more})" if comparison.expected else ""
    interval = difference.interval
    if interval.estimate is None:
        head = f"{scheme}{more} and {less} cannot be compared: there is no seed at which both have a drop."
        return f"{head} {expectation} is neither seen nor ruled out." if expectation else head
    pairs = f"{difference.pairs} seed{'s' if difference.pairs != 1 else ''} paired"
    left = f", {difference.unpaired} left without a pair" if difference.unpaired else ""
    numbers = f"{number(interval.estimate)} {signed_interval(interval.low, interval.high)} ({pairs}{left})"
    measured = f"{scheme}the drop of {more} minus that of {less} is {numbers}"
    if interval.low is None:
        verdict = "one pair has no interval, so it is undecided which drops more."
    elif not interval.decided:
        verdict = "the interval contains 0, so it is undecided which drops more."
    elif interval.estimate > 0:
        return f"{measured}: {less} drops less{', as expected' if comparison.expected else ''}."
    else:
        tail = f" {expectation} does not show; the opposite does." if expectation else ""
        return f"{measured}: {more} drops less.{tail}"
    tail = f" {expectation} is not established here." if expectation else ""
    return f"{measured}; {verdict}{tail}"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _next_smaller(smaller: Any, larger: Any, values: Sequence[Any]) -> bool:
    order = sorted(set(values), key=lambda value: natural_key([value]))
    return order.index(larger) == order.index(smaller) + 1


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"
