"""What is measured on each run: the norms of queries, and how the entropy of attention follows them."""

import math
from dataclasses import replace

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.analysis import norm_sensitivity
from sparsity_lab.generators import Stream
from sparsity_lab.kernels import NormAwareLinear
from sparsity_lab.models import DecoderModel, LayerRecord
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run

__all__ = ["FACTORS", "LIMIT", "entropies", "measure", "norms_and_slope"]

LIMIT = 3.0
"""Beyond this, a longer query moves the power of the norm-aware map by less than half a per cent."""
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_STEP = 0.05  # in ln r


def measure(run: Run) -> pl.DataFrame:
    """What is measured on a run at its trained length, by layer; ``what`` says which.

    "norms": what ``norms_and_slope`` finds, and ``rank``, the rank correlation of entropy and query norm among rows
    with equally many keys, mean over heads. "rescaled": the entropy in nats with all queries of the layer times a
    ``factor``, mean over heads.
    """
    config = run.config
    length = config.training.curriculum.range()[1]
    sequences = 2 if config.training.steps < 100 else 16
    seed = config.evaluation.seed
    found = norm_sensitivity(run, lengths=(length,), factors=FACTORS, sequences=sequences, seed=seed)
    ranks = found.frame().group_by("layer", maintain_order=True).agg(rank=pl.col("query_spearman").mean())
    rescaled = found.sweep().group_by("layer", "factor", maintain_order=True).agg(pl.col("entropy").mean())
    model = run.model()
    if not isinstance(model, DecoderModel):
        raise SettingError("run.model", "a Decoder", type(model).__name__)
    tokens = config.task.sample(Stream(seed=seed, name="analysis"), 0, sequences, length).tokens
    norms = [{"layer": layer} | norms_and_slope(record) for layer, record in enumerate(model.record(tokens))]
    named = [
        pl.DataFrame(norms).join(ranks, on="layer", how="left").select(pl.lit("norms").alias("what"), pl.all()),
        rescaled.select(pl.lit("rescaled").alias("what"), pl.all()),
    ]
    return pl.concat(named, how="diagonal")


def norms_and_slope(record: LayerRecord) -> dict[str, float | None]:
    """Of one layer, over all heads and all rows with two keys or more.

    ``r_5``, ``r_50`` and ``r_95`` are quantiles of the query norm, times the scale of a norm-aware map; ``inside`` is
    the share of the queries for which that is below ``LIMIT``; ``slope`` is dH / d ln r in nats, the mean over the
    queries inside, None without any. Other mechanisms have no limit: all their queries are inside.
    """
    aware = isinstance(record.kernel, NormAwareLinear)
    norms = record.q.norm(dim=-1) * (record.kernel.norm_scale if isinstance(record.kernel, NormAwareLinear) else 1.0)
    norms = norms[:, :, 1:]
    inside = norms < (LIMIT if aware else math.inf)
    longer, shorter = (entropies(record, math.exp(sign * _STEP))[:, :, 1:] for sign in (1, -1))
    slopes = ((longer - shorter) / (2 * _STEP))[inside]
    low, middle, high = norms.flatten().double().quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
    return {
        "r_5": low,
        "r_50": middle,
        "r_95": high,
        "inside": float(inside.double().mean()),
        "slope": float(slopes.mean()) if len(slopes) else None,
    }


@torch.no_grad()
def entropies(record: LayerRecord, factor: float) -> Float[Tensor, "B H T"]:
    """The entropy of each row in nats, with all queries times a factor."""
    changed = replace(record, q=factor * record.q)
    weights = changed.weights(0, record.q.shape[2]).double()
    shares = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return -torch.xlogy(shares, shares).sum(-1)
