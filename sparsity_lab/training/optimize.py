"""The training loop.

Step s trains on sequences [s B, (s + 1) B) of the stream ``train`` at the curriculum's length. So a step depends only
on the config and the previous weights, and a run resumed from a checkpoint equals an uninterrupted one bit for bit.
"""

import contextlib
import fnmatch
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsity_lab.generators import Stream
from sparsity_lab.models import ModelOutput
from sparsity_lab.settings import SettingError
from sparsity_lab.settings.log import plain_logger
from sparsity_lab.training.checkpoint import load_checkpoint, save_checkpoint
from sparsity_lab.training.config import RunConfig, Training
from sparsity_lab.training.files import Check, DamagedFile

_LOG = plain_logger(__name__)
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

Progress = Callable[[int, int, float, float], None]
"""Called at each logged step with (steps done, steps in all, loss, accuracy)."""


class Diverged(ArithmeticError):
    """The loss, the gradient or the weights of a run stopped being finite.

    >>> Diverged(step=12, loss=float("inf"), reason="loss not finite").step
    12

    Attributes:
        step: the first step that met it; the number of steps if it is the weights that the last one left.
        loss: that step's loss, or the last one.
        reason: what stopped being finite.
        run: the run's id.
    """

    def __init__(self, step: int, loss: float, reason: str, run: str = "") -> None:
        self.step, self.loss, self.reason, self.run = step, loss, reason, run
        super().__init__(step, loss, reason, run)

    def __str__(self) -> str:
        return f"run {self.run or '?'} diverged at step {self.step}: {self.reason}"


@dataclass
class Records:
    """Rows recorded so far, one for each logged step.

    Attributes:
        metrics: step, length, loss (nats a scored target), accuracy, gradient_norm (before clipping), learning_rate.
        timing: phase, step, tokens and seconds since the row before.
    """

    metrics: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float | str]] = field(default_factory=list)


