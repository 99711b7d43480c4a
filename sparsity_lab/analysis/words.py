"""Sentences made of numbers: what a report says, and no more than the numbers say."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsity_lab.analysis.drop import no_drop_reason
from sparsity_lab.analysis.runs import NOT_JUDGED, learned_words
from sparsity_lab.settings.markup import number, signed_interval

__all__ = ["counts_words", "drop_words", "lengths_words", "listed", "others_words"]


def counts_words(
    finished: int,
    learned: int,
    failed: int,
    unfinished: int = 0,
    threshold: float | None = 0.9,
    judged: int | None = None,
) -> str:
    """How many runs finished, learned and failed.

    Args:
        threshold: of learning; None if the runs do not share one.
        judged: how many of the finished runs can be said to have learned or not; all, if None.
    """
    judged = finished if judged is None else judged
    waiting = f", {unfinished} not finished yet" if unfinished else ""
    total = _runs(finished + failed + unfinished)
    parts = [f"{total} in all: {finished or 'none'} finished, {failed or 'none'} failed{waiting}."]
    if finished:
        least = "its run's threshold" if threshold is None else f"{threshold:g}"
        measure = f"(normalized accuracy of at least {least} at every evaluated trained length)"
        if learned == finished:
            parts.append(f"Every finished run learned its task {measure}.")
        elif judged == 0:
            parts.append(f"The finished are {NOT_JUDGED}.")
        else:
            others = [f"{judged - learned} never did"] if judged > learned else []
            others += [f"{finished - judged} {'is' if finished - judged == 1 else 'are'} {NOT_JUDGED}"] * (
                finished > judged
            )
            words = listed([f"{learned or 'none'} learned their task {measure}", *others])
            parts.append(f"Of the finished, {words}.")
    if judged - learned:
        parts.append("Runs that never learned are counted apart and enter no median, drop or interval.")
    return " ".join(parts)


def others_words(others: int) -> str:
    """How many finished runs lie in the folder without being of this sweep."""
    if others == 1:
        return "1 finished run in this folder belongs to another sweep and is not shown."
    return f"{others} finished runs in this folder belong to other sweeps and are not shown."


def drop_words(
    row: Mapping[str, Any], position: str | None, factor: float, reach: str = "–", *, lengths: bool = True
) -> str:
    """What one arm did, from a row of ``Drop.frame``; names the position scheme.

    ``With RoPE, Recent drops by 0.21 [0.05, 0.37] from length 24 to 96 (2 of 2 runs learned; median reach 48).``

    Args:
        lengths: say from and to which length; to be left out where that has been said of all arms.
    """
    scheme = f"With {position}, " if position else ""
    counts = learned_words(row["learned"], row["judged"], row["runs"])
    if row["judged"] and not row["learned"]:
        return f"{scheme}{row['arm']} was never learned (0 of {_runs(row['runs'])}), so nothing is said of its drop."
    held = "" if reach == "–" else f"; median reach {reach}"
    if row["drop"] is None:
        return f"{scheme}{row['arm']} has no drop: {no_drop_reason(row)} ({counts}{held})."
    interval = "(one run, so no interval)" if row["low"] is None else signed_interval(row["low"], row["high"])
    # The sign as the reader sees it: what rounds to zero neither drops nor rises.
    shown = round(row["drop"], 2)
    moves = f"rises by {number(-shown)}, a drop of {number(shown)}" if shown < 0 else f"drops by {number(shown)}"
    where = f" {_from_to(row, factor)}" if lengths else ""
    return f"{scheme}{row['arm']} {moves} {interval}{where} ({counts}{held})."


def lengths_words(rows: Sequence[Mapping[str, Any]], trained: tuple[int, int] | None, factor: float) -> str:
    """Where the arms of a panel were trained and over which lengths their drops are taken; said once if they agree.

    Args:
        rows: of ``Drop.frame``; none, if nothing is said of drops.
        trained: smallest and largest trained length; None if the arms do not share them.
    """
    if trained is None:
        words = "Trained lengths differ by arm"
    elif trained[0] < trained[1]:
        words = f"Trained on lengths {trained[0]} to {trained[1]}"
    else:
        words = f"Trained on length {trained[0]}"
    if not rows:
        return f"{words}."
    if not same_lengths(rows):
        return f"{words}; the lengths of the drops differ by arm."
    if rows[0]["length"] is None:
        return f"{words}; {no_drop_reason({**rows[0], 'judged': 0})}."
    return f"{words}; drops are {_from_to(rows[0], factor)}."


def same_lengths(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all drops are taken over the same lengths."""
    return len({(row["trained_length"], row["length"]) for row in rows}) == 1


def _from_to(row: Mapping[str, Any], factor: float) -> str:
    wanted = factor * row["trained_length"]
    nearest = "" if row["exact"] else f" (the evaluated length nearest to {wanted:g})"
    return f"from length {row['trained_length']} to {row['length']}{nearest}"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"
