"""``AssociativeRecall``: many queries of many pairs (MQAR).

After Arora et al. (arXiv 2312.04927): key-value pairs first, then each key once more, at a distance with a power law.
Here the distances follow a declared law exactly, the filler holds none of the sequence's keys, and each repeated key
is followed by its value, as in text.
"""

from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.batch import IGNORE, Batch, Vocabulary
from sparsity_lab.generators.locality import Law, PowerLaw, Uniform
from sparsity_lab.generators.position_laws import OneBlock, SpacedSet
from sparsity_lab.generators.query_layout import rows_of_chunks
from sparsity_lab.generators.stream import Stream, bounded, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth, ranks_of_distinct
from sparsity_lab.settings import SettingError, register

__all__ = ["AssociativeRecall"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@register
class AssociativeRecall(Task):
    """Recall of pairs: ``k_1 v_1 .. k_n v_n`` and then filler, in which each key stands once more with its value
    after it; those values are scored.

    T = l. After the pairs come s = (l - 2n) // 2 *slots* of two tokens, and one token more if l is odd. The gap of a
    slot is its number, 1 .. s, counted from the pairs. The n slots with queries are a set drawn from the law of the
    gaps; which key is in which of them is uniform. Keys are distinct and uniform, values independent and uniform;
    filler is uniform over all tokens but the sequence's keys.

    Attributes:
        num_pairs: n.
        vocab_size: V, even: the first half are keys, the second values.
        gaps: law of the set of gaps, with its distance the gap.
    """

    num_pairs: int = 4
    vocab_size: int = 64
    gaps: Law = PowerLaw(alpha=1.0)

    @classmethod
    def examples(cls) -> "tuple[AssociativeRecall, ...]":
        return (
            cls(num_pairs=3, vocab_size=16),
            cls(num_pairs=8, vocab_size=512),
            cls(num_pairs=2, vocab_size=8, gaps=Uniform()),
        )

    def check(self) -> None:
        if self.num_pairs < 1:
            raise SettingError("num_pairs", "a whole number of at least 1", self.num_pairs)
        if self.vocab_size % 2 or self.vocab_size < 4:
            raise SettingError("vocab_size", "an even number of at least 4", self.vocab_size)
        if self.num_pairs > self.vocab_size // 2:
            expected = f"at most vocab_size / 2 = {self.vocab_size // 2}, the number of keys"
            raise SettingError("num_pairs", expected, self.num_pairs)
        bound = self.gaps.bound()
        if bound and bound[1] < self.num_pairs:
            raise SettingError(f"gaps.{bound[0]}", f"room for num_pairs={self.num_pairs}", bound[1])

    def check_length(self, length: int) -> None:
        if length < 4 * self.num_pairs:
            raise SettingError("length", f"at least 4 num_pairs = {4 * self.num_pairs} for {self}", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        half = self.vocab_size // 2
        names = (*(f"k{i}" for i in range(half)), *(f"v{i}" for i in range(half)))
        return Vocabulary(names=names, roles=("data",) * self.vocab_size)

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        n = self.num_pairs
        return 4 * n + 8, 4 * n + 21, 4 * n + 120

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count, n = whole("count", count, 0), self.num_pairs
        tokens = np.empty((count, length), dtype=np.int64)
        targets = np.full((count, length), IGNORE, dtype=np.int64)
        for rows, first in rows_of_chunks(start, count, length):
            chunk = tokens[rows]
            size = len(chunk)
            keys = self._keys(stream, first, size, length)
            values = bounded(stream.words("planted", length, first, size, n), self.vocab_size // 2)
            values += self.vocab_size // 2
            chunk[:, : 2 * n : 2], chunk[:, 1 : 2 * n : 2] = keys, values
            chunk[:, 2 * n :] = self._filler(stream, first, keys, length)
            places, pairs = self._queries(stream, first, size, length)
            index = np.arange(size)[:, None]
            asked = np.take_along_axis(values, pairs, axis=1)
            chunk[index, places], chunk[index, places + 1] = np.take_along_axis(keys, pairs, axis=1), asked
            targets[rows][index, places] = asked
        sources = partial(self._sources, stream, start, count, length)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), None, sources, vocabulary=self.vocabulary)

    def _sources(self, stream: Stream, start: int, count: int, length: int) -> Tensor:
        places, pairs = self._queries(stream, start, count, length)
        spread = np.full((count, length, 2), -1, dtype=np.int64)
        spread[np.arange(count)[:, None], places] = 2 * pairs[:, :, None] + np.arange(2)
        return torch.from_numpy(spread)

    def _keys(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, n) distinct keys in uniform order."""
        n, K = self.num_pairs, self.vocab_size // 2
        words = stream.words("keys", length, start, count, 2 * n)
        keys = np.empty((count, n), dtype=np.int64)
        # Floyd's method: a uniform set of n of K with n draws.
        for i in range(n):
            top = K - n + i
            drawn = bounded(words[:, i], top + 1)
            taken = (keys[:, :i] == drawn[:, None]).any(axis=1)
            keys[:, i] = np.where(taken, top, drawn)
        return np.take_along_axis(keys, words[:, n:].argsort(axis=1), axis=1)

    def _filler(self, stream: Stream, start: int, keys: Ints, length: int) -> NDArray[np.int32]:
        """(count, l - 2n) tokens, each uniform over those that are none of the row's keys."""
        n, size = self.num_pairs, length - 2 * self.num_pairs
        words = stream.words("background", length, start, len(keys), (size + 1) // 2)
        drawn = bounded(np.ascontiguousarray(words, dtype="<u8").view("<u4"), self.vocab_size - n)[:, :size]
        filler: NDArray[np.int32] = drawn.astype(np.int32)
        # From the smallest key on: what has come to a key moves past it.
        for key in np.sort(keys, axis=1).astype(np.int32).T:
            filler += filler >= key[:, None]
        return filler

    def _queries(self, stream: Stream, start: int, count: int, length: int) -> tuple[Ints, Ints]:
        """(count, n) ascending positions of the repeated keys, and the pair of each, from 0."""
        n = self.num_pairs
        places = self.gaps.draw(stream.words("positions", length, start, count, n), self._slots(length))
        gaps = self._slots(length) + 1 - places[:, ::-1]
        pairs = stream.words("order", length, start, count, n).argsort(axis=1)
        return 2 * n + 2 * (gaps - 1), pairs

    def _slots(self, length: int) -> int:
        return (length - 2 * self.num_pairs) // 2

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        n, V = self.num_pairs, self.vocab_size
        first = np.zeros(length)
        first[: 2 * n : 2] = 1 / n
        queries = SpacedSet(self.gaps, k=n, T=length, places=self._slots(length), offset=2 * n, stride=2)
        return Truth(
            k=2,
            num_targets=n,
            chance_accuracy=2 / V,
            chance_loss=float(np.log(V / 2)),
            bayes_accuracy=1.0,
            bayes_loss=0.0,
            position_law=OneBlock(first, width=2),
            target_law=queries,
            labels=tuple(range(V // 2, V)),
            label_distribution=np.repeat([0.0, 2 / V], V // 2),
            build_marginals=partial(self._marginals, queries, length),
            label_free_bystanders=True,
        )

    def _marginals(self, queries: SpacedSet, length: int) -> Floats:
        n, half = self.num_pairs, self.vocab_size // 2
        asked = queries.order_pmf().sum(axis=0)
        asked[: 2 * n : 2] = 1.0
        keys = np.repeat([1 / half, 0.0], half)
        filler = np.repeat([1 - n / half, 1.0], half) / (self.vocab_size - n)
        following = np.append(0.0, asked[:-1])
        free = 1 - asked - following
        return np.asarray(asked[:, None] * keys + following[:, None] * keys[::-1] + free[:, None] * filler)

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        n, index = self.num_pairs, np.arange(len(tokens))[:, None]
        keys, values = tokens[:, : 2 * n : 2], tokens[:, 1 : 2 * n : 2] - self.vocab_size // 2
        asked = tokens[:, :, None] == keys[:, None, :]
        asked[:, : 2 * n] = False
        places = asked.any(axis=2).nonzero()[1].reshape(len(tokens), n)
        ranks = tokens - (keys[:, None, :] < tokens[:, :, None]).sum(axis=2)
        ranks[:, : 2 * n] = ranks[index, places] = ranks[index, places + 1] = -1
        return {
            "values": Draw(values),
            "keys": Draw(ranks_of_distinct(keys)),
            "order": Draw(ranks_of_distinct(asked[index, places].argmax(axis=2))),
            "background": Draw(ranks),
            "places": Draw(places, together=True),
        }

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        context = 2 * self.num_pairs
        place = {tokens[t]: t for t in range(0, context, 2)}
        return tuple(
            Step(t, (place[token], place[token] + 1), tokens[place[token] + 1])
            for t, token in enumerate(tokens)
            if t >= context and token in place
        )

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens, n = batch.tokens.numpy(), self.num_pairs
        rows, places = batch.scored.nonzero().numpy().T
        same = tokens[rows, : 2 * n : 2] == tokens[rows, places][:, None]
        if not (same.sum(axis=1) == 1).all():
            raise ValueError(f"expected sequences of {self}, with each query among the keys once, got other tokens")
        posterior = torch.full((len(rows), self.vocab_size), -np.inf, dtype=torch.float64)
        values = tokens[rows, 2 * same.argmax(axis=1) + 1]
        posterior[torch.arange(len(rows)), torch.from_numpy(values)] = 0.0
        return posterior