@contextlib.contextmanager
def threads_and_device(training: Training) -> Iterator[torch.device]:
    """Torch's thread count, and on a GPU its deterministic algorithms and the digits of products of float32 matrices,
    as the settings want them; restored after.

    >>> with threads_and_device(Training(threads=1)) as device:
    ...     print(device, torch.get_num_threads())
    cpu 1
    """
    threads = torch.get_num_threads()
    device = torch.device(training.device)
    torch.set_num_threads(training.threads)
    try:
        with _deterministic(training.precision) if device.type == "cuda" else contextlib.nullcontext():
            yield device
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _deterministic(precision: str) -> Iterator[None]:
    """Deterministic algorithms, the cuBLAS workspace that they need, and TF32 where it is asked for. Memory without
    meaning is not filled: nothing reads it."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    products, fills = torch.get_float32_matmul_precision(), deterministic.fill_uninitialized_memory
    workspace = os.environ.get(_WORKSPACE)
    # Without a fixed workspace cuBLAS may choose another order of summation each time, and torch refuses it.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fills
        torch.set_float32_matmul_precision(products)
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


def optimize(
    config: RunConfig,
    model: nn.Module,
    records: Records,
    checkpoint: Path,
    progress: Progress | None = None,
    check: Check | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
    validate: Callable[[int], bool] | None = None,
) -> None:
    """Train ``model`` in place, from ``checkpoint`` on if there is one.

    Args:
        records: filled with the rows of the whole run, those made before an interruption included.
        checkpoint: file that is read first and written every ``checkpoint_every`` steps. A damaged one is worth as
            much as none: training starts at the beginning, and a warning in the log says so.
        check: called at each logged step and before a checkpoint is put in its place; what it raises ends the
            training.
        log: called with each row of the metrics.
        validate: called with the number of steps done, every ``validate_every`` steps; whether the training ends
            there. It leaves the model as it was.

    Raises:
        Diverged: the loss, the gradient or the weights are not finite; ``records`` then hold the logged steps
            before.
    """
    training = config.training
    with threads_and_device(training) as device:
        model.to(device).train()
        loop = _Loop(config, model, records, device)
        start = loop.resume(checkpoint)
        batches = _step_inputs(config, start, device)
        following = next(batches, None)
        for step in range(start, training.steps):
            assert following is not None
            batch, rate = following, training.rate(step)
            logits, loss, norm = loop.update(step, batch, rate)
            following = next(batches, None)  # made while a GPU is busy with this step
            ends = False
            if validate and training.validate_every and (step + 1) % training.validate_every == 0:
                loop.look(step)
                begun = time.perf_counter()
                ends = validate(step + 1)
                loop.clock += time.perf_counter() - begun
            last = ends or step + 1 == training.steps
            if step % training.log_every == 0 or last:
                loop.look(step)
                accuracy = float((logits.argmax(-1) == batch.targets).float().mean())
                loop.record(step, batch.length, float(loss), accuracy, float(norm), rate)
                if check:
                    check()
                if log:
                    log(records.metrics[-1])
                if progress:
                    progress(step + 1, training.steps, float(loss), accuracy)
            keep = training.checkpoint_every and (step + 1) % training.checkpoint_every == 0
            if last or keep:
                loop.look(step)
                loop.check_weights(step + 1, float(loss))
            if keep and not last:
                record = {"run": config.id, "step": step + 1, **vars(records)}
                save_checkpoint(checkpoint, model, loop.optimizer, record, check)
            if ends:
                return


def parameter_groups(model: nn.Module, training: Training) -> list[dict[str, Any]]:
    """The trained parameters, in groups of one weight decay each, for an optimizer.

    Raises:
        SettingError: a pattern of ``weight_decay_by`` matches no parameter of this model.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in training.weight_decay_by:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            expected = "a pattern that some parameter's name matches"
            raise SettingError(f"training.weight_decay_by.{pattern}", expected, pattern, names)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = [pattern for pattern in training.weight_decay_by if fnmatch.fnmatchcase(name, pattern)]
            decay = training.weight_decay_by[max(own, key=len)] if own else training.weight_decay
            groups.setdefault(decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


class _Loop:
    """One training run in progress."""

    def __init__(self, config: RunConfig, model: nn.Module, records: Records, device: torch.device) -> None:
        training = config.training
        self.config, self.model, self.records, self.device = config, model, records, device
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, training), lr=training.learning_rate, betas=training.betas, fused=True
        )
        # Kernels that draw at random get words of their own at every step, so that a step can be repeated.
        self.kernel_stream = Stream(seed=config.data_seed, name="train")
        self.generator = torch.Generator(device)
        # Losses and gradient norms of the steps since the last look at them, which costs a GPU a stop.
        self.unseen: list[tuple[Tensor, Tensor]] = []
        self.tokens, self.clock = 0, time.perf_counter()

    def update(self, step: int, batch: "_StepInputs", rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """One update; logits (N, V), loss and gradient norm before it."""
        (word,) = self.kernel_stream.words("kernel", 0, step, 1, 1)[0].tolist()
        self.generator.manual_seed(word >> 1)
        parts = batch.parts(self.config.training.accumulation)
        found = [self._gradients(part, len(batch.targets), len(parts)) for part in parts]
        logits, losses = zip(*found, strict=True)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.training.clip, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = torch.stack(losses).sum()
        self.unseen.append((loss, norm))
        self.tokens += batch.tokens.numel()
        return torch.cat(logits), loss, norm

    def _gradients(self, part: "_StepInputs", num_targets: int, num_parts: int) -> tuple[Tensor, Tensor]:
        """Add up the gradients of a part of a step; its logits, and its share of the loss of all targets."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            options = {"indices": part.indices, "scored": part.scored, "generator": self.generator}
            logits, auxiliary_losses = ModelOutput.checked(self.model(part.tokens, part.position_ids, **options))
            if num_parts == 1:
                loss = cross_entropy(logits, part.targets)
            else:
                loss = cross_entropy(logits, part.targets, reduction="sum") / num_targets
        total: Tensor = sum((x / num_parts if num_parts > 1 else x for x in auxiliary_losses.values()), loss)
        total.backward()  # type: ignore[no-untyped-call]
        return logits.detach(), loss.detach()

    def look(self, step: int) -> None:
        """Raise ``Diverged`` if a step since the last look was not finite."""
        if not self.unseen:
            return
        losses, norms = (torch.stack(values) for values in zip(*self.unseen, strict=True))
        bad = (~(losses.isfinite() & norms.isfinite())).nonzero()
        if len(bad):
            first = int(bad[0])
            loss = float(losses[first])
            reason = f"gradient not finite at loss {loss:.4g}" if math.isfinite(loss) else f"loss {loss}"
            raise Diverged(step + 1 - len(self.unseen) + first, loss, reason, self.config.id)
        self.unseen.clear()

    def check_weights(self, steps: int, loss: float) -> None:
        """Raise ``Diverged`` if the weights after ``steps`` steps, which no loss has met yet, are not finite."""
        if not torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all():
            raise Diverged(steps, loss, f"weights not finite after {steps} steps", self.config.id)

    def record(self, step: int, length: int, loss: float, accuracy: float, norm: float, rate: float) -> None:
        now = time.perf_counter()
        row = {"step": step, "length": length, "loss": loss, "accuracy": accuracy}
        self.records.metrics.append({**row, "gradient_norm": norm, "learning_rate": rate})
        seconds = now - self.clock
        self.records.timing.append({"phase": "training", "step": step, "tokens": self.tokens, "seconds": seconds})
        self.tokens, self.clock = 0, now

    def resume(self, checkpoint: Path) -> int:
        """Load the checkpoint if there is an intact one; the step to go on with."""
        try:
            record = load_checkpoint(checkpoint, self.model, self.optimizer, self.config.id)
        except FileNotFoundError:
            return 0
        except DamagedFile as error:
            _LOG.warning("%s; training starts at the beginning", error)
            return 0
        self.records.metrics[:], self.records.timing[:] = record["metrics"], record["timing"]
        return int(record["step"])


@dataclass(frozen=True, slots=True)
class _StepInputs:
    """What a step needs, on its device: tokens (B, T), targets (N,) of the scored positions. Which these are, scored
    (B, T), stays on the CPU, where a look at it waits for nothing."""

    length: int
    tokens: Tensor
    targets: Tensor
    scored: Tensor
    position_ids: Tensor | None
    indices: Tensor | None

    def parts(self, number: int) -> "list[_StepInputs]":
        """The same sequences in parts of equal size, one after the other."""
        if number == 1:
            return [self]
        size = len(self.scored) // number
        counts = self.scored.view(number, -1).sum(1).tolist()

        def of_each(x: Tensor | None) -> Sequence[Tensor | None]:
            return [x] * number if x is None or len(x) == 1 else torch.split(x, size)

        fields = (
            torch.split(self.tokens, size),
            torch.split(self.targets, counts),
            torch.split(self.scored, size),
            of_each(self.position_ids),
            of_each(self.indices),
        )
        return [_StepInputs(self.length, *part) for part in zip(*fields, strict=True)]


def _on(device: torch.device, x: Tensor) -> Tensor:
    """On the device; what a GPU does goes on while it is copied."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _step_inputs(config: RunConfig, start: int, device: torch.device) -> Iterator[_StepInputs]:
    """What steps ``start`` and later need."""
    training = config.training
    stream = Stream(seed=config.data_seed, name="train")
    count = training.batch_size
    for step in range(start, training.steps):
        length = training.curriculum.at(stream, step, training.steps)
        batch = config.task.sample(stream, step * count, count, length)
        scored = batch.scored
        words = partial(stream.words, length=length, start=step * count, count=count)
        indices = config.model.sampled_indices(words, batch.tokens.shape[1])
        position_ids = config.model.arranged_ids(words, batch.position_ids, training=True)
        yield _StepInputs(
            length,
            _on(device, batch.tokens),
            _on(device, batch.targets[scored]),
            scored,
            None if position_ids is None else _on(device, position_ids),
            None if indices is None else _on(device, indices),
        )
