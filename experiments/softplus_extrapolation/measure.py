"""What is measured on a finished run: its loss on the same bytes in windows of each length; and, for softmax and
LSSAR with RoPE, what the loss far beyond the trained length is due to."""

import math

import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsity_lab.analysis import extrapolation_accounting
from sparsity_lab.generators import Stream
from sparsity_lab.models import Decoder, Plain, RoPE
from sparsity_lab.training import Run

from .arms import KERNELS

__all__ = ["loss_in_windows", "measure"]

_ACCOUNTED = 8
"""Sequences that the accounting reads: it takes one row at a time."""
_PARTS = ("trained", "full", "clamped", "windowed")


def measure(run: Run) -> pl.DataFrame:
    """``length`` and ``loss`` (nats a byte), and at the largest length the four losses of the accounting, null
    elsewhere.

    Long windows of text are cut into shorter ones, so that all lengths are tested on the same bytes: between texts
    the loss differs by more than what is to be seen.
    """
    config = run.config
    evaluation, model = config.evaluation, config.model
    longest = evaluation.lengths[-1]
    batch = config.task.sample(Stream(seed=evaluation.seed, name="evaluation"), 0, evaluation.sequences, longest)
    built = run.model()
    losses = [
        loss_in_windows(built, batch.tokens, batch.targets, length, evaluation.batch_tokens)
        for length in evaluation.lengths
    ]
    found = pl.DataFrame({"length": evaluation.lengths, "loss": losses})
    assert isinstance(model, Decoder)
    plain = isinstance(model.position, RoPE) and model.index_sampling == Plain()
    if not plain or model.kernel not in KERNELS.values():
        return found.with_columns(pl.lit(None, pl.Float64).alias(name) for name in _PARTS)
    sequences = min(_ACCOUNTED, evaluation.sequences)
    accounts = extrapolation_accounting(run, None, (longest,), sequences=sequences, seed=evaluation.seed)
    return found.join(accounts.select("length", *_PARTS), on="length", how="left", maintain_order="left")


@torch.inference_mode()
def loss_in_windows(
    model: nn.Module, tokens: Int64[Tensor, "B T"], targets: Int64[Tensor, "B T"], length: int, batch_tokens: int
) -> float:
    """Mean loss over all bytes of (B, T) tokens, cut into windows of ``length``, a divisor of T."""
    inputs, wanted = tokens.reshape(-1, length), targets.reshape(-1, length)
    size = max(1, batch_tokens // length)
    sums = []
    for start in range(0, len(inputs), size):
        logits = model(inputs[start : start + size]).logits.double().flatten(0, 1)
        sums.append(float(cross_entropy(logits, wanted[start : start + size].flatten(), reduction="sum")))
    return math.fsum(sums) / targets.numel()
