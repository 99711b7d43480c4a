"""``PaddedMixture``: sequences of several lengths and forms in one batch. Shorter ones are padded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.batch import IGNORE, Batch, Vocabulary
from sparsity_lab.generators.multiple_addition import MultipleAddition
from sparsity_lab.generators.position_laws import ListedSets
from sparsity_lab.generators.response_layout import ResponseTask
from sparsity_lab.generators.stream import Floats, Ints, Stream, open_unit, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.settings import SettingError, register

_MOST_FORMS = 512
_TRIED = 16  # prompts
_FROM = "padded mixture"
_BLOCK, _BLOCK_TOKENS = 2048, 1 << 17  # the most sequences and tokens that are made at once


@register
class PaddedMixture(Task):
    """Each sequence comes from one of the tasks and has its own length n up to l. Shorter ones are padded with EOS.

    Every task is equally likely. A sequence draws its digits or symbols from the same random words for every form.

    Attributes:
        tasks: tasks with the layout ``BOS prompt = response EOS`` and one vocabulary, such as additions with
            different numbers of operands.
        shortest: the smallest n. None: all sequences have length l.
        power: P(n <= m) is (m / l)^power, among lengths from ``shortest`` on. 1 is uniform. N is the law of the
            longest of N operands whose numbers of digits are uniform.
    """

    tasks: tuple[Task, ...]
    shortest: int | None = 1
    power: float = 1.0

    @classmethod
    def examples(cls) -> "tuple[PaddedMixture, ...]":
        operands = tuple(MultipleAddition(num_operands=n, base=3) for n in (2, 3))
        return (cls(tasks=operands, power=2.0),)

    def check(self) -> None:
        if not self.tasks:
            raise SettingError("tasks", "at least one task", self.tasks)
        for i, task in enumerate(self.tasks):
            if not isinstance(task, ResponseTask):
                raise SettingError(f"tasks[{i}]", "a task with the layout BOS prompt = response EOS", task)
            if task.vocabulary != self.vocabulary or task.num_kinds != self.num_kinds:
                raise SettingError(f"tasks[{i}]", f"a task with the vocabulary and IDs of {self.tasks[0]}", task)
        if self.shortest is not None:
            whole("shortest", self.shortest, 1)
        if not 0 < self.power <= 100:
            raise SettingError("power", "a number above 0 and at most 100", self.power)

    def check_length(self, length: int) -> None:
        least = self.shortest or 1
        if length < least or (length - least + 1) * len(self.tasks) > _MOST_FORMS:
            raise SettingError(
                "length", f"from {least} to {least - 1 + _MOST_FORMS // len(self.tasks)} for {self}", length
            )
        for task in self.tasks:
            for n in self._lengths(length):
                task.check_length(n)
        _check_told_apart(self, length)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tasks[0].vocabulary

    @property
    def num_kinds(self) -> int:
        return self.tasks[0].num_kinds

    @cached_property
    def _first(self) -> ResponseTask:
        (first, *_) = self.tasks
        assert isinstance(first, ResponseTask)
        return first

    def _lengths(self, length: int) -> range:
        return range(self.shortest or length, length + 1)

    def forms(self, length: int) -> list[tuple[ResponseTask, int]]:
        """Each task at each length, in the order of ``shares``."""
        return [(task, n) for task in self.tasks if isinstance(task, ResponseTask) for n in self._lengths(length)]

    def shares(self, length: int) -> Floats:
        """The probability of each form."""
        n = np.array(self._lengths(length), dtype=np.float64)
        of_lengths = n**self.power - (n - 1) ** self.power
        return np.tile(of_lengths / of_lengths.sum(), len(self.tasks)) / len(self.tasks)

    def sequence_length(self, length: int) -> int:
        return max(task.sequence_length(n) for task, n in self.forms(length))

    def largest_position_id(self, length: int) -> int:
        # This avoids the truths of all forms, which take seconds at the lengths of an evaluation.
        return max(task.largest_position_id(n) for task, n in self.forms(length))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        least = self.shortest or 1
        return least + 2, least + 4

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, start, count = self.checked_length(length), whole("start", start, 0), whole("count", count, 0)
        tokens, targets, ids = (torch.from_numpy(one) for one in self._rows(stream, start, count, length))
        sources = partial(self._sources, stream, start, count, length)
        return Batch(tokens, targets, ids, sources, vocabulary=self.vocabulary)

    def _rows(self, stream: Stream, start: int, count: int, length: int) -> tuple[Ints, ...]:
        """Tokens, targets and IDs. Setting up the forms takes most of the time, so a small batch is cut out of a
        large block, which later batches reuse."""
        size = max(1, min(_BLOCK, _BLOCK_TOKENS // self.sequence_length(length)))
        if not 0 < count < size:
            return self._made(stream, start, count, length)
        firsts = range(start // size * size, start + count, size)
        blocks = [_kept_block(self, stream, first, size, length) for first in firsts]
        return tuple(
            np.concatenate(
                [
                    part[max(0, start - first) : start + count - first]
                    for part, first in zip(parts, firsts, strict=True)
                ]
            )
            for parts in zip(*blocks, strict=True)
        )

    def _made(self, stream: Stream, start: int, count: int, length: int) -> tuple[Ints, ...]:
        tokens = self._drawn(stream, start, count, length)
        targets = np.full(tokens.shape, IGNORE, dtype=np.int64)
        ids = np.zeros((count, self.num_kinds, tokens.shape[1]), dtype=np.int64)
        for task, n, rows in self._by_form(stream, start, count, length):
            T, P = task.sequence_length(n), task.prompt_length(n)
            targets[rows, P + 1 : T - 1] = tokens[rows, P + 2 : T]
            ids[rows, :, :T] = task.find_position_ids(tokens[rows, :T], n)
        return tokens, targets, ids

    def _by_form(
        self, stream: Stream, start: int, count: int, length: int
    ) -> Iterator[tuple[ResponseTask, int, Ints]]:
        """Each form in the batch, and its rows."""
        unit = open_unit(stream.words(f"form of {_FROM}", length, start, count, 1)[:, 0])
        which = np.searchsorted(np.cumsum(self.shares(length))[:-1], unit, side="right")
        forms = self.forms(length)
        for f in np.unique(which).tolist():
            yield *forms[f], np.flatnonzero(which == f)

    def _drawn(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        first, words = (
            self._first,
            _Words(stream.seed, stream.name, stream, start, count, length, _sizes(self, length)),
        )
        tokens = np.full((count, self.sequence_length(length)), first.end, dtype=np.int64)
        for task, n, rows in self._by_form(stream, start, count, length):
            P = task.prompt_length(n)
            prompts = np.empty((len(rows), P), dtype=np.int64)
            task.draw_prompts(words.of(rows), 0, prompts, n)
            tokens[rows, 1 : P + 1], tokens[rows, P + 1] = prompts, first.equals
            tokens[rows, P + 2 : task.sequence_length(n) - 1] = task.respond(prompts, n)
        return tokens

    def _sources(self, stream: Stream, start: int, count: int, length: int) -> Int64[Tensor, "B T K"]:
        tokens = self._drawn(stream, start, count, length)
        found = []
        for task, n, rows in self._by_form(stream, start, count, length):
            T, P = task.sequence_length(n), task.prompt_length(n)
            own = task.find_sources(tokens[rows, :T], n)
            found.append((rows, slice(P + 1, T - 1), own))
        spread = np.full((*tokens.shape, _most_sources(self, length)), -1, dtype=np.int64)
        for rows, scored, own in found:
            spread[rows, scored, : own.shape[-1]] = own
        return torch.from_numpy(spread)

    def truth(self, length: int) -> Truth:
        from scipy.special import xlogy  # noqa: PLC0415

        length = self.checked_length(length)
        forms, shares = self.forms(length), self.shares(length)
        truths = [task.truth(n) for task, n in forms]
        counts = np.array([task.response_length(n) + 1 for task, n in forms])
        M = int(counts.max())
        declared = [t.label_distribution for t in truths]
        known = [one for one in declared if one is not None]
        truth = Truth(
            k=max(t.k or 0 for t in truths),
            num_targets=np.bincount(counts, shares).astype(np.float64),
            bayes_accuracy=1.0,
            bayes_loss=0.0,
            bayes_loss_by_slot=np.zeros(M),
            position_law=tuple(self._law(length, j) for j in range(M)),
            largest_position_id=max(t.largest_position_id for t in truths),
            build_marginals=partial(self._marginals, truths, shares, length),
        )
        if len(known) < len(declared):
            return truth
        labels, weight = np.zeros((M, self.vocabulary.size)), np.zeros(M)
        for own, share in zip(known, shares.tolist(), strict=True):
            labels[: len(own)] += share * own
            weight[: len(own)] += share
        labels /= weight[:, None]
        guess, index = labels.argmax(axis=1), np.arange(M)
        accuracy = [own[index[: len(own)], guess[: len(own)]].mean() for own in known]
        loss = [-xlogy(own, labels[: len(own)]).sum(axis=1).mean() for own in known]
        return replace(
            truth,
            chance_accuracy=float(shares @ accuracy),
            chance_loss=float(shares @ loss),
            labels=tuple(np.flatnonzero(labels.any(axis=0)).tolist()),
            label_distribution=labels,
        )

    def _law(self, length: int, slot: int) -> ListedSets:
        """The law of the sources of one slot's targets, for the sequences that have this slot."""
        listed: dict[tuple[int, ...], float] = {}
        for (task, n), share in zip(self.forms(length), self.shares(length).tolist(), strict=True):
            if slot <= task.response_length(n):
                law = task.source_laws(n)[slot]
                for own, chance in zip(law.sets.tolist(), law.probabilities.tolist(), strict=True):
                    key = tuple(place for place in own if place >= 0)
                    listed[key] = listed.get(key, 0.0) + share * chance
        most = max(map(len, listed))
        sets = np.array([[*own, *[-1] * (most - len(own))] for own in listed])
        chances = np.array(list(listed.values()))
        return ListedSets(sets, self.sequence_length(length), chances / chances.sum())

    def _marginals(self, truths: list[Truth], shares: Floats, length: int) -> Floats:
        marginals = np.zeros((self.sequence_length(length), self.vocabulary.size))
        for truth, share in zip(truths, shares.tolist(), strict=True):
            own = truth.token_marginals
            assert own is not None
            marginals[: len(own)] += share * own
            marginals[len(own) :, self._first.end] += share
        return marginals

    def _read(self, tokens: Ints) -> tuple[int, Ints]:
        """The length l, and the form of each sequence."""
        first, (count, T) = self._first, tokens.shape
        wrong = f"expected sequences of {self}, got other tokens"
        length = next((one for one in range(self.shortest or 1, T) if self.sequence_length(one) >= T), 0)
        if not length or self.sequence_length(length) != T or (tokens[:, 0] != first.end).any():
            raise ValueError(wrong)
        equals = (tokens == first.equals).argmax(axis=1)
        behind = (tokens == first.end) & (np.arange(T) > equals[:, None])
        end = behind.argmax(axis=1)
        form = np.full(count, -1)
        for f, (task, n) in enumerate(self.forms(length)):
            P, own = task.prompt_length(n), task.sequence_length(n)
            fits = np.flatnonzero(
                (form < 0) & (equals == P + 1) & (end == own - 1) & behind[:, own - 1 :].all(axis=1)
            )
            prompts = tokens[fits, 1 : P + 1]
            if len(fits) and task.are_prompts(prompts, n):
                form[fits] = f
            elif len(fits):  # some are of another task
                form[fits] = [f if task.are_prompts(row[None], n) else -1 for row in prompts]
        if (form < 0).any():
            raise ValueError(wrong)
        return length, form

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        length, form = self._read(tokens)
        # Each form has its own columns, because the law of a column may differ between forms.
        columns: dict[str, list[Ints]] = {"values": [form[:, None]]}
        together: dict[str, bool] = {}
        for f, (task, n) in enumerate(self.forms(length)):
            rows = np.flatnonzero(form == f)
            for kind, draw in task.draws(tokens[rows, : task.sequence_length(n)], name).items():
                own = np.full((len(tokens), draw.values.shape[1]), -1)
                own[rows] = draw.values
                columns.setdefault(kind, []).append(own)
                together[kind] = draw.together
        return {
            kind: Draw(np.concatenate(parts, axis=1), together.get(kind, False)) for kind, parts in columns.items()
        }

    def _one(self, tokens: tuple[int, ...]) -> tuple[ResponseTask, int]:
        length, form = self._read(np.array([tokens]))
        return self.forms(length)[int(form[0])]

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        task, n = self._one(tokens)
        return task.solve(tokens[: task.sequence_length(n)])

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        task, n = self._one(tokens)
        T = task.sequence_length(n)
        ids = task.define_position_ids(tokens[:T]) or []
        return [[*kind, *[0] * (len(tokens) - T)] for kind in ids]

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        V = self.vocabulary.size
        if not len(tokens):
            return torch.empty((0, V), dtype=torch.float64)
        length, form = self._read(tokens)
        posterior = torch.full((*tokens.shape, V), -torch.inf, dtype=torch.float64)
        for f, (task, n) in enumerate(self.forms(length)):
            rows = torch.from_numpy(np.flatnonzero(form == f))
            if len(rows):
                T, P = task.sequence_length(n), task.prompt_length(n)
                own = task.log_posterior(Batch(batch.tokens[rows, :T], batch.targets[rows, :T]))
                posterior[rows, P + 1 : T - 1] = own.view(len(rows), -1, V)
        return posterior[batch.scored]


