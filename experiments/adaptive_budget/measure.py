"""What is measured on a finished run: recall of the same weights under other mechanisms, and how long they take."""

from time import perf_counter
from typing import Any

import polars as pl
import torch

from sparsity_lab.generators import Batch, Stream
from sparsity_lab.kernels import Kernel
from sparsity_lab.models import DecoderModel
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run

from .arms import CHOICES, DENSE, FIRST, LENGTHS, RANDOM, SELECTED

__all__ = ["QUARTER", "TIMED", "TIMED_LENGTH", "measure", "recall", "seconds"]

TIMED_LENGTH = 8192
QUARTER = "a quarter of the pairs"
TIMED: dict[str, Kernel] = {SELECTED: CHOICES[SELECTED], QUARTER: CHOICES[SELECTED].replace(k_free=15)}
"""What is timed: the selection that is compared, and one with a quarter of the pairs at that length."""

REPEATS = 3
TOKENS = 8192
"""In one forward pass."""


def measure(run: Run) -> pl.DataFrame:
    """Rows of two kinds, by ``what``. "recall": ``accuracy`` of a ``choice`` at a ``length``. "time": ``ratio``, the
    ``seconds`` of a choice over ``dense_seconds`` of dense attention."""
    model, evaluation = run.model(), run.config.evaluation
    if not isinstance(model, DecoderModel):
        raise SettingError("run.model", "a Decoder", run.config.model)
    stream, rows = Stream(seed=evaluation.seed, name="analysis"), list[dict[str, Any]]()
    for length in LENGTHS:
        batch = run.config.task.sample(stream, 0, evaluation.sequences, length)
        for choice in CHOICES:
            found = recall(model, choice, batch, seed=evaluation.seed)
            rows.append({"what": "recall", "choice": choice, "length": length, "accuracy": found})
    shape = (1, model.config.num_heads, TIMED_LENGTH, model.config.head_dim)
    for choice, kernel in TIMED.items():
        dense, own = seconds((CHOICES[DENSE], kernel), shape, seed=evaluation.seed)
        times = {"dense_seconds": dense, "seconds": own, "ratio": own / dense}
        rows.append({"what": "time", "choice": choice, "length": TIMED_LENGTH, **times})
    return pl.DataFrame(rows, infer_schema_length=None)


@torch.no_grad()
def recall(model: DecoderModel, choice: str, batch: Batch, seed: int) -> float:
    """Share of the scored targets that are right when the second layer sees what a choice lets it see."""
    # Nothing in the model depends on the mode but the kernel that draws.
    model = model.with_kernel((FIRST, CHOICES[choice])).train(choice == RANDOM)
    generator, right = torch.Generator().manual_seed(seed), []
    size = max(1, TOKENS // batch.tokens.shape[1])
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        scored = batch.scored[rows]
        logits = model(batch.tokens[rows], scored=scored, generator=generator).logits
        right.append(logits.argmax(-1) == batch.targets[rows][scored])
    return float(torch.cat(right).double().mean())


@torch.no_grad()
def seconds(kernels: tuple[Kernel, ...], shape: tuple[int, ...], seed: int) -> list[float]:
    """Seconds of a call of each, on random inputs (B, H, T, D) and one thread: the least of a few, taken in turn."""
    q, k, v = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    found: list[list[float]] = [[] for _ in kernels]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The first call of each prepares what later ones use.
        for _ in range(1 + REPEATS):
            for own, kernel in zip(found, kernels, strict=True):
                begun = perf_counter()
                kernel.attend(q, k, v, training=False)
                own.append(perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return [min(own[1:]) for own in found]
