"""The sequences that a certificate tests, and quantities that several checks share."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from sparsity_lab.generators.batch import IGNORE, Batch
from sparsity_lab.generators.certify.findings import spread
from sparsity_lab.generators.certify.predictions import Predictions
from sparsity_lab.generators.stream import Ints, Stream
from sparsity_lab.generators.task import Draw, NotComputable, PositionLaw, Step, Task, Truth

CERTIFICATE = "evaluation"
"""Name of the stream that runs are evaluated on."""

_TOKENS_A_DRAW = 1 << 19
_TOKENS_ONE_BY_ONE = 10  # that the observer reads in plain Python for each requested sequence
_PROBABILITIES_A_DRAW = 1 << 22
_MOST_SLOTS = 64
_NO_ANSWER = -1


@dataclass(frozen=True, eq=False)
class DrawnSequences:
    """The sequences that a certificate tests.

    Attributes:
        tokens: (N, T).
        targets: (M,) scored targets of all sequences, in row-major order.
        rows, positions: (M,) the sequence and the position of each target.
        sources: (M, K), padded with -1; K = 0 for tasks that have none.
        has_sources: False for tasks without a rule, such as text.
        position_ids: (N, C, T) or None.
        draws: the random choices that the task reads from the tokens, by name; None if it cannot read them.
        asked_for: the requested number of sequences; fewer are drawn if they are long.
        budget: floating-point operations that a check may spend on products of choices.
        steps: training steps of the learned attacker; 0 for no attacker.
        index: (N,) index of each sequence in the stream.
        whole: False if these are the sequences of one component of a mixture.
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
    draws: dict[str, Draw] | None
    asked_for: int
    budget: float
    steps: int
    index: Ints
    whole: bool = True

    @classmethod
    def draw(
        cls,
        task: Task,
        seed: int,
        sequences: int,
        length: int,
        *,
        asked_for: int = 0,
        budget: float = 1e12,
        steps: int = 0,
        name: str = CERTIFICATE,
    ) -> "DrawnSequences":
        """Draw in batches, so that the sources of all positions are never in memory at once."""
        parts: list[tuple[Ints, Ints, Ints, Ints, Ints]] = []
        position_ids, draws = [], []
        has_sources = True
        size = max(1, min(8192, _TOKENS_A_DRAW // task.sequence_length(length)))
        for start in range(0, sequences, size):
            batch = task.sample(Stream(seed=seed, name=name), start, min(size, sequences - start), length)
            scored = batch.scored
            rows, positions = scored.nonzero().numpy().T
            has_sources = batch.sources is not None
            sources = np.empty((len(rows), 0), np.int64) if batch.sources is None else batch.sources[scored].numpy()
            parts.append((batch.tokens.numpy(), batch.targets[scored].numpy(), start + rows, positions, sources))
            if batch.position_ids is not None:
                position_ids.append(batch.position_ids.numpy())
            draws.append(_read(task, batch, name))
        tokens, targets, rows, positions, sources = (np.concatenate(part) for part in zip(*parts, strict=True))
        ids = np.concatenate(position_ids) if position_ids else None
        truth = task.truth(length)
        known = [one for one in draws if one is not None]
        joined = None if len(known) < len(draws) else _joined(known)
        of_batches = tokens, targets, rows, positions, sources, has_sources, ids, joined
        return cls(
            task, truth, seed, length, *of_batches, asked_for or sequences, budget, steps, np.arange(sequences)
        )

    def only(self, rows: Ints, task: Task) -> "DrawnSequences":
        """The given rows, as sequences of one component of a mixture."""
        number = np.full(len(self.tokens), -1)
        number[rows] = np.arange(len(rows))
        kept = number[self.rows] >= 0
        tokens, sources = self.tokens[rows], self.sources[kept]
        most = int((sources >= 0).sum(axis=1).max(initial=0))
        return replace(
            self,
            task=task,
            truth=task.truth(self.length),
            tokens=tokens,
            targets=self.targets[kept],
            rows=number[self.rows][kept],
            positions=self.positions[kept],
            sources=sources[:, :most],
            position_ids=None if self.position_ids is None else self.position_ids[rows],
            index=self.index[rows],
            steps=0,
            draws=_read(task, Batch(torch.from_numpy(tokens), torch.empty(0)), CERTIFICATE),
            whole=False,
        )

    def generator(self, *purpose: int) -> np.random.Generator:
        """Random numbers for the certificate's own choices: reproducible, and different for each purpose."""
        return np.random.default_rng([self.seed < 0, abs(self.seed), *purpose])

    def batches(self, size: int) -> Iterator[Batch]:
        """All sequences with their targets, in batches of ``size``."""
        for start in range(0, len(self.tokens), size):
            some = slice(start, start + size)
            yield Batch(torch.from_numpy(self.tokens[some]), torch.from_numpy(self.every_target[some]))

    @cached_property
    def every_target(self) -> Ints:
        """(N, T), as in a batch."""
        targets = np.full(self.tokens.shape, IGNORE)
        targets[self.rows, self.positions] = self.targets
        return targets

    def beyond(self) -> Iterator[Batch]:
        """Batches of the requested sequences that are not kept in memory, for checks that only count."""
        stream, size = Stream(seed=self.seed, name=CERTIFICATE), max(1, _TOKENS_A_DRAW // self.tokens.shape[1])
        for start in range(len(self.tokens), self.asked_for, size):
            yield self.task.sample(stream, start, min(size, self.asked_for - start), self.length)

    @cached_property
    def predictions(self) -> "Predictions | NotComputable | ValueError":
        """The exact predictor's output for all targets, or the error that explains why there is none."""
        each = max(1, round(len(self.targets) / len(self.tokens))) * self.task.vocabulary.size
        size = max(1, min(8192, _PROBABILITIES_A_DRAW // each))
        try:
            return Predictions.of(self.task, self.batches(size), self.generator(1))
        except (NotComputable, ValueError) as reason:
            return reason

    @cached_property
    def noise(self) -> Ints:
        """(N, M) the distance in labels from the rule's answer to each target, -1 where it is unknown. M = 0 if there
        is no noise, or if it cannot be seen."""
        labels, rate = self.truth.labels, self.truth.label_noise
        if labels is None or not 0 < rate < 1 - 1 / len(labels) - 1e-9:
            return np.empty((len(self.tokens), 0), np.int64)
        seen = self.predictions
        answers = np.where(self.is_ruled, seen.answer, _NO_ANSWER) if isinstance(seen, Predictions) else self.answers
        found = np.searchsorted(labels, np.stack([self.targets, answers]).clip(0)).clip(0, len(labels) - 1)
        shift = np.where(answers >= 0, (found[0] - found[1]) % len(labels), -1)
        shifts = np.full((len(self.tokens), int(self.counts.max(initial=0))), -1)
        shifts[self.rows, self.slot_of_target] = shift
        return shifts

    @cached_property
    def is_ruled(self) -> NDArray[np.bool_]:
        """(M,) whether the target follows a rule: it has sources, or the task declares none at all."""
        return np.asarray(self.sizes > 0) if self.has_sources else np.ones(len(self.targets), bool)

    @cached_property
    def counts(self) -> Ints:
        """(N,) number of scored targets of each sequence."""
        return np.bincount(self.rows, minlength=len(self.tokens))

    @cached_property
    def first(self) -> Ints:
        """(N,) the index of the first target of each sequence among all targets."""
        return np.asarray(np.cumsum(self.counts) - self.counts)

    @cached_property
    def one_target(self) -> bool:
        """True if every sequence has one scored target."""
        return bool((self.counts == 1).all())

    @cached_property
    def slot_of_target(self) -> Ints:
        """(M,) the index of each target within its sequence, from 0."""
        return np.asarray(np.arange(len(self.rows)) - self.first[self.rows])

    @cached_property
    def slots(self) -> "tuple[Slot, ...]":
        """All slots, or ``_MOST_SLOTS`` of them at even distances."""
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
        """Rows of the sequences that the task's observer reads, ascending."""
        N, T = self.tokens.shape
        most = max(1000, _TOKENS_ONE_BY_ONE * self.asked_for // T)
        return np.arange(N) if most >= N else np.sort(self.generator().choice(N, most, replace=False))

    @cached_property
    def observed(self) -> "Observed":
        """The observer's answers for the sequences in ``asked``. Equal sequences are read once."""
        _, first, kind = np.unique(fingerprints(self.tokens[self.asked]), return_index=True, return_inverse=True)
        found = [self._solve(tuple(tokens)) for tokens in self.tokens[self.asked[first]].tolist()]
        steps = [step for one in found for step in one or ()]
        numbers = np.array([len(one or ()) for one in found])
        none = np.array([one is None for one in found])
        read = (numbers[kind] == self.counts[self.asked]) & ~none[kind]
        start = np.full(len(self.tokens), -1)
        start[self.asked[read]] = (np.cumsum(numbers) - numbers)[kind[read]]
        where = np.flatnonzero(start[self.rows] >= 0)
        of = start[self.rows[where]] + self.slot_of_target[where]
        sizes = np.array([len(step.sources) for step in steps], np.int64)
        sources = np.full((len(steps), sizes.max(initial=0)), -1, np.int32)
        sources[np.arange(sources.shape[1]) < sizes[:, None]] = [t for step in steps for t in step.sources]
        answers = np.array([_NO_ANSWER if step.answer is None else step.answer for step in steps], np.int64)
        positions = np.array([step.position for step in steps], np.int64)
        return Observed(not none.any(), read, where, positions[of], sources[of], answers[of])

    def _solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...] | None:
        try:
            return self.task.solve(tokens)
        except (ValueError, LookupError):  # no sequence of the task
            return ()

    @cached_property
    def answers(self) -> Ints:
        """(M,) the observer's noiseless target; -1 without an answer."""
        answers = np.full(len(self.targets), _NO_ANSWER)
        answers[self.observed.where] = self.observed.answers
        return answers


@dataclass(frozen=True, eq=False)
class Observed:
    """The answers of a task's observer, who sees only the tokens, for n sequences with m targets.

    Attributes:
        all_known: False if the task, or a component of a mixture, has no observer.
        read: (n,) whether the observer found the right number of targets.
        where: (m,) the indices of these sequences' targets among all targets of the sample.
        positions, answers: (m,) as in ``Step``; -1 without an answer.
        sources: (m, K), padded with -1.
    """

    all_known: bool
    read: NDArray[np.bool_]
    where: Ints
    positions: Ints
    sources: NDArray[np.int32]
    answers: Ints


@dataclass(frozen=True)
class Slot:
    """The j-th scored target of each sequence that has more than j targets. The n targets are independent.

    Attributes:
        index: j, from 0.
        where: (n,) their indices among all targets of the sample.
    """

    sample: DrawnSequences
    index: int
    where: Ints

    @property
    def name(self) -> str:
        """Prefix for the subject of findings; empty if there is only one target."""
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
        """Indices of the targets for which the observer has an answer."""
        return np.flatnonzero(self.sample.answers[self.where] != _NO_ANSWER)

    @cached_property
    def answers(self) -> Ints:
        """The observer's answers, one for each index in ``answered``."""
        return np.asarray(self.sample.answers[self.where][self.answered])

    @cached_property
    def law(self) -> PositionLaw | None:
        """Declared law of the source set."""
        return self.sample.truth.law_of_slot(self.index)

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """(n, T) True where a token is neither a source nor a mark."""
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


def _read(task: Task, batch: Batch, name: str) -> dict[str, Draw] | None:
    try:
        return task.draws(batch.tokens.numpy(), name)
    except (ValueError, LookupError):  # no sequences of the task
        return None


def _joined(parts: list[dict[str, Draw]]) -> dict[str, Draw]:
    """The draws of several batches, concatenated as 32-bit integers to save memory."""
    return {
        name: draw._replace(values=np.concatenate([part[name].values.astype(np.int32) for part in parts]))
        for name, draw in parts[0].items()
    }


def fingerprints(rows: Ints) -> NDArray[np.uint64]:
    """(N,) a 64-bit hash of each row."""
    number = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        number *= np.uint64(0x9E3779B97F4A7C15)
        number += column.astype(np.uint64) + np.uint64(1)
        number ^= number >> np.uint64(29)
    return number
