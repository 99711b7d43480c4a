"""Values and drops of runs by length and seed: the numbers behind claims about extrapolation.

Values are normalized accuracies, 0 at chance and 1 at the Bayes optimum, clipped to that range: a run cannot lose
more than it learned. A *drop* is the value at the longest trained length minus the value at a longer one. By default,
only runs that learned count: a run that was at chance from the start has nothing to lose.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, by_seed, paired_differences
from sparsity_lab.settings import SettingError


def numbers_at(
    rows: pl.DataFrame, arm: str, length: int, measure: str = "accuracy", *, condition: str | None = None
) -> Replicates:
    """The measure of one arm at one length by seed, for all runs, learned or not.

    >>> sorted(numbers_at(rows, "one", 16))
    [0, 1]

    Raises:
        SettingError: there is no such arm, length or measure, or the arm has several conditions.
    """
    if measure not in rows.columns:
        raise SettingError("measure", "a column of the rows", measure, rows.columns)
    chosen = rows.filter((pl.col("arm") == arm) & (pl.col("length") == length))
    if condition is not None:
        chosen = chosen.filter(pl.col("condition") == condition)
    chosen = chosen.drop_nulls(measure)
    if chosen.is_empty():
        raise SettingError("arm", f"an arm with {measure} at length {length}", arm, rows["arm"].unique().to_list())
    if chosen["seed"].n_unique() < chosen.height:
        raise SettingError("condition", f"one condition of {arm}", chosen["condition"].unique().to_list())
    return by_replicate(chosen, measure)


def values_at(
    rows: pl.DataFrame, arm: str, length: int, conditions: Sequence[str] | None = None, *, only_learned: bool = True
) -> pl.DataFrame:
    """One row for each seed and condition of an arm: ``seed``, ``condition``, ``trained_length``, ``at_trained``,
    ``value`` (at ``length``), ``drop``.

    >>> values_at(rows, "one", 16, only_learned=False).columns
    ['seed', 'condition', 'trained_length', 'at_trained', 'value', 'drop']

    Args:
        rows: the rows of ``Evidence``.
        conditions: the conditions to include; None is all.
        only_learned: leave out conditions that a seed did not learn.

    Raises:
        SettingError: there is no such arm, condition or length.
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
    value = pl.col("normalized_accuracy").clip(0.0, 1.0)
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


def means_at(
    rows: pl.DataFrame,
    arm: str,
    length: int,
    column: str = "value",
    conditions: Sequence[str] | None = None,
    *,
    only_learned: bool = True,
) -> Replicates:
    """A column of ``values_at`` by seed, averaged over the conditions of the seed that were learned, or over all.

    >>> sorted(means_at(rows, "one", 16, only_learned=False))
    [0, 1]
    """
    return by_seed(_by_condition(rows, arm, length, column, conditions, only_learned))


def differences_at(
    rows: pl.DataFrame,
    arm: str,
    minus: str,
    length: int,
    column: str = "value",
    conditions: Sequence[str] | None = None,
    *,
    only_learned: bool = True,
) -> Replicates:
    """Differences of two arms in a column of ``values_at`` by seed, averaged over the conditions that both arms
    learned, or over all conditions.

    >>> sorted(differences_at(rows, "one", "two", 16, only_learned=False))
    [0, 1]
    """
    each = (_by_condition(rows, one, length, column, conditions, only_learned) for one in (arm, minus))
    return by_seed(paired_differences(*each))


def slopes(
    rows: pl.DataFrame, arm: str, length: int, at: Mapping[str, float], *, least: int = 3, only_learned: bool = True
) -> Replicates:
    """Least-squares slopes of the drop by seed, as a function of the number ``at`` of each condition.

    A seed that learned fewer than ``least`` conditions has no slope.

    >>> list(slopes(rows, "one", 16, {"trained": 1.0}, only_learned=False))
    []
    """
    found = values_at(rows, arm, length, list(at), only_learned=only_learned)
    each = {}
    for (seed,), part in sorted(found.partition_by("seed", as_dict=True).items()):
        if part.height >= least:
            places = [at[condition] for condition in part["condition"]]
            each[seed] = float(np.polyfit(places, part["drop"].to_numpy(), 1)[0])
    return each


def learned_words(rows: pl.DataFrame, arm: str, conditions: Sequence[str] | None = None) -> str:
    """The number of seeds of an arm that learned all these conditions, in words: ``3 of 4 seeds learned``.

    >>> learned_words(rows, "one")
    '2 of 2 seeds learned'
    """
    own = rows.filter(pl.col("arm") == arm)
    if conditions is not None:
        own = own.filter(pl.col("condition").is_in(list(conditions)))
    by_seed = own.group_by("seed").agg(pl.col("learned").all())
    every = " all" if own["condition"].n_unique() > 1 else ""
    return f"{by_seed.filter('learned').height} of {by_seed.height} seeds learned{every}"


def _by_condition(
    rows: pl.DataFrame,
    arm: str,
    length: int,
    column: str,
    conditions: Sequence[str] | None,
    only_learned: bool,
) -> Replicates:
    found = values_at(rows, arm, length, conditions, only_learned=only_learned)
    return by_replicate(found, column, ("seed", "condition"))
