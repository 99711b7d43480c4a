"""A task's batches as a data set of torch, for training loops of one's own.

Step s of W processes at batch size B takes sequences [s W B, (s + 1) W B) of the stream, and rank r takes the r-th B
of them. So no sequence repeats, and W processes together see the data of one process at batch size W B.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import Any, Protocol, runtime_checkable

from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sparsity_lab.generators.batch import Batch
from sparsity_lab.generators.stream import Stream, whole
from sparsity_lab.settings import LARGEST_WHOLE, SettingError, Shown, check_range

_MOST_IN_A_MESSAGE, _TOKENS_IN_A_MESSAGE = 32, 2**16


@runtime_checkable
class Lengths(Protocol):
    """A law of lengths, one a step, such as a ``Curriculum``."""

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        """The length of a step of so many."""
        ...


class Sampler(Protocol):
    """What is asked of a task."""

    def checked_length(self, length: int) -> int: ...

    def sequence_length(self, length: int) -> int: ...

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch: ...


class TaskDataset(IterableDataset[Batch]):
    """The batches of the steps ``start .. steps - 1``, in order; made by ``Task.dataset``.

    A ``DataLoader`` takes it with ``batch_size=None``. Its workers share the steps: worker w of n takes every n-th
    step, from the w-th on. So the loader gives the same batches in the same order for any number of workers. Each
    pass begins at ``start`` again.

    >>> dataset = Planted(k=2).dataset(Stream(seed=0), length=8, batch_size=4, steps=3)
    >>> len(dataset), [len(batch) for batch in dataset]
    (3, [4, 4, 4])
    """

    def __init__(
        self,
        task: Sampler,
        stream: Stream,
        length: int | Lengths,
        batch_size: int,
        *,
        steps: int | None = None,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """See ``Task.dataset``."""
        if not isinstance(stream, Stream):
            raise SettingError("stream", "a Stream", stream, meant="Stream(seed=0)")
        self.task, self.stream = task, stream
        self.length = length if isinstance(length, Lengths) else task.checked_length(length)
        self.batch_size, self.start = whole("batch_size", batch_size, 1), whole("start", start, 0)
        self.steps = None if steps is None else whole("steps", steps, self.start)
        for name in ("batch_size", "start", "steps"):
            check_range(getattr(self, name), name, LARGEST_WHOLE)
        if (rank is None) != (world_size is None):
            raise SettingError("world_size", "give both rank and world_size, or neither")
        self._shard: tuple[int, int] | None = None
        if rank is not None and world_size is not None:
            self._shard = whole("rank", rank, 0), whole("world_size", world_size, 1)
            if rank >= world_size:
                raise SettingError("rank", f"below world_size = {world_size}", rank)
        # A curriculum may need the number of steps, or give lengths that the task does not have, which is said now.
        try:
            lengths = (self._length_of(self.start), *getattr(length, "range", tuple)())
        except (TypeError, AttributeError) as error:  # a class, or a frame, has an ``at`` too
            raise SettingError("length", "a whole number, or a curriculum", Shown(type(length).__name__)) from error
        for one in lengths:
            self.task.checked_length(one)

    @property
    def shard(self) -> tuple[int, int]:
        """Rank and number of processes: as given, else those of ``torch.distributed`` when the batches are made."""
        if self._shard is not None:
            return self._shard
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def __iter__(self) -> Iterator[Batch]:
        return chain.from_iterable(self._groups(1))

    def loader(self, num_workers: int = 2, **options: Any) -> "Iterable[Batch]":
        """The batches, from persistent workers that send several in one message. Sending a message takes longer than
        making a small batch. So a plain ``DataLoader`` benefits from workers only for large batches.

        Args:
            options: of the ``DataLoader``, such as ``prefetch_factor`` or ``pin_memory``.

        Raises:
            SettingError: options that a ``DataLoader`` does not take.
        """
        tokens = self.batch_size * self.task.sequence_length(self._length_of(self.start))
        size = max(1, min(_MOST_IN_A_MESSAGE, _TOKENS_IN_A_MESSAGE // tokens))
        num_workers = whole("num_workers", num_workers, 0)
        options = {"persistent_workers": num_workers > 0} | options
        try:
            return _Loader(DataLoader(_Groups(self, size), None, num_workers=num_workers, **options))
        except (TypeError, ValueError, AssertionError) as error:
            raise SettingError("options", "options of a DataLoader", Shown(str(error))) from None

    def _groups(self, size: int) -> Iterator[list[Batch]]:
        """This worker's share of the steps, so many in a row."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for first in count(self.start + worker * size, workers * size):
            last = first + size if self.steps is None else min(first + size, self.steps)
            if first >= last:
                return
            yield [self._sampled(step) for step in range(first, last)]

    def _sampled(self, step: int) -> Batch:
        rank, world_size = self.shard
        first = (step * world_size + rank) * self.batch_size
        return self.task.sample(self.stream, first, self.batch_size, self._length_of(step))

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("a dataset without a number of steps is infinite and has no length")
        return self.steps - self.start

    def _length_of(self, step: int) -> int:
        return self.length if isinstance(self.length, int) else self.length.at(self.stream, step, self.steps)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that starts anew has no process group to ask.
        return self.__dict__ | {"_shard": self.shard}


class _Groups(IterableDataset[list[Batch]]):
    """Lists of batches."""

    def __init__(self, data: TaskDataset, size: int) -> None:
        self.data, self.size = data, size

    def __iter__(self) -> Iterator[list[Batch]]:
        return self.data._groups(self.size)


class _Loader:
    """The batches of a loader of lists of them, in each pass."""

    def __init__(self, groups: "DataLoader[list[Batch]]") -> None:
        self.groups = groups

    def __iter__(self) -> Iterator[Batch]:
        return chain.from_iterable(self.groups)
