"""Data sets of a task's sequences, in a module of their own so that worker processes can import them."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from sparsity_lab.generators import Batch, Stream, Task


@dataclass
class Batches(IterableDataset[Batch]):
    """Batch i is the i-th task's; of n workers, worker w makes every n-th, from the w-th on."""

    tasks: tuple[Task, ...]
    length: int
    size: int = 8

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for i in range(first, len(self.tasks), step):
            yield self.tasks[i].sample(Stream(), i * self.size, self.size, self.length)


@dataclass
class Sequences(Dataset[Batch]):
    """Single sequences, as batches of one."""

    task: Task
    length: int
    count: int = 40

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return self.task.sample(Stream(), index, 1, self.length)
