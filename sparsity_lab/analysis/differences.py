"""Numbers of replicates, and what is compared between arms: seed by seed, over the seeds that all of them have.

Arms of an experiment share their data and initial weights seed by seed, so their differences vary less than they do.
This is the one place where they are paired; intervals are ``mean_interval`` of what comes out.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from sparsity_lab.settings import SettingError

Replicates = Mapping[Any, float]
"""A number for each replicate, by its seed, or by a tuple of its seeds and condition."""


def by_replicate(rows: pl.DataFrame, column: str, keys: Sequence[str] = ("seed",)) -> dict[Any, float]:
    """A column of an arm's rows by replicate; where it is null, the replicate is left out.

    >>> by_replicate(pl.DataFrame({"seed": [0, 1], "loss": [0.5, None]}), "loss")
    {0: 0.5}

    Args:
        rows: one for each replicate.
        keys: the columns that name a replicate. With one, its values are the keys; with several, tuples of them.

    Raises:
        SettingError: no such column, or a replicate with several rows.
    """
    for name in (column, *keys):
        if name not in rows.columns:
            raise SettingError("column", "a column of the rows", name, rows.columns)
    known = rows.drop_nulls(column)
    found = {row[0] if len(keys) == 1 else row[:-1]: row[-1] for row in known.select(*keys, column).iter_rows()}
    if len(found) < known.height:
        raise SettingError(", ".join(keys), "a replicate has several rows")
    return found


def paired(function: Callable[..., float], *arms: Replicates) -> dict[Any, float]:
    """A function of one number of each arm, for each replicate that all arms have, in order.

    >>> paired(lambda loss, far: far / loss - 1, {0: 2.0, 1: 1.0}, {1: 1.5, 2: 9.0})
    {1: 0.5}
    """
    shared = set.intersection(*(set(arm) for arm in arms))
    return {key: function(*(arm[key] for arm in arms)) for key in sorted(shared)}


def paired_differences(of: Replicates, minus: Replicates) -> dict[Any, float]:
    """One arm minus another, for each replicate that both have.

    >>> paired_differences({0: 2.0, 1: 1.0, 5: 7.0}, {1: 0.5, 0: 0.5})
    {0: 1.5, 1: 0.5}
    """
    return paired(operator.sub, of, minus)


def by_seed(numbers: Replicates) -> dict[Any, float]:
    """Means over the conditions of each seed, of numbers by (seed, condition).

    >>> by_seed({(0, "k=1"): 1.0, (0, "k=2"): 0.0, (1, "k=1"): 1.0})
    {0: 0.5, 1: 1.0}
    """
    found: dict[Any, list[float]] = {}
    for (seed, _), number in sorted(numbers.items()):
        found.setdefault(seed, []).append(number)
    return {seed: sum(values) / len(values) for seed, values in found.items()}
