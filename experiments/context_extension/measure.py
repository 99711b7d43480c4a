"""What is measured on a finished run: its loss on the same bytes, seen in windows of each length."""

import math

import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsity_lab.generators import Stream
from sparsity_lab.kernels import ShiftedSparse
from sparsity_lab.models import Decoder, trainable_parameters
from sparsity_lab.training import Run

__all__ = ["loss_in_windows", "measure"]


def measure(run: Run) -> pl.DataFrame:
    """By ``length`` the ``loss`` (nats a byte), tested with dense attention; the ``sparse_loss`` of what was trained
    with groups, tested with them at its own context, else null; and ``trainable``, the weights that were trained.

    Long windows of text are cut into shorter ones, so that all lengths, and all arms of a seed, are tested on the
    same bytes: between texts the loss differs by more than what is to be seen.
    """
    config = run.config
    evaluation = config.evaluation
    longest = evaluation.lengths[-1]
    batch = config.task.sample(Stream(seed=evaluation.seed, name="evaluation"), 0, evaluation.sequences, longest)
    text = batch.tokens, batch.targets
    model = run.model()
    losses = {length: loss_in_windows(model, *text, length, evaluation.batch_tokens) for length in evaluation.lengths}
    sparse = dict[int, float]()
    if isinstance(config.model, Decoder) and isinstance(config.model.kernel, ShiftedSparse):
        own = config.training.curriculum.range()[1]
        groups = run.with_kernel(config.model.kernel.replace(sparse_at_inference=True)).model()
        sparse[own] = loss_in_windows(groups, *text, own, evaluation.batch_tokens)
    rows = [
        {"length": length, "loss": loss, "sparse_loss": sparse.get(length), "trainable": trainable_parameters(model)}
        for length, loss in losses.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"sparse_loss": pl.Float64()})


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
