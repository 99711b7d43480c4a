"""Means by sequence, with their standard errors: a sequence is the unit, as in evaluation."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def by_sequence(values: Float[Tensor, "N *more"], sequence: Int[Tensor, " N"], count: int) -> Floats:
    """(sequences, *more) means over the entries of each sequence 0 .. count - 1 that has any; NaN is no entry."""
    entries = values.double().cpu().numpy()
    rows = sequence.cpu().numpy()
    sums = np.zeros((count, *entries.shape[1:]))
    known = np.zeros(sums.shape)
    np.add.at(sums, rows, np.nan_to_num(entries))
    np.add.at(known, rows, ~np.isnan(entries))
    means: Floats = np.where(known > 0, sums / np.maximum(known, 1), np.nan)
    return means[np.isin(np.arange(count), rows)]


def mean_and_error(values: Floats) -> tuple[float | None, float | None]:
    """Mean of (sequences,) values and its standard error, s / sqrt(n); None where there are too few."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if known.size else None
    error: Any = known.std(ddof=1) / math.sqrt(known.size) if known.size > 1 else None
    return mean, None if error is None else float(error)


def head_rows(values: Mapping[str, Floats], errors: Collection[str] = ()) -> list[dict[str, Any]]:
    """A row for each head, from (sequences, H) values by name: ``head`` and the mean of each, and for those in
    ``errors`` its standard error as ``<name>_se``. NaN is no value."""
    num_heads = next(iter(values.values())).shape[1]
    rows: list[dict[str, Any]] = []
    for head in range(num_heads):
        row: dict[str, Any] = {"head": head}
        for name, of_heads in values.items():
            row[name], error = mean_and_error(of_heads[:, head])
            if name in errors:
                row[f"{name}_se"] = error
        rows.append(row)
    return rows
