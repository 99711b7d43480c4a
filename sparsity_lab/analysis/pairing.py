"""Drops of runs, and the difference between the drops of two arms, paired by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from sparsity_lab.analysis.differences import by_replicate, paired_differences
from sparsity_lab.analysis.runs import ArmRuns, common_lengths, nearest_length, trained_range
from sparsity_lab.analysis.statistics import Interval, mean_interval


@dataclass(frozen=True)
class Difference:
    """Drop of one arm minus drop of another, over the same lengths and paired by seed.

    Attributes:
        of, minus: labels of the two arms.
        interval: mean over the pairs with Student's interval; empty if the two cannot be compared.
        pairs: number of replicates (equal in every seed) of which both arms have a drop.
        unpaired: number of those of which only one has.
        trained_length, length: from and to where both drops are taken; None if there are no such lengths.
        reason: why the two cannot be compared; None if they can.
    """

    of: str
    minus: str
    interval: Interval
    pairs: int = 0
    unpaired: int = 0
    trained_length: int | None = None
    length: int | None = None
    reason: str | None = None


def drop_lengths(rows: pl.DataFrame, factor: float) -> tuple[int | None, int | None]:
    """The largest trained length, and the evaluated length beyond it that is nearest to ``factor`` times it; None
    where there is none. Both are lengths at which all the runs of these rows were evaluated."""
    trained = common_lengths(rows, trained=True)
    if not trained:
        return None, None
    beyond = [length for length in common_lengths(rows) if length > trained[-1]]
    return trained[-1], nearest_length(beyond, factor * trained[-1])


def drops_of(
    arm: ArmRuns, measure: str, trained_length: int | None, length: int | None, seeds: Sequence[str]
) -> pl.DataFrame:
    """One row per run that counts: ``run``, its ``seeds``, ``at_trained``, ``at_length``, ``drop``. No rows without
    both lengths."""
    rows = arm.counted_rows
    ends = [
        rows.filter(pl.col("length") == pl.lit(at, pl.Int64)).select("run", *seeds, pl.col(measure).alias(name))
        for at, name in ((trained_length, "at_trained"), (length, "at_length"))
    ]
    both = ends[0].join(ends[1].drop(*seeds), on="run").drop_nulls(["at_trained", "at_length"]).sort("run")
    return both.with_columns(drop=pl.col("at_trained") - pl.col("at_length"))


def difference_of(
    first: ArmRuns, second: ArmRuns, measure: str, factor: float, seeds: Sequence[str], confidence: float
) -> Difference:
    """The drop of the first arm minus that of the second, both taken over lengths that all their runs share."""
    trained_length, length = drop_lengths(pl.concat([first.rows, second.rows]), factor)
    # A seed that one of the two does not have (that of a parent, say) cannot pair them.
    shared = [name for name in seeds if not (first.rows[name].has_nulls() or second.rows[name].has_nulls())]
    each = [drops_of(arm, measure, trained_length, length, shared) for arm in (first, second)]
    count = sum(part.height for part in each)
    if reason := _why_not(first, second, trained_length, length) or why_unpaired(each, (first, second), shared):
        return Difference(first.label, second.label, mean_interval([]), 0, count, reason=reason)
    pairs = paired_differences(*(by_replicate(drops, "drop", shared) for drops in each))
    return Difference(
        of=first.label,
        minus=second.label,
        interval=mean_interval(list(pairs.values()), confidence),
        pairs=len(pairs),
        unpaired=count - 2 * len(pairs),
        trained_length=trained_length,
        length=length,
        reason=None if pairs else "there is no seed at which both have a drop",
    )


def _why_not(first: ArmRuns, second: ArmRuns, trained_length: int | None, length: int | None) -> str | None:
    """What keeps two arms from having drops over the same lengths."""
    ranges = [trained_range(arm.rows) for arm in (first, second)]
    tops = [None if both is None else both[1] for both in ranges]
    if tops[0] != tops[1]:
        return f"they were trained up to different lengths, {tops[0]} and {tops[1]}"
    if trained_length is None:
        return "no trained length was evaluated in both"
    if length is None:
        return "no length beyond the trained ones was evaluated in both"
    return None


def why_unpaired(each: Sequence[pl.DataFrame], arms: Sequence[ArmRuns], shared: list[str]) -> str | None:
    """What keeps the runs of two arms from being paired one to one."""
    if not shared:
        return "no seed is left to pair them by"
    for drops, arm in zip(each, arms, strict=True):
        if drops.select(shared).n_unique() < drops.height:
            return f"several runs of {arm.label} have the same {', '.join(shared)}"
    return None
