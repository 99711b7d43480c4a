"""Means by sequence, with their standard errors: a sequence is the unit, as in evaluation."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["by_sequence", "mean_and_error"]

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
