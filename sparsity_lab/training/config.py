"""The settings of a run: how to train, what to evaluate, and the whole that has an id."""

import math
import re
from collections.abc import Mapping
from dataclasses import field
from functools import cached_property
from typing import ClassVar, Literal

from sparsity_lab.generators import Planted, Task
from sparsity_lab.models import Adapter, Decoder, ModelConfig
from sparsity_lab.settings import (
    Setting,
    SettingError,
    Shown,
    check_least,
    check_most,
    check_that,
    identifier,
    register,
    settings_in,
    with_each,
)
from sparsity_lab.settings.errors import inside
from sparsity_lab.settings.setting import kept
from sparsity_lab.training import memory
from sparsity_lab.training.curriculum import Curriculum, UniformLength

TRAINED_CONDITION = "trained"
"""Name of the condition that evaluates the training task itself."""
LEARNED = 0.9
"""Normalized accuracy that counts as learned."""
_LONGEST_TRAINED = 2**20
_MOST_TOKENS = 2**26
"""Of a training step, and of what is evaluated at a time."""
_MOST_SEQUENCES = 2**26
_MOST_THREADS = 1024
_MOST_ROWS = 2**20
"""Of the metrics of a run, which are read whole."""
_LEAST = {
    1: ("batch_size", "log_every", "accumulation", "threads"),
    0: ("steps", "checkpoint_every", "validate_every", "weight_decay"),
}
"""Of the numbers of a training."""
_MOST_MEASURED = 2**16
"""Conditions and lengths of an evaluation, in pairs."""


