"""What is measured on each run beside its evaluation: time and memory of a training step, and the weights."""

import functools
from collections.abc import Callable
from functools import partial

import polars as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sparsity_lab.benchmarks import alternate, peak_memory
from sparsity_lab.generators import Stream, Task
from sparsity_lab.kernels import Softmax
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run, threads_and_device

__all__ = ["COSTED", "LONG", "measure"]

COSTED = {256: 8, 2048: 1}
"""Lengths of the training steps whose cost is measured, each with its number of sequences."""
LONG = max(COSTED)


def measure(run: Run) -> pl.DataFrame:
    """One row for each length of ``COSTED``: ``speed``, how many times as many tokens a second a training step takes
    as with softmax; ``peak_mib`` of that step, and ``memory``, the same over softmax's; and the number of weights."""
    config = run.config
    if not isinstance(config.model, Decoder):
        raise SettingError("run.model", "a Decoder", config.model)
    kernels = Softmax(), config.model.kernel
    dense, own = (config.model.replace(kernel=kernel) for kernel in kernels)
    smoke = config.training.steps < 100
    rows = []
    with threads_and_device(config.training):
        for length, count in {16: 1}.items() if smoke else COSTED.items():
            steps = [_step_of(model, config.task, config.data_seed, count, length) for model in (dense, own)]
            for once in steps:
                once()
            _, _, ratio = alternate(steps[0], steps[1], rounds=1 if smoke else 5)
            of_dense, peak = (_peak(model, config.task, count, length) for model in (dense, own))
            rows.append(
                {
                    "length": length,
                    "kernel": str(config.model.kernel),
                    "speed": 1 / ratio,
                    "peak_mib": peak / 2**20,
                    "memory": peak / of_dense,
                    "parameters": sum(parameter.numel() for parameter in run.model().parameters()),
                }
            )
    return pl.DataFrame(rows)


def _step_of(model: Decoder, task: Task, seed: int, count: int, length: int) -> Callable[[], None]:
    """A training step of an untrained model."""
    tokens = task.sample(Stream(seed=seed), 0, count, length).tokens
    return partial(_step, model.build(seed, task.vocabulary.size).train(), tokens)


@functools.cache
def _peak(model: Decoder, task: Task, count: int, length: int) -> int:
    """Peak memory of a training step; it is the same for all seeds."""
    step = _step_of(model, task, 0, count, length)
    step()
    return peak_memory(step)


def _step(model: nn.Module, tokens: torch.Tensor) -> None:
    """Forward and backward, with every token a target and with the losses of the mechanism itself."""
    logits, auxiliary_losses = model(tokens, generator=torch.Generator().manual_seed(0))
    loss: torch.Tensor = sum(auxiliary_losses.values(), cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