@lru_cache(maxsize=4)
def _kept_block(task: PaddedMixture, stream: Stream, start: int, count: int, length: int) -> tuple[Ints, ...]:
    return task._made(stream, start, count, length)


@dataclass(frozen=True)
class _Words(Stream):
    """The random words of sequences of length l. Each form uses as many as it needs, from the first on."""

    source: Stream = Stream()
    start: int = 0
    count: int = 0
    length: int = 0
    sizes: tuple[tuple[str, int], ...] = ()
    rows: Ints | None = None

    def of(self, rows: Ints) -> "_Words":
        """The words for some rows of the batch."""
        return _Words(self.seed, self.name, self.source, self.start, self.count, self.length, self.sizes, rows)

    def words(self, purpose: str, length: int, start: int, count: int, per_sequence: int) -> NDArray[np.uint64]:
        every = _block(
            self.source, f"{purpose} of {_FROM}", self.length, self.start, self.count, dict(self.sizes)[purpose]
        )
        assert self.rows is not None
        return every[self.rows[start : start + count], :per_sequence]


@lru_cache(maxsize=8)
def _block(stream: Stream, purpose: str, length: int, start: int, count: int, size: int) -> NDArray[np.uint64]:
    """Random words that several forms use one after the other."""
    return stream.words(purpose, length, start, count, size)


