"""What is measured on each run beside its evaluation: entropy, norms of queries, and the time of a forward pass."""

from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from sparsity_lab.analysis import norm_sensitivity
from sparsity_lab.benchmarks import alternate
from sparsity_lab.generators import Stream
from sparsity_lab.kernels import Softmax
from sparsity_lab.models import DecoderModel
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run, threads_and_device

__all__ = ["AWARE", "LONG", "TIMED", "measure"]

TIMED = {128: 101, 512: 51, 2048: 15, 8192: 5}
"""Lengths of the forward passes that are timed, each with its number of pairs; short ones are easily disturbed."""
LONG = max(TIMED)
FACTORS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)
AWARE = 3.0
"""Query norms beyond this move the power of the norm-aware maps by less than half a per cent."""


def measure(run: Run) -> pl.DataFrame:
    """What is measured on a run, at its trained length or by length; ``what`` says which.

    "attention": entropy (nats, mean over rows), its slope dH / d ln r, mean norms, by layer and head. "rescaled": the
    entropy with all queries of the layer times a ``factor``. "norms": the range of the query norms r by layer, before
    and after training, and the share below ``AWARE``. "time": of a forward pass of one sequence, by length, and how
    many times as fast as the same weights under softmax it is.
    """
    config = run.config
    length = config.training.curriculum.range()[1]
    smoke = config.training.steps < 100
    sequences = 2 if smoke else 16
    seed = config.evaluation.seed
    found = norm_sensitivity(run, lengths=(length,), factors=FACTORS, sequences=sequences, seed=seed)
    columns = ("layer", "head", "entropy", "query_norm", "key_norm", "query_slope")
    attention = found.frame().select(pl.lit("attention").alias("what"), *columns)
    rescaled = found.sweep().select(pl.lit("rescaled").alias("what"), "layer", "head", "factor", "entropy")
    tokens = config.task.sample(Stream(seed=seed, name="analysis"), 0, sequences, length).tokens
    initial = config.model.build(config.model_seed, vocab_size=config.task.vocabulary.size)
    models = {"initial": initial, "trained": run.model()}
    norms = [_norms(model, tokens).with_columns(stage=pl.lit(stage)) for stage, model in models.items()]
    with threads_and_device(config.training):
        times = [_time(run, 16, 1)] if smoke else [_time(run, at, rounds) for at, rounds in TIMED.items()]
    return pl.concat([attention, rescaled, *norms, pl.DataFrame(times)], how="diagonal")


def _norms(model: nn.Module, tokens: torch.Tensor) -> pl.DataFrame:
    """The range of the query norms of each layer."""
    if not isinstance(model, DecoderModel):
        raise SettingError("run.model", "a Decoder", type(model).__name__)
    rows = []
    for layer, record in enumerate(model.record(tokens)):
        norms = record.q.norm(dim=-1).flatten().double().numpy()
        low, middle, high = (float(one) for one in np.quantile(norms, (0.05, 0.5, 0.95)))
        aware = float((norms < AWARE).mean())
        rows.append({"what": "norms", "layer": layer, "r_5": low, "r_50": middle, "r_95": high, "aware": aware})
    return pl.DataFrame(rows)


@torch.inference_mode()
def _time(run: Run, length: int, rounds: int) -> dict[str, Any]:
    """Of one sequence; the two mechanisms take turns, so that other load on the machine falls on both."""
    stream = Stream(seed=run.config.evaluation.seed, name="analysis")
    tokens = run.config.task.sample(stream, 0, 1, length).tokens
    own, dense = run.model(), run.with_kernel(Softmax()).model()
    first, second = (partial(model, tokens) for model in (dense, own))
    first()
    second()
    _, seconds, ratio = alternate(first, second, rounds)
    return {"what": "time", "length": length, "ms": 1e3 * seconds, "speed": 1 / ratio}
