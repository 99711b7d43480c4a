"""What is measured, and on what: models by name, and the sequences that they read.

Every measure takes the same first arguments. ``models`` is one of

- a ``Run``, or a ``RunVariant`` of one (``run.with_kernel(...)``), which know their task and trained lengths;
- a ``Decoder``, for which ``data`` names the task or the batch;
- a list of ``LayerRecord``, what a decoder's layers did with one batch, where queries and keys suffice;
- a mapping of names to any of these, to compare several on the same sequences.

``data`` is a task, a batch, or None for a run's own task. Sequences of a task come from the stream ``analysis``, so
that all models see the same ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import polars as pl
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparsity_lab.analysis.length_axis import TrainedRange
from sparsity_lab.analysis.runs import short_name
from sparsity_lab.generators import Batch, Stream, Task
from sparsity_lab.kernels import Kernel
from sparsity_lab.models import DecoderModel
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run, RunVariant

Model = Run | RunVariant | DecoderModel
Models = Model | Sequence[LayerRecord] | Mapping[str, Model | Sequence[LayerRecord]]
Rows = Literal["all", "scored"]
Found = TypeVar("Found")

_TOKENS_TOGETHER = 4096  # bounds what the layers of a decoder hold at a time


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model under its name.

    Attributes:
        label: its name in frames and figures; by default its attention mechanism.
        model: None for bare records.
        records: of a batch, if there is no model.
        run, task, lengths, trained: of a run: it, its task, its evaluated lengths, its trained ones.
    """

    label: str
    model: DecoderModel | None = None
    records: tuple[LayerRecord, ...] = ()
    run: Run | None = None
    task: Task | None = None
    lengths: tuple[int, ...] = ()
    trained: TrainedRange | None = None

    def decoder(self) -> DecoderModel:
        """The model, for measures that run it.

        Raises:
            SettingError: there are records only.
        """
        if self.model is None:
            raise SettingError("models", "records cannot be evaluated again; give a run or a decoder")
        return self.model


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Some sequences of one length.

    Attributes:
        subject: who reads them.
        batch: None for bare records; its position IDs are as the model's coupling arranges them.
        start: index of the first sequence in the stream.
        stream, length: where they come from; the length of a batch is its number of tokens.
    """

    subject: Subject
    batch: Batch | None
    start: int
    stream: Stream
    length: int

    def __len__(self) -> int:
        return len(self.subject.records[0].q) if self.batch is None else len(self.batch)

    def records(self) -> Iterable[LayerRecord]:
        """What each layer did, one after the other."""
        model = self.subject.model
        return self.subject.records if model is None else model.layer_records(self.tokens, self.ids)

    def known_batch(self) -> Batch:
        """The batch, for measures that need tokens and targets.

        Raises:
            SettingError: there are records only.
        """
        if self.batch is None:
            raise SettingError("data", "missing; give the batch that the records come from")
        return self.batch

    def counted(self, rows: Rows) -> Bool[Tensor, "B T"] | None:
        """Which rows a measure looks at: the scored ones, or None for all.

        Raises:
            SettingError: no such choice, or scored rows of bare records.
        """
        if rows not in get_args(Rows):
            raise SettingError("rows", "a choice of rows", rows, get_args(Rows))
        return None if rows == "all" else self.known_batch().scored

    @property
    def tokens(self) -> Int64[Tensor, "B T"]:
        """The tokens, where the model is."""
        return self.known_batch().tokens.to(self.device)

    @property
    def ids(self) -> Int64[Tensor, "B C T"] | None:
        """The position IDs, where the model is."""
        ids = self.known_batch().position_ids
        return None if ids is None else ids.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.subject.decoder().token_embedding.weight.device


class Subjects(list[Subject]):
    """Models, each with its name."""

    @property
    def trained(self) -> TrainedRange | None:
        """The trained lengths; None if no model tells."""
        return TrainedRange.of((one.trained.low, one.trained.high) for one in self if one.trained)

    @property
    def modules(self) -> pl.DataFrame:
        """What models of others call their layers: ``arm``, ``layer`` and ``module``; no row of a model of the lab,
        whose layers have numbers."""
        rows = [
            (subject.label, layer, record.name)
            for subject in self
            for layer, record in enumerate(subject.records)
            if record.name is not None
        ]
        return pl.DataFrame(rows, schema={"arm": pl.String, "layer": pl.Int64, "module": pl.String}, orient="row")

    def with_modules(self, frame: pl.DataFrame) -> pl.DataFrame:
        """See ``with_module_names``."""
        return with_module_names(frame, self.modules)


def subjects_of(models: Models) -> Subjects:
    """The models, each with its name.

    Raises:
        SettingError: none, or what is no model.
    """
    named = models.items() if isinstance(models, Mapping) else [("", models)]
    found = Subjects(_subject(model, str(name)) for name, model in named)
    if not found:
        raise SettingError("models", "at least one model or record", models)
    return found


def sequences_of(
    subject: Subject,
    data: Task | Batch | None,
    lengths: Iterable[int] | None,
    count: int,
    seed: int,
    multiple: int = 1,
    first: int = 0,
) -> Iterator[tuple[int, Iterator[Sequences]]]:
    """Each length, ascending, with its sequences, a few thousand tokens at a time.

    Args:
        count: number of sequences of each length; of a batch, all.
        multiple: the sequences come in groups of so many, which are never separated.
        first: index of the first sequence of a task.

    Raises:
        SettingError: no task or lengths to take, or lengths of a batch.
    """
    stream, model = Stream(seed=seed, name="analysis"), subject.model
    piece = partial(Sequences, subject=subject, stream=stream)
    if isinstance(data, Batch) or model is None:
        if lengths is not None:
            raise SettingError("lengths", "None, since the batch fixes the length", lengths)
        length, parts = _whole_batch(subject, data, multiple)
        yield length, (piece(batch=part, start=start, length=length) for start, part in parts)
        return
    task = subject.task if data is None else data
    if task is None:
        raise SettingError("data", "missing; a decoder on its own needs a task or a batch")
    wanted = tuple(subject.lengths if lengths is None else lengths)
    if not wanted:
        raise SettingError("lengths", "at least one length", lengths)
    if count < 1 or count % multiple:
        raise SettingError("sequences", f"a positive multiple of {multiple}", count)
    for length in sorted(set(wanted)):
        task.check_length(length)
        size = _together(task.sequence_length(length), multiple)

        def sampled(start: int, length: int = length, size: int = size) -> Sequences:
            batch = task.sample(stream, start, min(size, first + count - start), length)
            words = partial(stream.words, length=length, start=start, count=len(batch))
            batch.position_ids = model.config.arranged_ids(words, batch.position_ids, training=False)
            return piece(batch=batch, start=start, length=length)

        yield length, map(sampled, range(first, first + count, size))


def measured_layers(
    subjects: Iterable[Subject],
    data: Task | Batch | None,
    lengths: Iterable[int] | None,
    count: int,
    seed: int,
    measure: Callable[[Sequences, LayerRecord], Found],
) -> Iterator[tuple[dict[str, Any], list[Found]]]:
    """For each model, length and layer, these three as ``arm``, ``length`` and ``layer``, and what ``measure`` found
    on each few sequences; see ``sequences_of``."""
    for subject in subjects:
        for length, pieces in sequences_of(subject, data, lengths, count, seed):
            found: dict[int, list[Found]] = {}
            for piece in pieces:
                for layer, record in enumerate(piece.records()):
                    found.setdefault(layer, []).append(measure(piece, record))
            for layer, parts in found.items():
                yield {"arm": subject.label, "length": length, "layer": layer}, parts


def with_module_names(frame: pl.DataFrame, names: pl.DataFrame) -> pl.DataFrame:
    """A frame with the column ``module`` after ``layer``, or the frame itself where there are no names."""
    if names.is_empty():
        return frame
    joined = frame.join(names, on=["arm", "layer"], how="left", maintain_order="left")
    place = frame.columns.index("layer") + 1
    return joined.select(*frame.columns[:place], "module", *frame.columns[place:])


def _subject(model: Model | Sequence[LayerRecord], label: str) -> Subject:
    if isinstance(model, Sequence):
        records = tuple(model)
        if not all(isinstance(record, LayerRecord) for record in records):
            raise SettingError("models", "layer records, or a mapping from names to models", model)
        if not records:
            raise SettingError("models", "at least one model or record", model)
        return Subject(label=label or _kernel_label(record.kernel for record in records), records=records)
    if isinstance(model, DecoderModel):
        return Subject(label=label or _kernel_label(model.config.kernels), model=model)
    if not isinstance(model, Run | RunVariant):
        raise SettingError("models", "a run, a variant of one, a decoder or records", model)
    run, decoder = run_of(model), model.model()
    config = run.config
    if not isinstance(decoder, DecoderModel):
        raise SettingError("models", "a run of a Decoder", config.model)
    return Subject(
        label=label or _kernel_label(decoder.config.kernels),
        model=decoder,
        run=run,
        task=config.task,
        lengths=config.evaluation.lengths,
        trained=TrainedRange(*config.training.curriculum.range()),
    )


def run_of(model: Run | RunVariant) -> Run:
    """The run itself, of a variant too."""
    return model if isinstance(model, Run) else model.run


def _kernel_label(kernels: Iterable[Kernel]) -> str:
    return " + ".join(dict.fromkeys(short_name(str(kernel)) for kernel in kernels))


def _whole_batch(
    subject: Subject, data: Task | Batch | None, multiple: int
) -> tuple[int, Iterable[tuple[int, Batch | None]]]:
    """Its length, and its parts with where they start."""
    shape = subject.records[0].q.shape if subject.records else None
    if isinstance(data, Task):
        raise SettingError("data", "the batch that the records come from, or None", data)
    if data is None:
        assert shape is not None
        return shape[2], [(0, None)]
    length = data.tokens.shape[1]
    if shape and (len(data), length) != (shape[0], shape[2]):
        raise SettingError("data", "the batch that the records come from", data)
    if len(data) % multiple:
        raise SettingError("data", f"a multiple of {multiple} sequences", len(data))
    size = len(data) if shape else _together(length, multiple)
    return length, ((start, _rows_of(data, slice(start, start + size))) for start in range(0, len(data), size))


def _rows_of(batch: Batch, rows: slice) -> Batch:
    ids, sources = (None if part is None else part[rows] for part in (batch.position_ids, batch.sources))
    return Batch(batch.tokens[rows], batch.targets[rows], ids, sources, vocabulary=batch.vocabulary)


def _together(num_tokens: int, multiple: int) -> int:
    """How many sequences of so many tokens go through a model at a time."""
    return max(1, _TOKENS_TOGETHER // (num_tokens * multiple)) * multiple
