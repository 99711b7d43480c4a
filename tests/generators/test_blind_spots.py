"""Subtle faults that certificates once did not see: each is now caught, and a sound task at the same effort passes.

Faults are of how sequences are drawn, and keep the rule: what any one place shows of the target stays as declared.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from generators.mutants import Edit, every, mutant, rebuilt
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators import (
    Addition,
    AssociativeRecall,
    Batch,
    Copy,
    InContextMarkov,
    InductionHeads,
    Mixture,
    Passkey,
    Planted,
    PowerLaw,
    SelectiveCopy,
    SparseMarkov,
    StackManipulation,
    Stream,
    Task,
    TextBytes,
    Truth,
    certify,
    open_unit,
)

MANY = 400_000
Told = Callable[[Tensor], tuple[Tensor, Tensor]]


def leak(told: Told, share: int = 1) -> Edit:
    """Where ``told(tokens)`` says so, the last planted bit is such that the label is what it says: an edit of tasks
    with the rule ``Parity``, in every ``share``-th sequence."""

    def edit(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = task.sample(stream, start, count, length)
        assert batch.sources is not None
        tokens, targets = batch.tokens.clone(), batch.targets.clone()
        which, label = told(tokens)
        rows = (which & every(share, start, count) & (targets[:, -1] != label)).nonzero()[:, 0]
        place = batch.sources[rows, -1, -1]
        tokens[rows, place] = 1 - tokens[rows, place]
        targets[rows, -1] = label[rows]
        return rebuilt(tokens, targets, batch.sources, batch.position_ids)

    return edit


def parity_of(*places: int, bit: int = 0) -> Told:
    def told(tokens: Tensor) -> tuple[Tensor, Tensor]:
        if tokens.shape[1] <= max(places):
            return torch.zeros(len(tokens), dtype=torch.bool), tokens[:, 0]
        there = tokens[:, list(places)]
        return (there > 1).all(dim=1), ((there >> bit) & 1).sum(dim=1) % 2

    return told


def noise_where(chosen: Callable[[Batch, int], Tensor]) -> Edit:
    """The noise has its rate, but half of the sequences have twice as much, and the others none."""

    def edit(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
        assert isinstance(task, Planted)
        none = task.replace(noise=0.0).sample(stream, start, count, length)
        double = task.replace(noise=2 * task.noise).sample(stream, start, count, length)
        targets = torch.where(chosen(none, start)[:, None], double.targets, none.targets)
        return rebuilt(none.tokens, targets, none.sources)

    return edit


def last_is_the_sum(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The last of the values that are recited is the sum of the others."""
    batch = task.sample(stream, start, count, length)
    assert batch.sources is not None
    tokens, targets = batch.tokens.clone(), batch.targets.clone()
    q = len(task.truth(length).labels or ())
    low = min(task.truth(length).labels or ())
    # All at their places in the prompt, in the order in which they stand there.
    rows, at = batch.scored.nonzero().T
    m = int(batch.scored[0].sum())
    places = batch.sources[rows, at].amax(dim=1).reshape(count, m).sort(dim=1).values
    old = tokens.gather(1, places)
    new = old.clone()
    new[:, -1] = (old[:, :-1] - low).sum(dim=1) % q + low
    tokens.scatter_(1, places, new)
    source = batch.sources[rows, at].amax(dim=1).reshape(count, m)
    answers = tokens.gather(1, source)
    targets[batch.scored] = answers.reshape(-1)
    where = at.reshape(count, m) + 1
    inside = where < tokens.shape[1]
    index = torch.arange(count)[:, None].expand(count, m)
    tokens[index[inside], where[inside]] = answers[inside]
    return rebuilt(tokens, targets, batch.sources, batch.position_ids)


class CyclicQueries(AssociativeRecall):
    def _queries(self, stream: Stream, start: int, count: int, length: int) -> tuple[NDArray, NDArray]:
        places, pairs = super()._queries(stream, start, count, length)
        return places, (pairs[:, :1] + np.arange(self.num_pairs)) % self.num_pairs


class DependentOperands(Addition):
    def draw_prompts(self, stream: Stream, start: int, out: NDArray, length: int) -> None:
        super().draw_prompts(stream, start, out, length)
        out[:, -1] = out[:, 0]  # the last digit of b is the first of a


class RepeatedDigit(Copy):
    def draw_prompts(self, stream: Stream, start: int, out: NDArray, length: int) -> None:
        super().draw_prompts(stream, start, out, length)
        out[::2, -1] = out[::2, 0]


def markov_noise(period: int) -> Edit:
    """Noise that comes again after so many places."""

    def edit(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
        assert isinstance(task, SparseMarkov)
        V, L = task.vocab_size, task.lags[-1]
        batch = task.sample(stream, start, count, length)
        x = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1).numpy().copy()
        words = stream.words("noise", length, start, count, 2 * period)
        noisy = open_unit(words[:, :period]) < task.noise
        e = np.where(noisy, 1 + words[:, period:] % np.uint64(V - 1), 0).astype(np.int64)
        for i in range(L, x.shape[1]):
            x[:, i] = (sum(x[:, i - lag] for lag in task.lags) + e[:, i % period]) % V
        whole = torch.from_numpy(x)
        return rebuilt(whole[:, :-1].contiguous(), whole[:, 1:].contiguous(), batch.sources)

    return edit


