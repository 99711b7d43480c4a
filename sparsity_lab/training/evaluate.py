"""Evaluation by length: accuracy and loss with their standard errors, chance and the exact optimum.

A sequence is the unit: values are averaged over its scored targets first, and standard errors are over sequences.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsity_lab.generators import Batch, NotComputable, Stream, Task
from sparsity_lab.models import DecoderModel, ModelOutput
from sparsity_lab.settings.words import Words
from sparsity_lab.training.config import Evaluation, RunConfig
from sparsity_lab.training.free_running import free_running
from sparsity_lab.training.optimize import threads_and_device

_VALIDATED = 256
"""Sequences of each length in a validation."""

_MEASURED = ("accuracy", "exact_match", "free_exact_match", "id_accuracy", "offset_agreement", "loss")
_LEVELS = ("chance_accuracy", "bayes_accuracy", "chance_loss", "bayes_loss")
_COMPARED = ("normalized_accuracy", "excess_loss")


def _with_errors(*names: str) -> list[str]:
    return [f"{name}{ending}" for name in names for ending in ("", "_se")]


EVALUATION_SCHEMA = pl.Schema(
    dict.fromkeys(("condition", "task", "attention"), pl.String())
    | {"length": pl.Int64(), "trained": pl.Boolean(), "sequences": pl.Int64()}
    | dict.fromkeys([*_with_errors(*_MEASURED), *_LEVELS, *_with_errors(*_COMPARED)], pl.Float64())
)
"""Columns of an evaluation frame: losses in nats a scored target; ``_se``, standard error of the column before.

``attention`` is the mechanism that ran, which need not be the trained one: shifted sparse attention is dense at
inference. It is null for models other than decoders.

