"""What is measured on a finished run of text: its loss on the same bytes, seen in windows of each length."""

import math

import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsity_lab.generators import Stream, TextBytes
from sparsity_lab.training import Run

__all__ = ["loss_in_windows", "measure"]

_SCHEMA = {"length": pl.Int64(), "loss": pl.Float64()}


def measure(run: Run) -> pl.DataFrame:
    """``length`` and ``loss`` (nats a byte) of a run of text; nothing of another task, whose sequences of all lengths
    have one law.

    Long windows of text are cut into shorter ones, so that all lengths are tested on the same bytes: between texts
    the loss differs by more than what is to be seen.
    """
    config = run.config
    if not isinstance(config.task, TextBytes):
        return pl.DataFrame(schema=_SCHEMA)
    evaluation = config.evaluation
    longest = evaluation.lengths[-1]
    batch = config.task.sample(Stream(seed=evaluation.seed, name="evaluation"), 0, evaluation.sequences, longest)
    model = run.model()
    rows = [
        (length, loss_in_windows(model, batch.tokens, batch.targets, length, evaluation.batch_tokens))
        for length in evaluation.lengths
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


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
