"""The sequences that a certificate looks at, and what several checks need of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.stream import Stream
from sparsity_lab.generators.task import Task, Truth

__all__ = ["CERTIFICATE", "Sample"]

Ints = NDArray[np.int64]

CERTIFICATE = "certificate"
"""Name of the stream."""


@dataclass(frozen=True)
class Sample:
    """The sequences a certificate looks at.

    Attributes:
        tokens: (N, T).
        targets: (M,) scored targets in row-major order, M = N for tasks with one target.
        rows: (M,) the sequence of each target.
        sources: (M, K), padded with -1.
    """

    task: Task
    truth: Truth
    seed: int
    length: int
    tokens: Ints
    targets: Ints
    rows: Ints
    sources: Ints
    position_ids: Ints | None

    @classmethod
    def draw(cls, task: Task, seed: int, sequences: int, length: int) -> "Sample":
        """Draw in slices, so that the sources of all positions never stand in memory at once."""
        parts: list[tuple[Ints, Ints, Ints, Ints, Ints | None]] = []
        for start in range(0, sequences, 8192):
            batch = task.sample(Stream(seed=seed, name=CERTIFICATE), start, min(8192, sequences - start), length)
            scored = batch.scored
            assert batch.sources is not None
            batch_ids = None if batch.position_ids is None else batch.position_ids.numpy()
            rows = start + scored.nonzero()[:, 0].numpy()
            parts.append(
                (batch.tokens.numpy(), batch.targets[scored].numpy(), rows, batch.sources[scored].numpy(), batch_ids)
            )
        tokens = np.concatenate([part[0] for part in parts])
        targets = np.concatenate([part[1] for part in parts])
        rows = np.concatenate([part[2] for part in parts])
        sources = np.concatenate([part[3] for part in parts])
        position_ids = [part[4] for part in parts if part[4] is not None]
        ids = np.concatenate(position_ids) if position_ids else None
        return cls(task, task.truth(length), seed, length, tokens, targets, rows, sources, ids)

    @cached_property
    def sizes(self) -> Ints:
        """(M,) number of sources of each target."""
        return np.asarray((self.sources >= 0).sum(axis=1))

    @cached_property
    def label_index(self) -> Ints:
        """(M,) index of each target in the declared labels; L for a target that is not declared."""
        labels = np.asarray(self.truth.labels)
        position = np.searchsorted(labels, self.targets).clip(0, len(labels) - 1)
        return np.where(labels[position] == self.targets, position, len(labels))

    @cached_property
    def source_tokens(self) -> Ints:
        """(M, K) tokens at the sources, -1 where padded."""
        gathered = self.tokens[self.rows[:, None], np.maximum(self.sources, 0)]
        return np.where(self.sources >= 0, gathered, -1)

    @cached_property
    def answers(self) -> Ints:
        """(M,) the task's own definition applied to the source tokens."""
        unique, inverse = np.unique(self.source_tokens, axis=0, return_inverse=True)
        defined = [self.task.answer(tuple(t for t in row if t >= 0)) for row in unique.tolist()]
        return np.asarray(defined, dtype=np.int64)[inverse.reshape(-1)]

    @cached_property
    def replaced(self) -> NDArray[np.bool_]:
        """(M,) whether noise replaced the label."""
        return np.asarray(self.answers != self.targets)

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """(N, T) where a token is neither source nor mark, for tasks with one target."""
        roles = np.array([role in ("background", "data") for role in self.task.vocabulary.roles])
        free = roles[self.tokens]
        for j in range(self.sources.shape[1]):
            rows = np.flatnonzero(self.sizes > j)
            free[rows, self.sources[rows, j]] = False
        return np.asarray(free)
