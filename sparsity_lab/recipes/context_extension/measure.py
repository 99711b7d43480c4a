"""What is measured on a finished run beyond its evaluation."""

import polars as pl
import torch
from torch.nn.functional import cross_entropy

from sparsity_lab.benchmarks.memory import peak_memory
from sparsity_lab.generators import Stream
from sparsity_lab.kernels import ShiftedSparse
from sparsity_lab.models import Decoder, trainable_parameters
from sparsity_lab.training import Run, RunConfig, evaluate, store

__all__ = ["measure"]

_VALIDATION_SEED = 10_000


def measure(run: Run) -> pl.DataFrame:
    """One row: the loss on which rates are chosen, the loss under the trained mechanism, and what training cost.

    The validation sequences are tested dense, like all others, at the run's own context, and come from a stream of
    their own. A text has one evaluation part, so windows of the two streams can overlap.
    """
    config = run.config
    length = config.training.curriculum.range()[1]
    apart = config.evaluation.replace(lengths=(length,), seed=_VALIDATION_SEED)
    sparse = None
    if isinstance(config.model, Decoder.Config) and isinstance(config.model.kernel, ShiftedSparse):
        kernel = config.model.kernel.replace(sparse_in_use=True)
        own = config.evaluation.replace(lengths=(length,))
        sparse = float(run.with_kernel(kernel).evaluate(own)["loss"][0])
    model = run.model()
    timing = store.read_timing(run.folder).filter(pl.col("phase") == "training")
    seconds_per_token = (timing["seconds"] / timing["tokens"]).median()
    tokens = config.training.batch_size * config.task.sequence_length(length)
    return pl.DataFrame(
        {
            "validation_loss": float(evaluate(model, config.replace(evaluation=apart))["loss"][0]),
            "sparse_loss": sparse,
            "trainable_parameters": trainable_parameters(model),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            # The median, since other processes come and go.
            "step_ms": None if seconds_per_token is None else 1e3 * tokens * float(seconds_per_token),  # type: ignore[arg-type]
            # The same for every seed.
            "peak_mib": peak_memory(lambda: _step(model, config)) / 2**20 if config.data_seed == 0 else None,
        },
        schema_overrides={"sparse_loss": pl.Float64, "step_ms": pl.Float64, "peak_mib": pl.Float64},
    )


def _step(model: torch.nn.Module, config: RunConfig) -> None:
    """One step of training."""
    training = config.training
    batch = config.task.sample(Stream(), 0, training.batch_size, training.curriculum.range()[1])
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, fused=True)
    loss = cross_entropy(model(batch.tokens, scored=batch.scored), batch.targets[batch.scored])
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    model.zero_grad()
