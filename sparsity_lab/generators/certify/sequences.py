"""The sequences that a certificate looks at, and what several checks need of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.stream import Stream
from sparsity_lab.generators.task import PositionLaw, Step, Task, Truth

__all__ = ["CERTIFICATE", "DrawnSequences", "Slot", "spread"]

Ints = NDArray[np.int64]

CERTIFICATE = "certificate"
"""Name of the stream."""

_TOKENS_A_DRAW = 1 << 19
_ONE_BY_ONE = 20_000  # sequences looked at in plain Python
_TOKENS_ONE_BY_ONE = 500_000
_TARGETS_ONE_BY_ONE = 200_000
_MOST_SLOTS = 64
_NO_ANSWER = -1


@dataclass(frozen=True)
class DrawnSequences:
    """The sequences a certificate looks at.

    Attributes:
        tokens: (N, T).
        targets: (M,) scored targets of all sequences, in row-major order.
        rows, positions: (M,) the sequence and the position of each target.
        sources: (M, K), padded with -1; K = 0 for tasks that have none.
        has_sources: False for tasks without a rule, such as text.
        position_ids: (N, C, T) or None.
    """

    task: Task
    truth: Truth
    seed: int
    length: int
    tokens: Ints
    targets: Ints
    rows: Ints
    positions: Ints
    sources: Ints
    has_sources: bool
    position_ids: Ints | None

    @classmethod
    def draw(cls, task: Task, seed: int, sequences: int, length: int) -> "DrawnSequences":
        """Draw in slices, so that the sources of all positions never stand in memory at once."""
        parts: list[tuple[Ints, Ints, Ints, Ints, Ints]] = []
        position_ids = []
        has_sources = True
        size = max(1, min(8192, _TOKENS_A_DRAW // task.sequence_length(length)))
        for start in range(0, sequences, size):
            batch = task.sample(Stream(seed=seed, name=CERTIFICATE), start, min(size, sequences - start), length)
            scored = batch.scored
            rows, positions = scored.nonzero().numpy().T
            has_sources = batch.sources is not None
            sources = np.empty((len(rows), 0), np.int64) if batch.sources is None else batch.sources[scored].numpy()
            parts.append((batch.tokens.numpy(), batch.targets[scored].numpy(), start + rows, positions, sources))
            if batch.position_ids is not None:
                position_ids.append(batch.position_ids.numpy())
        tokens, targets, rows, positions, sources = (np.concatenate(part) for part in zip(*parts, strict=True))
        ids = np.concatenate(position_ids) if position_ids else None
        truth = task.truth(length)
        return cls(task, truth, seed, length, tokens, targets, rows, positions, sources, has_sources, ids)

    @cached_property
    def counts(self) -> Ints:
        """(N,) number of scored targets of each sequence."""
        return np.bincount(self.rows, minlength=len(self.tokens))

    @cached_property
    def one_target(self) -> bool:
        """True if every sequence has one scored target."""
        return bool((self.counts == 1).all())

    @cached_property
    def slot_of_target(self) -> Ints:
        """(M,) which of its sequence's targets each is, from 0."""
        first = np.cumsum(self.counts) - self.counts
        return np.asarray(np.arange(len(self.rows)) - first[self.rows])

    @cached_property
    def slots(self) -> "tuple[Slot, ...]":
        """All slots, or ``_MOST_SLOTS`` of them spread from the first to the last."""
        return tuple(self._slot(j) for j in spread(int(self.counts.max(initial=0)), _MOST_SLOTS))

    def _slot(self, j: int) -> "Slot":
        if self.one_target:
            return Slot(self, 0, np.arange(len(self.targets)))
        return Slot(self, j, np.flatnonzero(self.slot_of_target == j))

    @cached_property
    def sizes(self) -> Ints:
        """(M,) number of sources of each target."""
        return np.asarray((self.sources >= 0).sum(axis=1))

    @cached_property
    def asked(self) -> Ints:
        """The sequences that the task's observer is asked about, ascending."""
        N, T = self.tokens.shape
        targets = max(1, len(self.targets) // N)
        most = min(_ONE_BY_ONE, max(1000, min(_TOKENS_ONE_BY_ONE // T, _TARGETS_ONE_BY_ONE // targets)))
        return np.arange(N) if most >= N else np.sort(np.random.default_rng(self.seed).choice(N, most, replace=False))

    @cached_property
    def solved(self) -> list[tuple[Step, ...] | None]:
        """What the observer says of each sequence that it is asked about: no steps where it cannot read the tokens,
        None where the task has no observer."""
        return [self._solve(tuple(tokens)) for tokens in self.tokens[self.asked].tolist()]

    def _solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...] | None:
        try:
            return self.task.solve(tokens)
        except (ValueError, LookupError):  # no sequence of the task
            return ()

    @cached_property
    def answers(self) -> Ints:
        """(M,) the noiseless target of each position that the observer was asked about; -1 without an answer."""
        answers = np.full(len(self.targets), _NO_ANSWER)
        first = np.cumsum(self.counts) - self.counts
        for row, steps in zip(self.asked.tolist(), self.solved, strict=True):
            if steps and len(steps) == self.counts[row]:
                given = [_NO_ANSWER if step.answer is None else step.answer for step in steps]
                answers[first[row] : first[row] + len(steps)] = given
        return answers


@dataclass(frozen=True)
class Slot:
    """The j-th scored targets, one for each sequence that has so many; n of them, independent of each other.

    Attributes:
        index: j, from 0.
        where: (n,) their places among all targets of the sample.
    """

    sample: DrawnSequences
    index: int
    where: Ints

    @property
    def name(self) -> str:
        """For findings: nothing where there is one target only."""
        return "" if self.sample.one_target else f"target {self.index + 1}: "

    @cached_property
    def rows(self) -> Ints:
        """(n,) sequences."""
        return np.asarray(self.sample.rows[self.where])

    @cached_property
    def tokens(self) -> Ints:
        """(n, T) tokens of their sequences."""
        whole = len(self.rows) == len(self.sample.tokens)
        return self.sample.tokens if whole else np.asarray(self.sample.tokens[self.rows])

    @cached_property
    def positions(self) -> Ints:
        """(n,)."""
        return np.asarray(self.sample.positions[self.where])

    @cached_property
    def targets(self) -> Ints:
        """(n,)."""
        return np.asarray(self.sample.targets[self.where])

    @cached_property
    def sources(self) -> Ints:
        """(n, K), padded with -1."""
        return np.asarray(self.sample.sources[self.where])

    @cached_property
    def sizes(self) -> Ints:
        """(n,) number of sources."""
        return np.asarray(self.sample.sizes[self.where])

    @cached_property
    def source_tokens(self) -> Ints:
        """(n, K) tokens at the sources, -1 where padded."""
        gathered = np.take_along_axis(self.tokens, np.maximum(self.sources, 0), axis=1)
        return np.where(self.sources >= 0, gathered, -1)

    @cached_property
    def label_index(self) -> Ints:
        """(n,) index of each target in the declared labels; L for a target that is not declared."""
        return self.index_of(self.targets)

    def index_of(self, tokens: Ints) -> Ints:
        """Index of tokens in the declared labels; L for one that is not declared."""
        labels = np.asarray(self.sample.truth.labels)
        position = np.searchsorted(labels, tokens).clip(0, len(labels) - 1)
        return np.where(labels[position] == tokens, position, len(labels))

    @cached_property
    def answered(self) -> Ints:
        """Indices of those for which the observer has an answer."""
        return np.flatnonzero(self.sample.answers[self.where] != _NO_ANSWER)

    @cached_property
    def answers(self) -> Ints:
        """The answers, one for each of ``answered``."""
        return np.asarray(self.sample.answers[self.where][self.answered])

    @cached_property
    def law(self) -> PositionLaw | None:
        """Declared law of the source set."""
        return self.sample.truth.law_of_slot(self.index)

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """(n, T) where a token is neither source nor mark."""
        roles = np.array([role in ("background", "data") for role in self.sample.task.vocabulary.roles])
        return np.asarray(roles[self.tokens] & ~self.is_source)

    @cached_property
    def is_source(self) -> NDArray[np.bool_]:
        """(n, T)."""
        marked = np.zeros(self.tokens.shape, dtype=bool)
        for j in range(self.sources.shape[1]):
            rows = np.flatnonzero(self.sizes > j)
            marked[rows, self.sources[rows, j]] = True
        return marked


def spread(count: int, most: int) -> list[int]:
    """0 .. count - 1, or ``most`` of them spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []
