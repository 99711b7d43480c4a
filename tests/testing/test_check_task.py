"""What ``check_task`` catches: each mutant breaks one property of a sound task."""

import dataclasses
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from sparsity_lab.generators import (
    Addition,
    Batch,
    NotComputable,
    Planted,
    PowerLaw,
    SparseMarkov,
    Stream,
    Task,
    Truth,
    Vocabulary,
)
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


class Drawn(Sound):
    """Each batch is what ``change`` makes of a sound one."""

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        return self.changed(batch, **self.change(batch, length))

    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        raise NotImplementedError


class Declaring(Sound):
    """Declares what ``change`` says."""

    def truth(self, length: int) -> Truth:
        return dataclasses.replace(super().truth(length), **self.change(length))

    def change(self, length: int) -> dict[str, Any]:
        raise NotImplementedError


@register
class PythonGenerator(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return self.whole(stream, start + random.randrange(9), count, length)


@register
class GlobalSeed(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        seed = stream.seed + torch.initial_seed() % 2
        return self.whole(Stream(seed=seed, name=stream.name), start, count, length)


@register
class CountsItsCalls(Sound):
    calls: ClassVar[list[int]] = []

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        self.calls.append(start)
        return self.whole(stream, start + len(self.calls), count, length)


@register
class StartsAnewFarOn(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        return self.whole(stream, start % 2**16, count, length)


@register
class RepeatsInLargeBatches(Drawn):
    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        return {"tokens": batch.tokens[torch.arange(len(batch)) % 8192]}


_buffer = torch.zeros(5, 1000, dtype=torch.int64)


@register
class SharesABuffer(Drawn):
    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        if len(batch) != len(_buffer):
            return {}
        shared = _buffer[:, : batch.tokens.shape[1]]
        return {"tokens": shared.copy_(batch.tokens)}


_drawn: dict[Any, Batch] = {}


@register
class GivesTheSameBatch(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        key = stream, start, count, length
        return _drawn.setdefault(key, batch) if count else batch


@register
class SourcesOfTheLast(Sound):
    last: ClassVar[list[Batch]] = []

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = self.whole(stream, start, count, length)
        self.last[:] = [batch]
        return self.changed(batch, sources=self.sources_of_the_last)

    def sources_of_the_last(self) -> torch.Tensor:
        sources = self.last[0].sources
        assert sources is not None
        return sources


@register
class LongWhereShortest(Drawn):
    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        return {"tokens": batch.tokens[:, [0, 1, 2, 3, *range(4, length + 2)]]}


@register
class ShortFarAway(Drawn):
    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        return {"tokens": batch.tokens[:, :102]}


@register
class TooShort(Sound):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        if length == 0:
            length = 1
        return self.whole(stream, start, count, length)


@register
class Int32Tokens(Drawn):
    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        return {"tokens": batch.tokens.int()}


@register
class FloatTargets(Drawn):
    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        return {"targets": batch.targets.double()}


@register
class NoisyLabels(Drawn):
    """One in ten, by a word of the sequence's own: its first background token."""

    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        flipped = batch.tokens[:, 1:2] == self.vocab_size - 3
        return {"targets": torch.where(batch.scored & flipped, 1 - batch.targets, batch.targets)}


@register
class RareBackground(Drawn):
    def change(self, batch: Batch, length: int) -> dict[str, Any]:
        rare = self.vocab_size - 3
        return {"tokens": torch.where(batch.tokens == rare, rare - 1, batch.tokens)}


@register
class NotTheNext(Addition):
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = super().sample(stream, start, count, length)
        batch.targets = torch.where(batch.scored, batch.tokens, batch.targets)
        return batch


@register
class OtherPlaces(Declaring):
    def change(self, length: int) -> dict[str, Any]:
        return {"position_law": Planted(k=self.k, locality=PowerLaw(alpha=0.3)).truth(length).position_law}


@register
class WrongBayes(Declaring):
    def change(self, length: int) -> dict[str, Any]:
        return {"bayes_accuracy": 0.95}


@register
class ImpossibleChance(Declaring):
    def change(self, length: int) -> dict[str, Any]:
        return {"chance_accuracy": 1.5}


@register
class InfiniteChance(Declaring):
    def change(self, length: int) -> dict[str, Any]:
        return {"chance_loss": np.inf}


@register
class HalfAChance(Declaring):
    def change(self, length: int) -> dict[str, Any]:
        return {"chance_loss": None}


@register
class UnsteadyTruth(Declaring):
    calls: ClassVar[list[int]] = []

    def change(self, length: int) -> dict[str, Any]:
        self.calls.append(length)
        return {"chance_loss": np.log(2) + 1e-12 * len(self.calls)}


@register
class Peeks(SparseMarkov):
    """Its predictor reads the answer, which is the next token."""

    def log_posterior(self, batch: Batch) -> torch.Tensor:
        known = super().log_posterior(batch).reshape(len(batch), -1, self.vocab_size).clone()
        known[:, :-1] = torch.nn.functional.one_hot(batch.tokens[:, 1:], self.vocab_size).double().log()
        return known.flatten(0, 1)


class Predicting(Sound):
    """Its predictor gives what ``change`` makes of a sound one's."""

    def log_posterior(self, batch: Batch) -> torch.Tensor:
        return self.change(super().log_posterior(batch), batch)

    def change(self, logs: torch.Tensor, batch: Batch) -> torch.Tensor:
        raise NotImplementedError


@register
class PredictsFromTheBatch(Predicting):
    def change(self, logs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return (logs.exp() * (1 + batch.tokens.double().mean())).log_softmax(-1)


@register
class PredictsInPlace(Predicting):
    def change(self, logs: torch.Tensor, batch: Batch) -> torch.Tensor:
        batch.tokens[:, 0] = 0
        return logs


@register
class PredictsInFloat32(Predicting):
    def change(self, logs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return logs.float()


@register
class GivesNoReason(Declaring):
    def change(self, length: int) -> dict[str, Any]:
        return {"bayes_accuracy": None, "bayes_loss": None}

    def log_posterior(self, batch: Batch) -> torch.Tensor:
        raise NotComputable


@register
class TotalAboveOne(Sound):
    def log_likelihood(self, batch: Batch) -> torch.Tensor:
        return super().log_likelihood(batch) + 0.1


@register
class OtherProbabilities(Sound):
    def log_likelihood(self, batch: Batch) -> torch.Tensor:
        return super().log_likelihood(batch) + torch.where(batch.tokens[:, 1] == 0, 1.1, 0.9).double().log()


@register
class UnwritableRecord(Sound):
    @property
    def record(self) -> dict[str, object]:
        return {"source": object()}


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
    (ShortTokens(), r"at length 3: tokens has shape \(0, 5\).*of shape \(0, 3\)"),
    (UnknownTokens(), r"tokens runs from 1 to 16. It lies within 0 .. 15"),
    (NegativeTargets(), "targets has negative numbers but IGNORE"),
    (SourcesEverywhere(), "sources are given where nothing is scored"),
    (SourcesBeyond(), r"sources runs from -1 to \d+. It lies within -1 .. 4"),
    (LargeIDs(coupled=True), r"position_ids runs from 0 to 4. It lies within 0 .. 3"),
    (OtherKinds(), "position_ids runs from 99 to 99"),
    (Nameless(), "the batch has another vocabulary"),
    (TwoOfAName(), r"two tokens have the same name: \['0'\]"),
    (OddRole(), r"has the roles \['hero'\]"),
    (NoLengths(), "it has no certified_lengths"),
    (ImpossibleLengths(), "it refuses its own length 1: SettingError"),
    (SilentOptimum(), "log_posterior computes the optimum, and `truth` does not declare it"),
    (HalfAnOptimum(), "one of bayes_accuracy and bayes_loss is declared without the other"),
    (PythonGenerator(), "sampling gives something else the second time"),
    (GlobalSeed(), "sampling gives something else the second time, or under another global seed"),
    (CountsItsCalls(), "sampling gives something else the second time"),
    (StartsAnewFarOn(), "a stream 65536 sequences on gives the same sequences"),
    (RepeatsInLargeBatches(), "tokens of the last of 10000 sequences depend on the batch"),
    (SharesABuffer(), "tokens of a batch change when another is drawn"),
    (GivesTheSameBatch(), "tokens change when one writes into a batch that was drawn before"),
    (SourcesOfTheLast(), "sources of a batch change when another is drawn"),
    (LongWhereShortest(k=1), r"at length 1: tokens has shape \(0, 4\)"),
    (ShortFarAway(), r"at length \d\d\d: tokens has shape \(0, 102\)"),
    (TooShort(k=1), "`sample` with the length 0 is accepted"),
    (Int32Tokens(), "tokens has shape .* and torch.int32. It is an int64 tensor"),
    (FloatTargets(), "targets has shape .* and torch.float64. It is an int64 tensor"),
    (NoisyLabels(), "its certificate fails .*rule at length 12: targets that differ from the rule"),
    (
        RareBackground(vocab_size=8),
        "its certificate fails (token_marginals|position_shortcut) at length 12",
    ),
    (NotTheNext(), "its certificate fails .*next_token at length"),
    (OtherPlaces(), "its certificate fails .*source_places at length"),
    (WrongBayes(), "its certificate fails bayes at length 12: declared accuracy"),
    (ImpossibleChance(), "its chance_accuracy is 1.5. It is a probability"),
    (InfiniteChance(), "its chance_loss is inf"),
    (HalfAChance(), "one of chance_accuracy and chance_loss is declared without the other"),
    (UnsteadyTruth(), "`truth` gives something else the second time"),
    (Peeks(), "log_posterior differs where all tokens up to the target are the same"),
    (PredictsFromTheBatch(), "log_posterior of a sequence depends on the others"),
    (PredictsInPlace(), "log_posterior changes the batch"),
    (PredictsInFloat32(), r"log_posterior has shape \(1000, 16\) and torch.float32"),
    (GivesNoReason(), "it does not say why its optimum is not computable"),
    (TotalAboveOne(k=1), "log_likelihood gives sequences a total probability of 1.1"),
    (OtherProbabilities(k=1), "sequences do not come as often as log_likelihood says"),
    (UnwritableRecord(), "its `record` cannot be written as JSON"),
    (WrongChance(), "its certificate fails declared_levels at length 12: chance accuracy"),
]


@pytest.mark.usefixtures("unchecked_shapes")  # what users see, who have no checker of shapes
@pytest.mark.parametrize(("task", "message"), MUTANTS, ids=[type(task).__name__ for task, _ in MUTANTS])
def test_mutants_are_caught_and_named(task: Task, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_task(task, sequences=1000)
