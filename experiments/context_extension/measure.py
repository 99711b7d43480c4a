"""What is measured on a finished run beyond its evaluation."""

import polars as pl
import torch
from torch.nn.functional import cross_entropy

from sparsity_lab.benchmarks import alternate, peak_memory
from sparsity_lab.generators import Stream
from sparsity_lab.kernels import Kernel, ShiftedSparse, Softmax
from sparsity_lab.models import Decoder, trainable_parameters
from sparsity_lab.training import Run, RunConfig, evaluate, threads_and_device

__all__ = ["measure"]

_VALIDATION_SEED = 10_000
_ROUNDS = 21


def measure(run: Run) -> pl.DataFrame:
    """One row: the loss on which rates are chosen, the loss under the trained mechanism, and what training cost.

    The validation sequences are tested dense, like all others, at the run's own context, and come from a stream of
    their own. A text has one evaluation part, so windows of the two streams can overlap.
    """
    config = run.config
    length = config.training.curriculum.range()[1]
    apart = config.evaluation.replace(lengths=(length,), seed=_VALIDATION_SEED)
    sparse = attention = None
    if isinstance(config.model, Decoder) and isinstance(config.model.kernel, ShiftedSparse):
        kernel = config.model.kernel.replace(sparse_at_inference=True)
        own = config.evaluation.replace(lengths=(length,))
        sparse = float(run.with_kernel(kernel).evaluate(own)["loss"][0])
        attention = _attention_over_dense(config.model, config)
    model = run.model()
    timing = run.timing.filter(pl.col("phase") == "training")
    seconds_per_token = (timing["seconds"] / timing["tokens"]).median()
    tokens = config.training.batch_size * config.task.sequence_length(length)
    return pl.DataFrame(
        {
            "validation_loss": float(evaluate(model, config.replace(evaluation=apart))["loss"][0]),
            "sparse_loss": sparse,
            "trainable_parameters": trainable_parameters(model),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            # The median, since other processes come and go.
            "attention_over_dense": attention,
            "step_ms": None if seconds_per_token is None else 1e3 * tokens * float(seconds_per_token),  # type: ignore[arg-type]
            # The same for every seed.
            "peak_mib": peak_memory(lambda: _step(model, config)) / 2**20 if config.data_seed == 0 else None,
        },
        schema_overrides=dict.fromkeys(("sparse_loss", "attention_over_dense", "step_ms", "peak_mib"), pl.Float64()),
    )


def _attention_over_dense(model: Decoder, config: RunConfig) -> float:
    """Time of one layer's attention, forward and backward, over that of dense attention, on queries, keys and values
    of the shapes of a training step; the median of rounds in which the two take turns."""
    size = config.task.sequence_length(config.training.curriculum.range()[1])
    shape = (config.training.batch_size, model.num_heads, size, model.head_dim)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]

    def attend(kernel: Kernel) -> None:
        torch.autograd.grad(kernel.attend(*rows).sum(), rows)

    with threads_and_device(config.training):
        attend(model.kernels[0])  # the first call is no measure
        return alternate(lambda: attend(Softmax()), lambda: attend(model.kernels[0]), _ROUNDS)[2]


def _step(model: torch.nn.Module, config: RunConfig) -> None:
    """One step of training."""
    training = config.training
    batch = config.task.sample(Stream(), 0, training.batch_size, training.curriculum.range()[1])
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    loss = cross_entropy(model(batch.tokens, scored=batch.scored).logits, batch.targets[batch.scored])
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    model.zero_grad()
