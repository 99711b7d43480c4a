"""What is measured on a finished run: the same weights with other budgets, and with ever more layers switched."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import polars as pl
from torch import nn

from sparsity_lab.generators import Batch, Stream, TextBytes
from sparsity_lab.kernels import AdaptiveSparse, SlidingWindow
from sparsity_lab.models import DecoderModel
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run

from .arms import BUDGETS, MIDDLE, SHARES, selector
from .choices import Choice, by_chance, by_kernel, by_mass, performance, trained_scores

__all__ = [
    "DENSE",
    "MEAN",
    "ORACLE",
    "OWN",
    "RANDOM",
    "TOP_K",
    "TOP_P",
    "TOP_P_UNTRAINED",
    "UNTRAINED",
    "WINDOW",
    "measure",
    "window",
]

DENSE, OWN, WINDOW, RANDOM, ORACLE = "dense", "as trained", "window + sinks", "random blocks", "oracle blocks"
TOP_K, UNTRAINED, MEAN = "top-k, trained", "top-k, untrained", "top-k, mean score"
TOP_P = "top-p, trained"
TOP_P_UNTRAINED = "top-p, untrained"


def measure(run: Run) -> pl.DataFrame:
    """One row for each choice of keys, at the longest trained length; ``what`` says which.

    "budget": a ``choice`` in all layers, with ``k`` or ``p`` where it has one. "layers": trained top-k at the middle
    budget in the ``layers`` that are named, dense in the others. Each with ``accuracy``, ``loss`` (nats a scored
    target), ``budget`` (pairs over dense pairs), ``mass`` (of dense attention that is kept) and ``quality``:
    accuracy, on text the negative loss. "score": β of each layer and head after training the selector, and its loss
    in the first and the last ten steps.
    """
    config, model = run.config, run.model()
    if not isinstance(model, DecoderModel):
        raise SettingError("run.model", "a Decoder", config.model)
    smoke = config.training.steps < 100
    length, seed = config.training.curriculum.range()[1], config.evaluation.seed
    sequences = 4 if smoke else 64 if isinstance(config.task, TextBytes) else 256
    batch = config.task.sample(Stream(seed=seed, name="analysis"), 0, sequences, length)
    number = len(model.blocks)
    own = model.config.kernels[0]
    if isinstance(own, AdaptiveSparse):
        params = [block.kernel_params for block in model.blocks]
        return pl.DataFrame([_row(run, model, batch, OWN, [by_kernel(own, params)] * number)])
    block_size = 8 if isinstance(config.task, TextBytes) else 4
    scores, losses = trained_scores(model, config, selector(block_size), steps=2 if smoke else 60)
    rows = [_row(run, model, batch, DENSE, [None] * number)]
    for choice, numbers, choose in _choices(block_size, scores, seed):
        rows.append(_row(run, model, batch, choice, [choose] * number, **numbers))
    chosen = by_kernel(selector(block_size), scores)
    for layers in _switched(number):
        choices = [chosen if layer in layers else None for layer in range(number)]
        named = ", ".join(str(layer + 1) for layer in layers)
        rows.append(_row(run, model, batch, TOP_K, choices, k=MIDDLE) | {"what": "layers", "layers": named})
    before, after = fmean(losses[:10]), fmean(losses[-10:])
    for layer, score in enumerate(scores):
        for head, (first, second) in enumerate(score.state_dict()["beta"].tolist()):
            of_head = {"what": "score", "layer": layer, "head": head, "beta_1": first, "beta_2": second}
            rows.append(of_head | {"score_loss_before": before, "score_loss_after": after})
    return pl.DataFrame(rows, infer_schema_length=None)


def window(block_size: int, budget: int) -> SlidingWindow:
    """A window and sinks that see as many keys as selection with this budget does, in the mean over rows that have
    all their blocks: of its own block a row sees (b + 1) / 2."""
    kernel = selector(block_size, budget)
    width = (kernel.n_local + budget) * block_size - (block_size - 1) // 2
    return SlidingWindow(width=width, sinks=kernel.n_sink * block_size)


def _choices(
    block_size: int, scores: Sequence[nn.Module], seed: int
) -> Iterator[tuple[str, dict[str, float], Choice]]:
    """Every choice of keys by name, with its budget."""
    for k in BUDGETS:
        kernel = selector(block_size, k)
        yield WINDOW, {"k": k}, by_kernel(window(block_size, k))
        yield RANDOM, {"k": k}, by_chance(kernel, seed)
        yield ORACLE, {"k": k}, by_mass(kernel)
        yield MEAN, {"k": k}, by_kernel(kernel.replace(beta=(0.0, 0.0)))
        yield UNTRAINED, {"k": k}, by_kernel(kernel)
        yield TOP_K, {"k": k}, by_kernel(kernel, scores)
    for p in SHARES:
        kernel = selector(block_size).replace(mode="topp", p=p, k_min=1)
        yield TOP_P_UNTRAINED, {"p": p}, by_kernel(kernel)
        yield TOP_P, {"p": p}, by_kernel(kernel, scores)


def _switched(number: int) -> list[tuple[int, ...]]:
    """The layers alone, and the first ones together: what a retrofit layer by layer passes through."""
    alone = [(layer,) for layer in range(number)]
    return alone + [tuple(range(count)) for count in range(2, number + 1)]


def _row(
    run: Run, model: DecoderModel, batch: Batch, choice: str, choices: Sequence[Choice | None], **numbers: float
) -> dict[str, Any]:
    found = performance(model, batch, choices)
    quality = -found.loss if isinstance(run.config.task, TextBytes) else found.accuracy
    measured = {"accuracy": found.accuracy, "loss": found.loss, "budget": found.budget, "mass": found.mass}
    return {"what": "budget", "choice": choice, **numbers, **measured, "quality": quality}