All but three are measured on the task's own tokens and position IDs (teacher forcing). ``exact_match`` is the share
of sequences with every target right, which is also what greedy free-running decoding gives as long as nothing but
tokens is fed back. ``free_exact_match`` is free-running decoding: measured where the model predicts position IDs, and
equal to ``exact_match`` by that argument elsewhere. ``id_accuracy``: share of scored positions whose next IDs are all
predicted right; null where nothing predicts them. ``offset_agreement``: share of sequences whose free-running answer
stays the same when all IDs move by a random offset of at least 1. It is null without coupled IDs, and where the table
has no room to move them."""

Values = NDArray[np.float64]


def validate(model: nn.Module, config: RunConfig) -> pl.DataFrame:
    """Measure a model while it is trained: on the training task, at the shortest trained length, the middle one and
    the longest, 256 sequences each. They come from the stream ``validation`` of the data seed. Neither training nor
    evaluation ever sees this stream, so a training that it stops is not fitted to its evaluation.

    Returns:
        As ``evaluate``. It depends on nothing that is not part of the run's id.
    """
    grid = Evaluation(lengths=config.validated_lengths, sequences=_VALIDATED, seed=config.data_seed)
    return evaluate(model, config.replace(evaluation=grid), stream="validation")


def evaluate(model: nn.Module, config: RunConfig, *, stream: str = "evaluation") -> pl.DataFrame:
    """Measure a model on the grid of conditions and lengths of ``config.evaluation``.

    Every sequence comes from the ``stream`` of this name, so all models and arms see the same ones.

    >>> frame = evaluate(run.model(), run.config)
    >>> frame["length"].to_list()
    [8, 16]

    Returns:
        One row for each condition and length, with the columns of ``EVALUATION_SCHEMA``. *Normalized* accuracy is
        (accuracy - chance) / (Bayes - chance). Excess loss is the mean, over the same sequences, of the model's loss
        minus the loss of the exact Bayes predictor. What the task does not declare is null.
    """
    low, high = config.training.curriculum.range()
    was_training = model.training
    rows = []
    with threads_and_device(config.training) as device, torch.inference_mode():
        model.to(device).eval()
        for name, task in config.conditions.items():
            for length in config.evaluation.lengths:
                row = _measure(model, task, length, config, device, Stream(seed=config.evaluation.seed, name=stream))
                named = {"condition": name, "task": str(task), "attention": _attention(model)}
                rows.append({**named, "trained": low <= length <= high, **row})
    model.train(was_training)
    return pl.DataFrame(rows, schema=EVALUATION_SCHEMA)


def summarize(evaluation: pl.DataFrame, threshold: float = 0.9) -> pl.DataFrame:
    """What each run, if there is a column ``run``, and condition achieved.

    >>> summarize(run.evaluation, threshold=0.9).columns
    ['condition', 'learned', 'reach', 'censored']

    Returns:
        One row for each, in the order of the frame. *learned*: normalized accuracy is at least ``threshold`` at all
        trained lengths. *reach*: the largest evaluated length up to which it stays there, starting from the shortest
        trained length; null if not learned. *censored*: the reach is the end of the grid, so the true one may be
        larger. All null where the task declares no chance or no optimum.
    """
    keys = [name for name in ("run", "condition") if name in evaluation.columns]
    above = pl.col("normalized_accuracy") >= threshold
    first_trained = pl.col("length").filter("trained").min()
    # Short lengths that were not trained say nothing about reach.
    counted = pl.col("length") >= first_trained
    first_failure = pl.col("length").filter(counted & ~pl.col("above")).min()
    known = pl.col("above").is_not_null().all()
    learned = pl.when(known).then(pl.col("above").filter("trained").all())
    held = pl.col("length").filter(counted & (pl.col("length") < first_failure.fill_null(2**62))).max()
    reach = pl.when(learned).then(held)
    at_end = reach == pl.col("length").max()
    return (
        evaluation.with_columns(above=above)
        .group_by(keys, maintain_order=True)
        .agg(learned=learned, reach=reach, censored=pl.when(known).then(at_end.fill_null(False)))
    )


def _attention(model: nn.Module) -> str | None:
    """The mechanisms of a decoder at inference, each once, in the order of its layers."""
    if not isinstance(model, DecoderModel):
        return None
    return ", ".join(dict.fromkeys(str(kernel.at_inference) for kernel in model.config.kernels))


def _measure(
    model: nn.Module, task: Task, length: int, config: RunConfig, device: torch.device, stream: Stream
) -> dict[str, float | int | None]:
    """One row of the frame, without what names it."""
    parts: dict[str, list[Values]] = {}
    for start, batch in _batches(task, length, config.evaluation, stream):
        words = partial(stream.words, length=length, start=start, count=len(batch))
        for name, values in _by_sequence(model, task, batch, config, device, words).items():
            parts.setdefault(name, []).append(values)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    accuracy = columns["accuracy"]
    truth = task.truth(length)
    row: dict[str, float | int | None] = {"length": length, "sequences": len(accuracy)}
    row |= {name: getattr(truth, name) for name in _LEVELS}
    for name, values in columns.items():
        row[name] = float(values.mean())
        # Not all sequences need have room for an offset; one alone has no standard error.
        row[f"{name}_se"] = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    if truth.chance_accuracy is not None and truth.bayes_accuracy is not None:
        span = truth.bayes_accuracy - truth.chance_accuracy
        if span > 0:
            row["normalized_accuracy"] = float(accuracy.mean() - truth.chance_accuracy) / span
            row["normalized_accuracy_se"] = float(accuracy.std(ddof=1)) / math.sqrt(len(accuracy)) / span
    return row


def _batches(task: Task, length: int, evaluation: Evaluation, stream: Stream) -> Iterator[tuple[int, Batch]]:
    """Batches, and the stream index of the first sequence of each."""
    size = max(1, evaluation.batch_tokens // task.sequence_length(length))
    for start in range(0, evaluation.sequences, size):
        yield start, task.sample(stream, start, min(size, evaluation.sequences - start), length)


def _by_sequence(
    model: nn.Module, task: Task, batch: Batch, config: RunConfig, device: torch.device, words: Words
) -> dict[str, Values]:
    """The measures of each sequence with a scored target. There is no excess loss if the task's Bayes predictor is
    not computable, and no free running if the model predicts no position IDs."""
    scored = batch.scored
    targets = batch.targets[scored]
    ids = config.model.arranged_ids(words, batch.position_ids, training=False)
    output = model(batch.tokens.to(device), None if ids is None else ids.to(device), scored=scored)
    logits = ModelOutput.checked(output).logits.cpu().double()
    losses = _losses(torch.log_softmax(logits, dim=-1), targets)
    right = (logits.argmax(-1) == targets).double()
    accuracy = _averaged(right, scored)
    values = {
        "accuracy": accuracy,
        "exact_match": (accuracy == 1).astype(np.float64),
        "loss": _averaged(losses, scored),
    }
    values["free_exact_match"] = values["exact_match"]
    with contextlib.suppress(NotComputable):
        values["excess_loss"] = _averaged(losses - _losses(task.log_posterior(batch), targets), scored)
    if ids is not None and isinstance(model, DecoderModel):
        values |= free_running(model, batch, ids, words("offset", per_sequence=ids.shape[1]))
    return values


def _losses(log_probabilities: Float[Tensor, "N V"], targets: Tensor) -> Float[Tensor, " N"]:
    return -log_probabilities.gather(1, targets[:, None])[:, 0]


def _averaged(values: Float[Tensor, " N"], scored: Bool[Tensor, "B T"]) -> Values:
    """Mean over the scored targets of each sequence that has any."""
    rows = scored.nonzero()[:, 0].numpy()
    counts = np.bincount(rows, minlength=len(scored))
    sums = np.bincount(rows, weights=values.numpy(), minlength=len(scored))
    means: Values = sums[counts > 0] / counts[counts > 0]
    return means
