"""Finding results: the rate that stands for a method, and values by seed."""

import math
from collections.abc import Callable, Mapping

import polars as pl

from sparsity_lab.studies import Evidence

from .arms import arm

__all__ = ["above", "by_seed", "chosen", "context", "mean", "measures", "values"]


def chosen(evidence: Evidence, group: str, method: str) -> str:
    """The arm with the rate that stands for a method: the one with the smallest mean validation loss, among those of
    which most seeds finished. A method without rates has one arm; where no run has finished, a name without
    results."""
    begun = arm(group, method) + ", rate "
    own = evidence.measured.filter(pl.col("arm").str.starts_with(begun)).drop_nans("validation_loss")
    by_rate = own.group_by("arm").agg(seeds=pl.len(), loss=pl.col("validation_loss").mean())
    best = by_rate.sort("seeds", -pl.col("loss"), "arm", descending=True)
    return arm(group, method) if best.is_empty() else str(best["arm"][0])


def context(evidence: Evidence, name: str) -> int:
    """The length that an arm was trained on; 0 without results."""
    length = evidence.rows.filter(pl.col("trained") & (pl.col("arm") == name))["length"].max()
    return length if isinstance(length, int) else 0


def values(evidence: Evidence, name: str, length: int, column: str = "loss") -> dict[int, float]:
    """A column at a length by seed; empty without results."""
    own = evidence.rows.filter((pl.col("arm") == name) & (pl.col("length") == length))
    return dict(own.select("seed", column).drop_nulls().iter_rows())


def measures(evidence: Evidence, name: str, column: str) -> dict[int, float]:
    """What was measured, by seed; empty without results."""
    own = evidence.measured.filter(pl.col("arm") == name)
    return dict(own.select("seed", column).drop_nulls().iter_rows())


def by_seed(
    of: Callable[[float, float], float], first: Mapping[int, float], second: Mapping[int, float]
) -> dict[int, float]:
    """A function of two values, for the seeds that both have."""
    return {seed: of(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())}


def above(loss: float, other: float) -> float:
    """By how many per cent the perplexity of a loss lies above that of another."""
    return 100 * math.expm1(loss - other)


def mean(found: Mapping[int, float]) -> float:
    return sum(found.values()) / len(found) if found else math.nan
