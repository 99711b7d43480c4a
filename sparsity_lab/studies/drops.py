"""What runs lose with length, seed by seed: the numbers that claims about extrapolation rest on.

Values are normalized accuracies, 0 at chance and 1 at the Bayes optimum; what lies below chance counts as chance,
since a run cannot lose more than all it knew. A *drop* is the value at the longest trained length minus that at a
longer one. Only what was learned counts: a run that was at chance from the start has nothing to lose.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from sparsity_lab.analysis import Interval, mean_interval
from sparsity_lab.settings import SettingError

__all__ = ["learned_words", "mean_value", "paired_difference", "slope", "values_at"]


def values_at(
    rows: pl.DataFrame, arm: str, length: int, conditions: Sequence[str] | None = None, *, only_learned: bool = True
) -> pl.DataFrame:
    """One row for each seed and condition of an arm: ``seed``, ``condition``, ``trained_length``, ``at_trained``,
    ``value`` (at ``length``), ``drop``.

    Args:
        rows: of ``Evidence``.
        conditions: which of them; None is all.
        only_learned: leave out what was not learned.

    Raises:
        SettingError: no such arm, condition or length.
    """
    own = rows.filter(pl.col("arm") == arm)
    if own.is_empty():
        raise SettingError("arm", "an arm of the study", arm, rows["arm"].unique(maintain_order=True).to_list())
    if conditions is not None:
        known = own["condition"].unique().to_list()
        for condition in conditions:
            if condition not in known:
                raise SettingError("condition", f"a condition of {arm}", condition, known)
        own = own.filter(pl.col("condition").is_in(list(conditions)))
    lengths = own["length"].unique().sort().to_list()
    if length not in lengths:
        raise SettingError("length", f"an evaluated length of {arm}", length, [str(one) for one in lengths])
    trained_length = own.filter("trained")["length"].max()
    value = pl.col("normalized_accuracy").clip(lower_bound=0.0)
    if only_learned:
        own = own.filter(pl.col("learned"))
    keys = ["seed", "condition"]
    first = own.filter(pl.col("length") == trained_length).select(*keys, value.alias("at_trained"))
    last = own.filter(pl.col("length") == length).select(*keys, value.alias("value"))
    return (
        first.join(last, on=keys)
        .with_columns(trained_length=pl.lit(trained_length, pl.Int64), drop=pl.col("at_trained") - pl.col("value"))
        .select(*keys, "trained_length", "at_trained", "value", "drop")
        .sort(keys)
    )


def mean_value(
    rows: pl.DataFrame, arm: str, length: int, column: str = "value", conditions: Sequence[str] | None = None
) -> Interval:
    """Mean over seeds of a column of ``values_at``, averaged over the learned conditions of each seed first."""
    return mean_interval(_by_seed(values_at(rows, arm, length, conditions), column).to_list())


def paired_difference(first: pl.DataFrame, second: pl.DataFrame, column: str = "value") -> Interval:
    """Mean over seeds of the difference of two arms in a column, with Student's 95 % interval.

    Args:
        first, second: one row for each ``seed`` and ``condition``, as of ``values_at``, or for each seed alone.
            Differences are taken between rows of which both arms have one, and averaged over the conditions of each
            seed first.
    """
    keys = [name for name in ("seed", "condition") if name in first.columns]
    both = first.join(second, on=keys, suffix="_minus")
    differences = both.with_columns((pl.col(column) - pl.col(f"{column}_minus")).alias(column))
    return mean_interval(_by_seed(differences, column).to_list())


def slope(
    rows: pl.DataFrame, arm: str, length: int, at: Mapping[str, float], column: str = "drop", least: int = 3
) -> Interval:
    """Mean over seeds of the least-squares slope of a column of ``values_at`` in ``at``, a number for each condition.

    A seed that learned fewer than ``least`` of the conditions has no slope.
    """
    found = values_at(rows, arm, length, list(at))
    slopes = []
    for (_,), part in sorted(found.partition_by("seed", as_dict=True).items()):
        if part.height >= least:
            places = [at[condition] for condition in part["condition"]]
            slopes.append(float(np.polyfit(places, part[column].to_numpy(), 1)[0]))
    return mean_interval(slopes)


def learned_words(rows: pl.DataFrame, arm: str, conditions: Sequence[str] | None = None) -> str:
    """How many seeds of an arm learned all these conditions: ``3 of 4 seeds learned``."""
    own = rows.filter(pl.col("arm") == arm)
    if conditions is not None:
        own = own.filter(pl.col("condition").is_in(list(conditions)))
    by_seed = own.group_by("seed").agg(pl.col("learned").all())
    every = " all" if own["condition"].n_unique() > 1 else ""
    return f"{by_seed.filter('learned').height} of {by_seed.height} seeds learned{every}"


def _by_seed(values: pl.DataFrame, column: str) -> pl.Series:
    return values.group_by("seed").agg(pl.col(column).mean()).sort("seed")[column]
