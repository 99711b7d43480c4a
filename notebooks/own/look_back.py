"""Your own task: the answer is the token at a fixed distance before the query."""

from functools import cached_property, partial
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.generators import (
    Batch,
    OneBlock,
    Step,
    Stream,
    Task,
    Truth,
    Vocabulary,
    bounded,
    noisy_log_posterior,
    query_batch,
)
from sparsity_lab.settings import SettingError, register


@register
class LookBack(Task):
    """``BOS x_1 .. x_l =``: the target is the letter that stands ``distance`` before the query.

    Attributes:
        distance: 1 for the letter just before the query.
        num_letters: m; letters are uniform and independent.
    """

    extra_positions: ClassVar[int] = 2  # T = l + 2: BOS and the query

    distance: int = 3
    num_letters: int = 8

    @classmethod
    def examples(cls) -> "tuple[LookBack, ...]":
        return cls(), cls(distance=1, num_letters=2)

    def check(self) -> None:
        if self.distance < 1:
            raise SettingError("distance", "at least 1", self.distance)
        if not 2 <= self.num_letters <= 26:
            raise SettingError("num_letters", "2 to 26", self.num_letters)

    def check_length(self, length: int) -> None:
        if length < self.distance:
            raise SettingError("length", f"at least distance={self.distance}", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        letters = tuple("abcdefghijklmnopqrstuvwxyz"[: self.num_letters])
        return Vocabulary(names=(*letters, "=", "BOS"), roles=("data",) * len(letters) + ("query", "special"))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return self.distance + 5, self.distance + 40

    # Sequence i depends only on (seed, name, length, i). All randomness is words of the stream, a fixed number
    # for each sequence. `checked_length` refuses a number that is not whole or not a length of this task.
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        tokens = np.empty((count, length + 2), dtype=np.int64)
        tokens[:, 0], tokens[:, -1] = self.vocabulary.token("BOS"), self.vocabulary.token("=")
        tokens[:, 1:-1] = bounded(stream.words("letters", length, start, count, length), self.num_letters)
        source = length + 1 - self.distance
        return query_batch(self.vocabulary, tokens, tokens[:, source], partial(np.full, (count, 1), source))

    # What is declared is what `certify` tests. What does not apply is left out.
    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        m = self.num_letters
        first = np.zeros(length + 2)
        first[length + 1 - self.distance] = 1.0
        labels = np.zeros(self.vocabulary.size)
        labels[:m] = 1 / m
        return Truth(
            k=1,
            chance_accuracy=1 / m,
            chance_loss=float(np.log(m)),
            bayes_accuracy=1.0,
            bayes_loss=0.0,
            position_law=OneBlock(first),
            labels=tuple(range(m)),
            label_distribution=labels,
            build_joint=partial(self._joint, length),
            value_distribution=labels,
            independent_values=True,
        )

    def _joint(self, length: int) -> np.ndarray:
        """(T, V, labels): the joint distribution of each position and the label."""
        m = self.num_letters
        joint = np.zeros((length + 2, self.vocabulary.size, m))
        joint[1:-1, :m] = 1 / m**2
        joint[length + 1 - self.distance, :m] = np.eye(m) / m
        joint[0, self.vocabulary.token("BOS")] = joint[-1, self.vocabulary.token("=")] = 1 / m
        return joint

    # The definition again, for one sequence. The certificate compares it with `sample`.
    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        source = len(tokens) - 1 - self.distance
        return (Step(len(tokens) - 1, (source,), tokens[source]),)

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        answers = batch.tokens[:, -1 - self.distance].numpy()
        return noisy_log_posterior(answers, self.num_letters, 0.0, self.vocabulary.size)
