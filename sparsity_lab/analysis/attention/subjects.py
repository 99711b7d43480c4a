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
from typing import Literal, TypeVar, get_args

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
        task, lengths, trained: of a run: its task, its evaluated lengths, its smallest and largest trained length.
    """

    label: str
    model: DecoderModel | None = None
    records: tuple[LayerRecord, ...] = ()
    task: Task | None = None
    lengths: tuple[int, ...] = ()
    trained: tuple[int, int] | None = None

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
        batch: None for bare records.
        position_ids: of the batch, as the model's coupling arranges them.
        start: index of the first sequence in the stream.
        stream, length: where they come from; the length of a batch is its number of tokens.
    """

    subject: Subject
    batch: Batch | None
    position_ids: Int64[Tensor, "B C T"] | None
    start: int
    stream: Stream
    length: int

    def records(self) -> Iterable[LayerRecord]:
        """What each layer did, one after the other."""
        model = self.subject.model
        if model is None or self.batch is None:
            return self.subject.records
        return model.layer_records(self.tokens, self.ids)

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
        return None if self.position_ids is None else self.position_ids.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.subject.decoder().token_embedding.weight.device


class Subjects(list[Subject]):
    """Models, each with its name."""

    @property
    def trained(self) -> TrainedRange | None:
        """The trained lengths; None if no model tells."""
        return TrainedRange.of(one.trained for one in self)

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
    named = models.items() if isinstance(models, Mapping) else [(None, models)]
    found = Subjects(_subject(model, None if name is None else str(name)) for name, model in named)
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
    stream = Stream(seed=seed, name="analysis")
    if isinstance(data, Batch) or subject.model is None:
        if lengths is not None:
            raise SettingError("lengths", "None, since the batch fixes the length", lengths)
        yield _whole_batch(subject, data, stream, multiple)
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
        yield length, _sampled(subject, subject.model, task, stream, length, range(first, first + count), multiple)


def measured_layers(
    subject: Subject,
    data: Task | Batch | None,
    lengths: Iterable[int] | None,
    count: int,
    seed: int,
    measure: Callable[[Sequences, LayerRecord], Found],
) -> Iterator[tuple[int, int, list[Found]]]:
    """(length, layer, what ``measure`` found on each few sequences) for each length and layer; see
    ``sequences_of``."""
    for length, pieces in sequences_of(subject, data, lengths, count, seed):
        found: dict[int, list[Found]] = {}
        for piece in pieces:
            for layer, record in enumerate(piece.records()):
                found.setdefault(layer, []).append(measure(piece, record))
        for layer, parts in found.items():
            yield length, layer, parts


def with_module_names(frame: pl.DataFrame, names: pl.DataFrame) -> pl.DataFrame:
    """A frame with the column ``module`` after ``layer``, or the frame itself where there are no names."""
    if names.is_empty():
        return frame
    joined = frame.join(names, on=["arm", "layer"], how="left", maintain_order="left")
    place = frame.columns.index("layer") + 1
    return joined.select(*frame.columns[:place], "module", *frame.columns[place:])


def _subject(model: Model | Sequence[LayerRecord], label: str | None) -> Subject:
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
    run = model if isinstance(model, Run) else model.run
    decoder = model.model()
    if not isinstance(decoder, DecoderModel):
        raise SettingError("models", "a run of a Decoder", run.config.model)
    return Subject(
        label=label or _kernel_label(decoder.config.kernels),
        model=decoder,
        task=run.config.task,
        lengths=run.config.evaluation.lengths,
        trained=run.config.training.curriculum.range(),
    )


def _kernel_label(kernels: Iterable[Kernel]) -> str:
    return " + ".join(dict.fromkeys(short_name(str(kernel)) for kernel in kernels))


def _whole_batch(
    subject: Subject, data: Task | Batch | None, stream: Stream, multiple: int
) -> tuple[int, Iterator[Sequences]]:
    if isinstance(data, Task):
        raise SettingError("data", "the batch that the records come from, or None", data)
    if data is None:
        length = subject.records[0].q.shape[2]
        alone = Sequences(subject=subject, batch=None, position_ids=None, start=0, stream=stream, length=length)
        return length, iter([alone])
    length = data.tokens.shape[1]
    if subject.model is None:
        if (len(data), length) != (subject.records[0].q.shape[0], subject.records[0].q.shape[2]):
            raise SettingError("data", "the batch that the records come from", data)
        parts = [slice(0, len(data))]
    else:
        size = _together(length, multiple)
        parts = [slice(first, first + size) for first in range(0, len(data), size)]
    if len(data) % multiple:
        raise SettingError("data", f"a multiple of {multiple} sequences", len(data))
    return length, (
        Sequences(
            subject=subject,
            batch=_rows_of(data, part),
            position_ids=None if data.position_ids is None else data.position_ids[part],
            start=part.start,
            stream=stream,
            length=length,
        )
        for part in parts
    )


def _rows_of(batch: Batch, rows: slice) -> Batch:
    sources = None if batch.sources is None else batch.sources[rows]
    return Batch(batch.tokens[rows], batch.targets[rows], None, sources, vocabulary=batch.vocabulary)


def _sampled(
    subject: Subject, model: DecoderModel, task: Task, stream: Stream, length: int, wanted: range, multiple: int
) -> Iterator[Sequences]:
    size = _together(task.sequence_length(length), multiple)
    for start in wanted[::size]:
        batch = task.sample(stream, start, min(size, wanted.stop - start), length)
        words = partial(stream.words, length=length, start=start, count=len(batch))
        yield Sequences(
            subject=subject,
            batch=batch,
            position_ids=model.config.arranged_ids(words, batch.position_ids, training=False),
            start=start,
            stream=stream,
            length=length,
        )


def _together(num_tokens: int, multiple: int) -> int:
    """How many sequences of so many tokens go through a model at a time."""
    return max(1, _TOKENS_TOGETHER // (num_tokens * multiple)) * multiple
