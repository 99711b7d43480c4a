"""Finding results: the rate that stands for a method, and values by seed."""

import math

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate
from sparsity_lab.studies import Evidence

from .arms import arm

__all__ = ["above", "chosen", "context", "mean", "measures", "values"]


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


def values(evidence: Evidence, name: str, length: int, column: str = "loss") -> Replicates:
    """A column at a length by seed; empty without results."""
    return by_replicate(evidence.rows.filter((pl.col("arm") == name) & (pl.col("length") == length)), column)


def measures(evidence: Evidence, name: str, column: str) -> Replicates:
    """What was measured, by seed; empty without results."""
    return by_replicate(evidence.measured.filter(pl.col("arm") == name), column)


def above(loss: float, other: float) -> float:
    """By how many per cent the perplexity of a loss lies above that of another."""
    return 100 * math.expm1(loss - other)


def mean(found: Replicates) -> float:
    return sum(found.values()) / len(found) if found else math.nan
