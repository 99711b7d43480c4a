"""Replicates: runs that differ in their seeds only, the unit of every statistic over runs.

A seed is any setting whose name ends in ``seed``, at any depth: of data and weights, of what a task draws once
(``task.position_seed``, ``task.rule.seed``), of a parent (``parent.data_seed``). The seed of the evaluation is none,
for it makes no new run.
"""

from collections.abc import Iterable

import polars as pl

SEEDS = ("data_seed", "model_seed")


def is_seed(column: str) -> bool:
    """Whether runs that differ in this setting alone are replicates."""
    return column.endswith("seed") and "evaluation" not in column.split(".")


def seed_columns(frame: pl.DataFrame, by: Iterable[str] = ()) -> tuple[str, ...]:
    """The columns that name a replicate: the seeds of data and weights, and every other seed that varies.

    Args:
        by: what tells the arms apart; a seed that is named there makes arms, not replicates.
    """
    arms = set(by)
    found = [
        name
        for name in frame.columns
        if is_seed(name) and name not in arms and (name in SEEDS or frame[name].n_unique() > 1)
    ]
    return (*(name for name in SEEDS if name in found), *(name for name in found if name not in SEEDS))


def without_seeds(frame: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    """The frame with these settings' texts rid of their seeds where these vary: replicates read alike, ``Lookup()``
    for ``Lookup(seed=3)``."""
    seeds = seed_columns(frame)
    texts = [name for name in names if any(seed.startswith(f"{name}.") for seed in seeds)]
    return frame.with_columns(
        pl.col(name).str.replace_all(r"(, )?\b\w*seed=-?\d+", "").str.replace_all("(, ", "(", literal=True)
        for name in texts
    )
