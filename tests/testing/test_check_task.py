"""What ``check_task`` catches: each mutant breaks one property of a sound task."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from sparsity_lab.generators import Addition, Batch, Planted, Stream, Task, Truth, Vocabulary
from sparsity_lab.settings import register
from sparsity_lab.testing import check_task


class Sound(Planted):
    """Passes where it is registered; what follows breaks it."""

    def changed(self, batch: Batch, **parts: Any) -> Batch:
        own = {name: getattr(batch, name) for name in ("tokens", "targets", "position_ids", "sources")} | parts
        return Batch(*own.values(), vocabulary=batch.vocabulary)

    def whole(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return Planted.sample(self, stream, start, count, length)


class Unregistered(Planted):
    pass


@register
class UncheckedSample(Sound):
    """The user's task that passed its certificate and failed two shared tests."""

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return self.whole(stream, start, count, int(length))


@register
class UncheckedTruth(Sound):
    def truth(self, length: int) -> Truth:
        return super().truth(int(length))


@register
class LambdaSources(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        return self.changed(batch, sources=lambda: batch.sources)


@register
class LambdaTruth(Sound):
    def truth(self, length: int) -> Truth:
        truth = super().truth(length)
        return dataclasses.replace(truth, build_joint=lambda: truth.token_label_joint)  # type: ignore[arg-type,return-value]


@register
class GlobalGenerator(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        torch.rand(1)
        return self.whole(stream, start, count, length)


@register
class NumpyGenerator(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        np.random.random()
        return self.whole(stream, start, count, length)


@register
class StartsAnew(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return self.whole(stream, 0, count, length)


@register
class DeafToSeeds(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return self.whole(Stream(name=stream.name), start, count, length)


@register
class DeafToNames(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return self.whole(Stream(seed=stream.seed), start, count, length)


@register
class ShortTokens(Sound):
    def sequence_length(self, length: int) -> int:
        return length


@register
class UnknownTokens(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        return self.changed(batch, tokens=batch.tokens + 1)


@register
class NegativeTargets(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        return self.changed(batch, targets=torch.where(batch.scored, batch.targets, -1))


@register
class SourcesEverywhere(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        assert batch.sources is not None
        return self.changed(batch, sources=batch.sources.clamp(min=0))


@register
class SourcesBeyond(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        assert batch.sources is not None
        return self.changed(batch, sources=torch.where(batch.sources < 0, -1, batch.sources + length))


@register
class LargeIDs(Sound):
    def largest_position_id(self, length: int) -> int:
        return self.k


@register
class OtherKinds(Addition):
    @property
    def num_kinds(self) -> int:
        return 1

    @classmethod
    def examples(cls) -> "tuple[OtherKinds, ...]":
        return (cls(),)

    def find_position_ids(self, tokens: Any, length: int) -> Any:
        return np.repeat(super().find_position_ids(tokens, length), 2, axis=-2)[..., :1, :] * 0 + 99


@register
class Nameless(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.changed(self.whole(stream, start, count, length))
        batch.vocabulary = None
        return batch


@register
class TwoOfAName(Sound):
    @property
    def vocabulary(self) -> Vocabulary:  # type: ignore[override]
        return dataclasses.replace(super().vocabulary, names=("0",) * self.vocab_size)


@register
class OddRole(Sound):
    @property
    def vocabulary(self) -> Vocabulary:  # type: ignore[override]
        return dataclasses.replace(super().vocabulary, roles=("hero",) * self.vocab_size)


@register
class NoLengths(Sound):
    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return ()


@register
class ImpossibleLengths(Sound):
    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return (12, 1)


@register
class SilentOptimum(Sound):
    def truth(self, length: int) -> Truth:
        return dataclasses.replace(super().truth(length), bayes_accuracy=None, bayes_loss=None)


@register
class HalfAnOptimum(Sound):
    def truth(self, length: int) -> Truth:
        return dataclasses.replace(super().truth(length), bayes_loss=None)


@register
class WrongChance(Sound):
    def truth(self, length: int) -> Truth:
        return dataclasses.replace(super().truth(length), chance_accuracy=0.4)


MUTANTS: list[tuple[Task, str]] = [
    (Unregistered(), "is not registered as the task 'Planted'"),
    (UncheckedSample(), r"`sample` with the length 12.0 is accepted.*Begin .* with `length = self.checked_length"),
    (UncheckedTruth(), r"`truth` with the length 12.0 is accepted.*self.checked_length"),
    (LambdaSources(), r"its batches cannot be pickled.*`functools.partial` of it, and no lambda"),
    (LambdaTruth(), r"what it declares cannot be pickled.*no lambda"),
    (GlobalGenerator(), "moves the global generator of torch"),
    (NumpyGenerator(), "moves the global generator of torch or numpy"),
    (StartsAnew(), "tokens of sequences 17 .. 21 depend on the batch"),
    (DeafToSeeds(), "a stream of another seed gives the same sequences"),
    (DeafToNames(), "a stream of another name gives the same sequences"),
    (ShortTokens(), r"tokens has shape \(0, 14\).*of shape \(0, 12\)"),
    (UnknownTokens(), r"tokens runs from 1 to 16. It lies within 0 .. 15"),
    (NegativeTargets(), "targets has negative numbers but IGNORE"),
    (SourcesEverywhere(), "sources are given where nothing is scored"),
    (SourcesBeyond(), r"sources runs from -1 to \d+. It lies within -1 .. 13"),
    (LargeIDs(coupled=True), r"position_ids runs from 0 to 4. It lies within 0 .. 3"),
    (OtherKinds(), "position_ids runs from 99 to 99"),
    (Nameless(), "the batch has another vocabulary"),
    (TwoOfAName(), r"two tokens have the same name: \['0'\]"),
    (OddRole(), r"has the roles \['hero'\]"),
    (NoLengths(), "it has no certified_lengths"),
    (ImpossibleLengths(), "it refuses its own length 1: SettingError"),
    (SilentOptimum(), "log_posterior computes the optimum, and `truth` does not declare it"),
    (HalfAnOptimum(), "one of bayes_accuracy and bayes_loss is declared without the other"),
    (WrongChance(), "its certificate fails declared_levels at length 12: chance accuracy"),
]


@pytest.mark.parametrize(("task", "message"), MUTANTS, ids=[type(task).__name__ for task, _ in MUTANTS])
def test_mutants_are_caught_and_named(task: Task, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_task(task, sequences=1000)