@dataclass(frozen=True)
class _Sizes(Stream):
    """Records the number of requested words and returns none."""

    most: tuple[dict[str, int], ...] = ()

    def words(self, purpose: str, length: int, start: int, count: int, per_sequence: int) -> NDArray[np.uint64]:
        (most,) = self.most
        most[purpose] = max(most.get(purpose, 0), per_sequence)
        return np.empty((count, per_sequence), dtype=np.uint64)


@lru_cache(maxsize=64)
def _sizes(task: PaddedMixture, length: int) -> tuple[tuple[str, int], ...]:
    """For each purpose, the largest number of words that a form needs."""
    most: dict[str, int] = {}
    for form, n in task.forms(length):
        form.draw_prompts(_Sizes(most=(most,)), 0, np.empty((0, form.prompt_length(n)), dtype=np.int64), n)
    return tuple(most.items())


@lru_cache(maxsize=64)
def _most_sources(task: PaddedMixture, length: int) -> int:
    """The largest number of sources of a target, over all forms."""
    return max(int(law.sets.shape[1]) for form, n in task.forms(length) for law in form.source_laws(n))


@lru_cache(maxsize=64)
def _check_told_apart(task: PaddedMixture, length: int) -> None:
    """Raise ``SettingError`` if two forms have prompts in common."""
    forms = task.forms(length)
    prompts = []
    for one, n in forms:
        tokens = one.sample(Stream(name="told apart"), 0, _TRIED, n).tokens.numpy()
        prompts.append(tokens[:, 1 : one.prompt_length(n) + 1])
    by_size: dict[int, list[int]] = {}
    for f, own in enumerate(prompts):
        by_size.setdefault(own.shape[1], []).append(f)
    for group in by_size.values():
        for f in group:
            for g in group:
                one, n = forms[f]
                if f != g and any(one.are_prompts(row[None], n) for row in prompts[g]):
                    raise SettingError(
                        "tasks", "tasks whose prompts tell which of them they are of", str(forms[g][0])
                    )