def after_the_answer(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    batch = task.sample(stream, start, count, length)
    assert batch.sources is not None
    tokens = batch.tokens.clone()
    answer = batch.sources[:, -1, 1]
    rows = (answer < length).nonzero()[:, 0]
    tokens[rows, answer[rows] + 1] = (tokens[rows, answer[rows]] + 1) % task.data_vocab
    return rebuilt(tokens, batch.targets, batch.sources)


class Following(Mixture):
    """Which component a sequence is of follows a word that decides something else as well."""

    word: ClassVar[tuple[str, int]]

    def component(self, stream: Stream, start: int, count: int, length: int) -> NDArray:
        purpose, words = self.word
        first = stream.words(purpose, length, start, count, words or (length + 1) // 2)[:, 0]
        # The first token of the background is made of the lower half of its word.
        return np.asarray(first >> np.uint64(31 if words == 0 else 63)).astype(np.int64) & 1


def follows(purpose: str, words: int) -> type[Mixture]:
    return type("Following", (Following,), {"word": (purpose, words)})


def another_stream(change: Callable[[Stream], Stream]) -> Edit:
    return lambda task, stream, start, count, length: task.sample(change(stream), start, count, length)


def starts_anew_after(period: int) -> Edit:
    def edit(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
        first = start % period
        here = min(count, period - first)
        batches = [task.sample(stream, first, here, length)]
        if here < count:
            batches.append(task.sample(stream, 0, count - here, length))
        return Batch.collate(batches)

    return edit


def other_in_batches_of(size: int) -> Edit:
    def edit(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
        return task.sample(Stream(seed=99) if count == size else stream, start, count, length)

    return edit


def repeats_the_last_but_one(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    index = torch.arange(start, start + count)
    origin = torch.where(index % 10 == 9, index - 2, index)
    first = int(origin.min()) if count else 0
    batch = task.sample(stream, first, int(origin.max()) - first + 1 if count else 0, length)
    rows = origin - first
    ids = None if batch.position_ids is None else batch.position_ids[rows]
    return rebuilt(batch.tokens[rows], batch.targets[rows], batch.sources[rows] if batch.has_sources else None, ids)


class Shared(Stream):
    """The same words at lengths l and l ^ 4."""

    def words(self, purpose: str, length: int, start: int, count: int, per_sequence: int) -> NDArray[np.uint64]:
        return super().words(purpose, length & ~4, start, count, per_sequence)


class OftenRare(Mixture):
    """The component that is declared rare comes six times as often."""

    def component(self, stream: Stream, start: int, count: int, length: int) -> NDArray:
        rare = 6 * self.probabilities[1]
        return (open_unit(stream.words("component", length, start, count, 1)[:, 0]) < rare).astype(np.int64)


def declared_rarer(self: StackManipulation, length: int) -> Truth:
    """The rarest label of the first targets is declared 15 times as rare as it is, and chance goes with it."""
    sound = StackManipulation.truth(self, length)
    assert sound.label_distribution is not None
    law = sound.label_distribution.copy()
    for slot in law[:2]:
        slot[np.where(slot > 0, slot, 1.0).argmin()] /= 15
    law /= law.sum(axis=1, keepdims=True)
    chance = Truth.of_labels(law)
    return dataclasses.replace(
        sound, label_distribution=law, chance_accuracy=chance.chance_accuracy, chance_loss=chance.chance_loss
    )


class OtherWindows(TextBytes):
    def _starts(self, windows: int, unit: NDArray) -> NDArray:
        return unit * windows

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        windows = np.lib.stride_tricks.sliding_window_view(self._part(stream), length + 1)
        unit = open_unit(stream.words("positions", length, start, count, 1)[:, 0])
        window = torch.from_numpy(windows[self._starts(len(windows), unit).astype(np.int64)].astype(np.int64))
        return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), vocabulary=self.vocabulary)


class EvenWindows(OtherWindows):
    def _starts(self, windows: int, unit: NDArray) -> NDArray:
        return (unit * windows).astype(np.int64) // 2 * 2


class WithoutTheEnd(OtherWindows):
    def _starts(self, windows: int, unit: NDArray) -> NDArray:
        return unit * (windows - windows // 100)


class TrainsOnEvaluation(OtherWindows):
    def _part(self, stream: Stream) -> NDArray[np.uint8]:
        return self.corpus.evaluation


def never_adjacent(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Adjacent places move apart, in long sequences."""
    batch = task.sample(stream, start, count, length)
    assert batch.sources is not None
    tokens, sources = batch.tokens.clone(), batch.sources.clone()
    if length > 100:
        for j in range(1, sources.shape[2]):
            place = sources[:, -1, j]
            last = torch.full_like(place, length + 1) if j + 1 == sources.shape[2] else sources[:, -1, j + 1]
            rows = ((place == sources[:, -1, j - 1] + 1) & (place + 1 < last)).nonzero()[:, 0]
            here = place[rows]
            tokens[rows, here], tokens[rows, here + 1] = tokens[rows, here + 1], tokens[rows, here].clone()
            sources[rows, -1, j] += 1
    return rebuilt(tokens, batch.targets, sources)


def five_suffice_when_long(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Of six planted bits the last is the parity of the two before it, in sequences of more than 20."""
    batch = task.sample(stream, start, count, length)
    assert batch.sources is not None
    tokens, targets = batch.tokens.clone(), batch.targets.clone()
    if length > 20:
        values = tokens.gather(1, batch.sources[:, -1])
        values[:, -1] = (values[:, -2] + values[:, -3]) % 2
        tokens.scatter_(1, batch.sources[:, -1], values)
        targets[:, -1] = values.sum(dim=1) % 2
    return rebuilt(tokens, targets, batch.sources)


def one_in_a_hundred_comes_again(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Its background is that of 37 sequences before; values and places are its own."""
    batch, first = task.sample(stream, start, count, length), max(0, start - 37)
    earlier = task.sample(stream, first, start + count - first, length).tokens
    index = torch.arange(start, start + count)
    old = earlier[(index - 37).clamp(min=first) - first]
    again = one_in(100, stream, start, count, length)[:, 0] & (index >= 37)
    background = torch.tensor([role == "background" for role in task.vocabulary.roles])
    chosen = again[:, None] & background[batch.tokens] & background[old]
    return rebuilt(torch.where(chosen, old, batch.tokens), batch.targets, batch.sources)


def by_sevens(batch: Batch, start: int) -> Tensor:
    return torch.arange(start, start + len(batch.tokens)) % 14 < 7


class OneProbability(InContextMarkov):
    """In one of five sequences both states are left with the same probability."""

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return super().sample(SameTransitions(seed=stream.seed, name=stream.name), start, count, length)


class SameTransitions(Stream):
    def words(self, purpose: str, length: int, start: int, count: int, per_sequence: int) -> NDArray[np.uint64]:
        words = super().words(purpose, length, start, count, per_sequence)
        if purpose == "transitions":
            rows = one_in(5, Stream(self.seed, self.name), start, count, length)[:, 0].numpy()
            words[rows, 1] = words[rows, 0]
        return words


PARITY = Planted(vocab_size=10)
NOISY = PARITY.replace(noise=0.1)
TWO = (Planted(k=1, noise=0.2, vocab_size=8), Planted(k=1, locality=PowerLaw(alpha=1.0), noise=0.2, vocab_size=8))


def more_noise(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    return task.replace(noise=0.105).sample(stream, start, count, length)


def one_in(n: int, stream: Stream, start: int, count: int, length: int, per_sequence: int = 1) -> Tensor:
    """(count, per_sequence) True with probability 1 / n, of words of their own."""
    words = stream.words("broken", length, start, count, per_sequence) >> np.uint64(11)
    return torch.from_numpy((words % np.uint64(n) == 0).astype(bool))


def rarer_token(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Of one token 2 % fewer, at every place."""
    batch = task.sample(stream, start, count, length)
    tokens = batch.tokens.clone()
    tokens[(tokens == 5) & one_in(50, stream, start, count, length, length + 2)] = 6
    return rebuilt(tokens, batch.targets, batch.sources)


def wrong_ids(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """At a rate of 3e-5."""
    batch = task.sample(stream, start, count, length)
    assert batch.position_ids is not None
    ids, rows = batch.position_ids.clone(), one_in(33_333, stream, start, count, length)[:, 0]
    ids[rows] = ids[rows].roll(1, dims=2)
    return rebuilt(batch.tokens, batch.targets, batch.sources, ids)


FAULTS: dict[str, tuple[Task, tuple[int, ...] | None, int]] = {
    "the label is the parity of three background tokens": (mutant(PARITY, leak(parity_of(3, 5, 8))), (12,), 10_000),
    "the label is the parity of a pair's third bits": (
        mutant(Planted(), leak(parity_of(4, 7, bit=2))),
        (12,),
        20_000,
    ),
    "a leak in the middle of long sequences": (mutant(PARITY, leak(parity_of(100, 141))), (240,), 20_000),
    "a leak in one of 20 sequences": (mutant(PARITY, leak(parity_of(5, 9), share=10)), (12,), 100_000),
    "noise at even first places": (
        mutant(NOISY, noise_where(lambda b, _: b.sources[:, -1, 0] % 2 == 0)),
        (12,),
        10_000,
    ),
    "noise where three background tokens have an even sum": (
        mutant(NOISY, noise_where(lambda b, _: b.tokens[:, 3:10:3].sum(dim=1) % 2 == 0)),
        (12,),
        20_000,
    ),
    "noise in seven of 14 sequences": (mutant(NOISY, noise_where(by_sevens)), (12,), 10_000),
    "one in a hundred has the background of 37 before": (
        mutant(PARITY, one_in_a_hundred_comes_again),
        (12,),
        100_000,
    ),
    "InContextMarkov: one probability for both states": (OneProbability(), (6,), 50_000),
    "SelectiveCopy: the last value is the sum": (mutant(SelectiveCopy(), last_is_the_sum), (12,), 5000),
    "Passkey: the last digit is the sum": (mutant(Passkey(), last_is_the_sum), (14,), 5000),
    "AssociativeRecall: the last value is the sum": (
        mutant(AssociativeRecall(num_pairs=4, vocab_size=16), last_is_the_sum),
        (24,),
        5000,
    ),
    "AssociativeRecall: queries in cyclic order": (CyclicQueries(num_pairs=3, vocab_size=16), (20,), 5000),
    "Addition: a digit of b is one of a": (DependentOperands(), (2,), 5000),
    "Copy: the last symbol is often the first": (RepeatedDigit(), (3,), 5000),
    "SparseMarkov: the same noise throughout": (mutant(SparseMarkov(), markov_noise(1)), (30,), 5000),
    "SparseMarkov: noise comes again after 30 places": (mutant(SparseMarkov(), markov_noise(30)), (68,), 10_000),
    "InductionHeads: what comes after the answer": (mutant(InductionHeads(), after_the_answer), (33,), 5000),
    "Mixture: by the noise word": (follows("noise", 2)(tasks=TWO), (12,), 5000),
    "Mixture: by a place's word": (follows("positions", 1)(tasks=TWO), (12,), 5000),
    "Mixture: by the background": (follows("background", 0)(tasks=TWO), (12,), 5000),
    "train and evaluation are one stream": (
        mutant(PARITY, another_stream(lambda s: Stream(seed=s.seed, name=s.name.replace("train", "evaluation")))),
        (12,),
        1000,
    ),
    "training is the evaluation of three seeds on": (
        mutant(
            PARITY,
            another_stream(lambda s: Stream(seed=s.seed + 3, name="evaluation") if s.name == "train" else s),
        ),
        (12,),
        1000,
    ),
    "seeds modulo 2^16": (
        mutant(PARITY, another_stream(lambda s: Stream(seed=s.seed % 2**16, name=s.name))),
        (12,),
        1000,
    ),
    "a period of 1,000,003": (mutant(PARITY, starts_anew_after(1_000_003)), (12,), 20_000),
    "other data in batches of 128": (mutant(PARITY, other_in_batches_of(128)), (12,), 1000),
    "one in ten repeats the last but one": (mutant(PARITY, repeats_the_last_but_one), (12,), 1000),
    "so where there are few sequences": (mutant(Addition(), repeats_the_last_but_one), (2,), 2000),
    "words shared between l and l ^ 4": (
        mutant(PARITY, another_stream(lambda s: Shared(seed=s.seed, name=s.name))),
        (33,),
        1000,
    ),
    "Mixture: the rare component comes six times as often": (
        OftenRare(tasks=(NOISY, PARITY.replace(noise=0.15)), shares=(0.996, 0.004)),
        (12,),
        10_000,
    ),
    "StackManipulation: a label is declared 15 times as rare": (
        mutant(StackManipulation(), truth=declared_rarer),
        (24,),
        10_000,
    ),
    "TextBytes: training on the evaluation part": (TrainsOnEvaluation(), (12,), 5000),
    "TextBytes: windows at even places": (EvenWindows(), (12,), 5000),
    "TextBytes: the last hundredth never drawn": (WithoutTheEnd(), (12,), 30_000),
    "adjacent places never drawn when long": (mutant(PARITY, never_adjacent), (240,), 40_000),
    "noise of .105 declared as .1": (mutant(NOISY, more_noise), (8,), MANY),
    "2 % fewer of one token at every place": (mutant(PARITY, rarer_token), (8,), MANY),
    "wrong IDs at a rate of 3e-5": (mutant(PARITY.replace(coupled=True), wrong_ids), (8,), MANY),
    "k=6 with a shortcut when long": (mutant(Planted(k=6, vocab_size=10), five_suffice_when_long), None, 4000),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault: str) -> None:
    task, lengths, sequences = FAULTS[fault]
    assert not certify(task, sequences=sequences, lengths=lengths).passed