@register
class Training(Setting, family="training"):
    """How a run is optimized: AdamW on the scored targets, linear warm-up, cosine decay, clipped gradients.

    Attributes:
        steps: number of optimizer steps; 0 leaves the initial weights, or the parent's, as they are.
        batch_size: sequences a step.
        curriculum: law of the training lengths.
        learning_rate: the peak.
        warmup: share of the steps in which the rate rises linearly to its peak; never the last step.
        final_fraction: rate of the last step, as a share of the peak; a run of one step has the peak.
        betas, weight_decay: of AdamW.
        weight_decay_by: another decay for the parameters whose names match a pattern, as in ``{"*norm*": 0.0}``; of
            several patterns that match, the longest counts.
        clip: largest gradient norm; a larger gradient is scaled down to it.
        checkpoint_every: steps between two checkpoints; 0 writes none, and an interrupted run starts again.
        log_every: steps between two rows of the metrics; the last step always has one.
        validate_every: steps between two validations, of which loggers are told; 0: none. See ``validate``.
        stop_when: ``"learned"`` ends the training at the first validation that finds a normalized accuracy of at
            least 0.9 at every length.
        accumulation: number of equal parts that each batch is split into, if it does not fit in memory as a whole.
            They run one after the other, and their gradients are added up.
        precision: of training; weights, their updates and all evaluation are in float32. ``"float32"``; ``"tf32"``,
            products of float32 matrices with ten bits of mantissa on GPUs that have it, elsewhere as float32;
            ``"bf16"``, autocast to bfloat16.
        threads: CPU threads of torch, for training and evaluation.
        device: ``cpu``, ``cuda``, ``cuda:1`` and so on. Like ``threads``, it is not part of a run's id. A sweep that
            began on one device can continue on another; its numbers may then differ in their last digits.
    """

    not_in_id: ClassVar[tuple[str, ...]] = ("device", "threads")

    steps: int = 300
    batch_size: int = 64
    curriculum: Curriculum = UniformLength()
    learning_rate: float = 1e-3
    warmup: float = 0.05
    final_fraction: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    weight_decay_by: Mapping[str, float] = field(default_factory=dict)
    clip: float = 1.0
    checkpoint_every: int = 0
    log_every: int = 10
    validate_every: int = 0
    stop_when: Literal["learned"] | None = None
    accumulation: int = 1
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    threads: int = 1
    device: str = "cpu"

    @classmethod
    def examples(cls) -> "tuple[Training, ...]":
        return (cls(), cls(weight_decay_by={"*norm*": 0.0}, validate_every=100, stop_when="learned"))

    def check(self) -> None:
        for least, names in _LEAST.items():
            check_least(least, **{name: getattr(self, name) for name in names})
        check_most(_MOST_SEQUENCES, batch_size=self.batch_size)
        check_most(_MOST_THREADS, threads=self.threads)
        check_least(0, **{f"weight_decay_by.{pattern}": decay for pattern, decay in self.weight_decay_by.items()})
        if self.stop_when and not self.validate_every:
            raise SettingError("validate_every", f"at least 1 with stop_when = {self.stop_when!r}", 0)
        if self.steps // self.log_every > _MOST_ROWS:
            expected = f"at least {-(-self.steps // _MOST_ROWS)} for {self.steps} steps"
            raise SettingError("log_every", expected, self.log_every)
        for name in ("learning_rate", "clip"):
            check_that(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        check_that(0 <= self.warmup < 1, "warmup", "a share of the steps, at least 0 and below 1", self.warmup)
        share = "a share of the learning rate, from 0 to 1"
        check_that(0 <= self.final_fraction <= 1, "final_fraction", share, self.final_fraction)
        for i, beta in enumerate(self.betas):
            check_that(0 <= beta < 1, f"betas[{i}]", "at least 0 and below 1", beta)
        if self.batch_size % self.accumulation:
            raise SettingError("accumulation", f"a divisor of the batch_size {self.batch_size}", self.accumulation)
        if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", self.device):
            why = ": mps has no float64, in which positions are computed" if self.device.startswith("mps") else ""
            raise SettingError("device", f"cpu, cuda or cuda:N{why}", self.device)

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear to the peak at the end of the warm-up, then a half cosine down to
        ``final_fraction`` of it at the last step. A run of one step has the peak."""
        last = self.steps - 1
        warm = min(round(self.warmup * self.steps), last)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if last == 0:
            return self.learning_rate
        progress = (step - warm) / (last - warm) if warm < last else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


@register
class Evaluation(Setting, family="evaluation"):
    """What is measured after training, a grid of conditions and lengths.

    Attributes:
        lengths: evaluated lengths, ascending.
        sequences: sequences for each condition and length; the same for all runs that share ``seed``.
        batch_tokens: tokens evaluated at a time, at least one sequence.
        seed: of the stream ``evaluation``; independent of every training stream.
        conditions: tasks by name; without any, the training task under the name ``trained``.
        threshold: normalized accuracy that counts as learned.
    """

    lengths: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128, 192)
    sequences: int = 1024
    batch_tokens: int = 16_384
    seed: int = 0
    conditions: Mapping[str, Task] = field(default_factory=dict)
    threshold: float = LEARNED

    def check(self) -> None:
        check_that(self.lengths, "lengths", "at least one length", self.lengths)
        for i, length in enumerate(self.lengths):
            check_that(length >= 1, f"lengths[{i}]", "a positive length", length)
            if i and length <= self.lengths[i - 1]:
                raise SettingError(f"lengths[{i}]", f"a length above {self.lengths[i - 1]}, the one before", length)
        # One sequence has no standard error.
        check_least(2, sequences=self.sequences)
        check_least(1, batch_tokens=self.batch_tokens)
        check_most(_MOST_SEQUENCES, sequences=self.sequences)
        check_most(_MOST_TOKENS, batch_tokens=self.batch_tokens)
        pairs = max(1, len(self.conditions)) * len(self.lengths)
        most = f"at most {_MOST_MEASURED} pairs of a condition and a length"
        check_that(pairs <= _MOST_MEASURED, "lengths", most, pairs)
        fits = 0 < self.threshold <= 1
        check_that(fits, "threshold", "a normalized accuracy above 0, at most 1", self.threshold)


@register
class RunConfig(Setting, family="run"):
    """A model, trained on a task, evaluated by length: one run.

    Attributes:
        task: the training task.
        model: the model's configuration.
        training: how it is trained.
        evaluation: what is measured; not part of ``id``, so that changing it never retrains.
        data_seed: of the stream ``train``: sequences, lengths and position offsets.
        model_seed: of the initial weights.
        parent: a run that is made first, in the same folder, and whose weights this one starts from. Kernels,
            positions and all else that has no weights may differ; they are this run's own, as its config says.
        adapter: what of the parent's weights is trained further, and how; None trains all.
    """

    not_in_id: ClassVar[tuple[str, ...]] = ("evaluation",)

    task: Task
    model: ModelConfig = Decoder()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    data_seed: int = 0
    model_seed: int = 0
    parent: "RunConfig | None" = None
    adapter: Adapter | None = None

    @classmethod
    def examples(cls) -> "tuple[RunConfig, ...]":
        return (cls(task=Planted()), cls(task=Planted(), parent=cls(task=Planted(k=1))))

    @cached_property
    def id(self) -> str:
        """Hash of all that decides the trained weights: not ``evaluation``, nor where it is computed."""
        return identifier(self)

    @cached_property
    def evaluation_id(self) -> str:
        """Hash of ``evaluation``; with ``id``, it decides every number of the evaluation."""
        return identifier(self.evaluation)

    @property
    def conditions(self) -> dict[str, Task]:
        """The evaluated tasks by name, sorted, so that equal configs give equal files."""
        return dict(sorted(self.evaluation.conditions.items())) or {TRAINED_CONDITION: self.task}

    @property
    def grid(self) -> list[tuple[str, int]]:
        """The evaluated conditions and lengths, in the order of the evaluation's rows."""
        return [(name, length) for name in self.conditions for length in self.evaluation.lengths]

    @property
    def is_planned(self) -> bool:
        """Whether the fields say all that decides the data, hashes of texts included."""
        return all(setting.is_planned for setting in settings_in(self) if isinstance(setting, Task))

    def planned(self) -> "RunConfig":
        """This run, with everything that its tasks read from outside named in their fields. An example is the hash of
        a text, which then replaces the path in the id. What is read is opened, and its length checked.

        Raises:
            SettingError: it cannot be read, is another one than the fields say, or too short.
        """
        run = self if self.is_planned else with_each(self, _planned)
        _check_opened("task", run.task, {run.training.curriculum.range()[1]: "training.curriculum"})
        lengths = {length: f"evaluation.lengths[{i}]" for i, length in enumerate(run.evaluation.lengths)}
        for name, task in run.conditions.items():
            _check_opened("task" if task == run.task else f"evaluation.conditions.{name}", task, lengths)
        return run

    @property
    def validated_lengths(self) -> tuple[int, ...]:
        """The shortest trained length, the middle one and the longest."""
        low, high = self.training.curriculum.range()
        return tuple(sorted({low, (low + high) // 2, high}))

    def check(self) -> None:
        self._check_vocabulary()
        self._check_lengths()
        self._check_stop()
        self._check_coupling()
        self._check_adapter()

    def _check_vocabulary(self) -> None:
        size = self.task.vocabulary.size
        if isinstance(self.model, Decoder) and self.model.vocab_size not in (None, size):
            raise SettingError("model.vocab_size", f"None or the task's {size}", self.model.vocab_size)
        for name, task in self.evaluation.conditions.items():
            path = f"evaluation.conditions.{name}"
            if name == TRAINED_CONDITION and task != self.task:
                raise SettingError(path, "the training task, under this name", task)
            if task.vocabulary != self.task.vocabulary:
                expected = f"a task with the vocabulary of {self.task}"
                raise SettingError(path, expected, task)
        if self.parent and self.parent.task.vocabulary.size != size:
            expected = f"a vocabulary of {size} tokens, like the child's"
            raise SettingError("parent.task", expected, self.parent.task.vocabulary.size)

    def _check_lengths(self) -> None:
        low, high = self.training.curriculum.range()
        # Each is asked for, and a number with too many digits would have that go on for ever.
        if high > _LONGEST_TRAINED:
            raise SettingError("training.curriculum", f"training lengths of at most {_LONGEST_TRAINED}", high)
        check_most(_MOST_TOKENS, **{f"evaluation.lengths[{i}]": n for i, n in enumerate(self.evaluation.lengths)})
        for length in range(low, high + 1):
            _check_length(self.task, length, "training.curriculum", "")
        for name, task in self.conditions.items():
            note = "" if name == TRAINED_CONDITION else f" (condition {name})"
            for i, length in enumerate(self.evaluation.lengths):
                _check_length(task, length, f"evaluation.lengths[{i}]", note)
        if not any(low <= length <= high for length in self.evaluation.lengths):
            expected = f"at least one trained length ({low} to {high})"
            raise SettingError("evaluation.lengths", expected, self.evaluation.lengths)
        step = self.training.batch_size * self.task.sequence_length(high)
        for path, tokens in (("training.batch_size", step), ("evaluation.lengths", self._longest())):
            check_that(tokens <= _MOST_TOKENS, path, f"at most {_MOST_TOKENS} tokens at a time", tokens)
        with inside("model"):
            self.model.check_length(self._longest(), trained=self.task.sequence_length(high))

    def _check_stop(self) -> None:
        if self.training.stop_when is None:
            return
        for length in self.validated_lengths:
            truth = self.task.truth(length)
            if truth.chance_accuracy is None or truth.bayes_accuracy is None:
                expected = "None for a task that does not declare the accuracies of chance and optimum"
                raise SettingError("training.stop_when", expected, self.training.stop_when)

    def _check_coupling(self) -> None:
        longest = max(self.training.curriculum.range()[1], self.evaluation.lengths[-1])
        tasks = {"task": self.task} | {f"evaluation.conditions.{n}": t for n, t in self.evaluation.conditions.items()}
        for path, task in tasks.items():
            # Most runs of a sweep have one task.
            largest = kept(task, ("largest position ID", longest), lambda one: one.largest_position_id(longest))
            if largest and isinstance(self.model, Decoder) and self.model.coupling is None:
                unset = f"{path} has coupled IDs but model.coupling is None"
                raise SettingError("model.coupling", f"{unset}; set Oracle, Predicted or Ignored")
            with inside("model"):
                self.model.check_position_ids(largest, task.num_kinds if largest else 0)

    def _check_adapter(self) -> None:
        if self.adapter is None:
            return
        if self.parent is None:
            raise SettingError("adapter", "None, since there is no parent whose weights to adapt", str(self.adapter))
        with inside("adapter"):
            self.adapter.check_model(self.model)

    def num_bytes(self) -> int:
        """Memory that the run takes at least, by the model's own estimate; 0 if the model has none."""
        V = self.task.vocabulary.size
        trained, evaluated = self._tokens()
        return max(
            self.model.num_bytes(trained, V, training=True), self.model.num_bytes(evaluated, V, training=False)
        )

    def check_memory(self) -> None:
        """Refuse a run that needs more memory than its device has.

        Raises:
            SettingError: with both numbers.
        """
        device, needed = self.training.device, self.num_bytes()
        there = memory.memory_of(device)
        if there is not None and needed > there:
            where = "this machine" if device == "cpu" else device
            expected = f"a run that fits in {where}'s memory, {memory.gigabytes(there)}"
            trained, evaluated = self._tokens()
            tokens = f"{trained:,} tokens per step and {evaluated:,} evaluated at a time"
            raise SettingError("model", expected, Shown(f"about {memory.gigabytes(needed)} for {tokens}"))

    def _tokens(self) -> tuple[int, int]:
        """Tokens of the largest training step, and evaluated at a time."""
        trained = self.training.batch_size * self.task.sequence_length(self.training.curriculum.range()[1])
        return trained, max(min(self.evaluation.batch_tokens, _MOST_TOKENS), self._longest())

    def _longest(self) -> int:
        """Sequence positions of the longest sequence in training and evaluation."""
        trained = self.task.sequence_length(self.training.curriculum.range()[1])
        return max(trained, *(t.sequence_length(self.evaluation.lengths[-1]) for t in self.conditions.values()))


def _planned(setting: Setting) -> Setting:
    return setting.planned() if isinstance(setting, Task) else setting


def _check_opened(path: str, task: Task, lengths: Mapping[int, str]) -> None:
    """Open what a task reads, and see whether it is long enough for lengths, whose places are given."""
    for length in lengths:
        try:
            task.planned((length,))
        except SettingError as error:
            if error.path != "length":
                raise error.inside(path) from None
            raise SettingError(lengths[length], error.expected, length) from None


def _check_length(task: Task, length: int, path: str, note: str) -> None:
    try:
        task.check_length(length)
    except SettingError as error:
        raise SettingError(path, error.expected + note, length) from None
