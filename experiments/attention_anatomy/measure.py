"""What is measured on each run beside its evaluation: entropy, planted mass and norms of the row that answers."""

from typing import Any

import polars as pl

from sparsity_lab.analysis import attention_entropy, norm_sensitivity, planted_mass
from sparsity_lab.generators import Planted
from sparsity_lab.training import Run

from .arms import TRAINED, K

__all__ = ["FACTORS", "measure"]

FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0)


def measure(run: Run) -> pl.DataFrame:
    """The answer's row of attention, by length and head; at the longest trained length also under rescaled queries.

    One row for each length, head and ``factor`` on the query norms: ``entropy`` (nats), ``mass`` on the sources with
    ``uniform`` (k / n) beside it, ``query_norm`` and ``query_slope`` (dH / d ln r); ``entropy_change`` where the
    factor is not 1. The answer's query is the same in all sequences, so nothing can be correlated with its norm.
    """
    task = Planted(k=K)
    small = run.config.training.steps < 100
    lengths = run.config.evaluation.lengths
    options: dict[str, Any] = {"sequences": 8 if small else 128, "seed": run.config.data_seed}
    keys = ["length", "layer", "head"]
    entropy = attention_entropy(run, task, lengths, rows="scored", **options).summary()
    mass = planted_mass(run, task, lengths, **options).frame()
    norms = norm_sensitivity(run, task, (TRAINED,), rows="scored", factors=FACTORS, **options)
    sweep = norms.sweep().filter(pl.col("factor") != 1.0)
    by_length = (
        entropy.select(*keys, pl.lit(1.0).alias("factor"), "entropy")
        .join(mass.select(*keys, "mass", "uniform"), on=keys)
        .join(norms.frame().select(*keys, "query_norm", "query_slope"), on=keys, how="left")
    )
    return pl.concat([by_length, sweep.select(*keys, "factor", "entropy", "entropy_change")], how="diagonal")
