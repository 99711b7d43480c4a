"""``AssociativeRecall``: many queries of many pairs (MQAR).

This follows Arora et al. (arXiv 2312.04927): key-value pairs, then each key again, at a distance with a power law.
Here the distances follow a declared law exactly. The filler has none of the sequence's keys, the order of the queries
is uniform, and values are independent. A repeated key is followed by its value, as in text, or by filler, as
published.
"""

from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.batch import IGNORE, Batch, Vocabulary
from sparsity_lab.generators.locality import Law, PowerLaw, Uniform
from sparsity_lab.generators.position_laws import OneBlock, SpacedSet
from sparsity_lab.generators.query_layout import rows_of_chunks
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, whole
from sparsity_lab.generators.successive_law import SuccessivePower
from sparsity_lab.generators.task import Draw, Step, Task, Truth, ranks_of_distinct
from sparsity_lab.settings import SettingError, register


@register
class AssociativeRecall(Task):
    """Recall of pairs: ``k_1 v_1 .. k_n v_n``, then filler in which each key occurs again, followed by its value.
    These values are scored.

    T = l. After the pairs come s = (l - 2n) // 2 *slots* of two tokens, and one token more if l is odd. The gap of a
    slot is its number, 1 .. s, counted from the pairs. The law of the gaps
    gives the set of the n slots with queries, and the keys are assigned to them uniformly. Keys are distinct and
    uniform. Values are independent and uniform. Filler is uniform over all tokens except the sequence's keys.

    Attributes:
        num_pairs: n.
        vocab_size: V, even: the first half are keys, the second values.
        gaps: law of the set of gaps, as a law of distances; ``SuccessivePower`` draws them as published.
        answers: ``"hidden"``: the value is scored but not shown; filler follows the key, as published.
        filler: ``"blank"``: always the first token, which is then never a key.
        tokens_per_pair: the number of pairs grows with the length, n = l // tokens_per_pair. None: n is num_pairs.
    """

    num_pairs: int = 4
    vocab_size: int = 64
    gaps: Law = PowerLaw(alpha=1.0)
    answers: Literal["shown", "hidden"] = "shown"
    filler: Literal["random", "blank"] = "random"
    tokens_per_pair: int | None = None

    @classmethod
    def examples(cls) -> "tuple[AssociativeRecall, ...]":
        return (
            cls(num_pairs=3, vocab_size=16),
            cls(num_pairs=8, vocab_size=512),
            cls(num_pairs=2, vocab_size=8, gaps=Uniform()),
            cls(vocab_size=32, gaps=SuccessivePower(), answers="hidden", filler="blank", tokens_per_pair=8),
        )

    def check(self) -> None:
        whole("num_pairs", self.num_pairs, 1)
        if self.vocab_size % 2 or self.vocab_size < 4:
            raise SettingError("vocab_size", "an even number of at least 4", self.vocab_size)
        if self.tokens_per_pair is not None:
            whole("tokens_per_pair", self.tokens_per_pair, 4)
        elif self.num_pairs > self._num_keys:
            keys = f"vocab_size / 2{' - 1' * self._first_key} = {self._num_keys}"
            raise SettingError("num_pairs", f"at most {keys}, the number of keys", self.num_pairs)
        bound = self.gaps.bound()
        if bound and bound[1] < self.num_pairs:
            raise SettingError(f"gaps.{bound[0]}", f"enough room for num_pairs={self.num_pairs}", bound[1])

    def check_length(self, length: int) -> None:
        if self.tokens_per_pair is not None:
            least, most = self.tokens_per_pair, (self._num_keys + 1) * self.tokens_per_pair - 1
            if not least <= length <= most:
                raise SettingError("length", f"from {least} to {most} for {self}", length)
        elif length < 4 * self.num_pairs:
            raise SettingError("length", f"at least 4 num_pairs = {4 * self.num_pairs} for {self}", length)

    def pairs(self, length: int) -> int:
        """n, the number of pairs at this length."""
        return self.num_pairs if self.tokens_per_pair is None else length // self.tokens_per_pair

    @property
    def _first_key(self) -> int:
        return int(self.filler == "blank")

    @property
    def _num_keys(self) -> int:
        return self.vocab_size // 2 - self._first_key

    @cached_property
    def vocabulary(self) -> Vocabulary:
        half = self.vocab_size // 2
        names = [*(f"k{i}" for i in range(half)), *(f"v{i}" for i in range(half))]
        roles = ["data"] * self.vocab_size
        if self.filler == "blank":
            names[0], roles[0] = ".", "background"
        return Vocabulary(names=tuple(names), roles=tuple(roles))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        if self.tokens_per_pair is not None:
            return 3 * self.tokens_per_pair, 4 * self.tokens_per_pair + 1
        n = self.num_pairs
        return 4 * n + 8, 4 * n + 21, 4 * n + 120

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count, n = whole("count", count, 0), self.pairs(length)
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
            chunk[index, places] = np.take_along_axis(keys, pairs, axis=1)
            if self.answers == "shown":
                chunk[index, places + 1] = asked
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
        n, K = self.pairs(length), self._num_keys
        words = stream.words("keys", length, start, count, 2 * n)
        keys = np.empty((count, n), dtype=np.int64)
        # Floyd's method: a uniform set of n of K with n draws.
        for i in range(n):
            top = K - n + i
            drawn = bounded(words[:, i], top + 1)
            taken = (keys[:, :i] == drawn[:, None]).any(axis=1)
            keys[:, i] = np.where(taken, top, drawn)
        return self._first_key + np.take_along_axis(keys, words[:, n:].argsort(axis=1), axis=1)

    def _filler(self, stream: Stream, start: int, keys: Ints, length: int) -> NDArray[np.int32]:
        """(count, l - 2n) tokens, each uniform over the tokens that are not keys of the row."""
        n = self.pairs(length)
        size = length - 2 * n
        if self.filler == "blank":
            return np.zeros((len(keys), size), dtype=np.int32)
        words = stream.words("background", length, start, len(keys), (size + 1) // 2)
        drawn = bounded(np.ascontiguousarray(words, dtype="<u8").view("<u4"), self.vocab_size - n)[:, :size]
        filler: NDArray[np.int32] = drawn.astype(np.int32)
        # In ascending order of the keys: a token at or above a key moves up by one.
        for key in np.sort(keys, axis=1).astype(np.int32).T:
            filler += filler >= key[:, None]
        return filler

    def _queries(self, stream: Stream, start: int, count: int, length: int) -> tuple[Ints, Ints]:
        """(count, n) ascending positions of the repeated keys, and the pair of each, from 0."""
        n = self.pairs(length)
        places = self.gaps.draw(stream.words("positions", length, start, count, n), self._slots(length))
        gaps = self._slots(length) + 1 - places[:, ::-1]
        pairs = stream.words("order", length, start, count, n).argsort(axis=1)
        return 2 * n + 2 * (gaps - 1), pairs

    def _slots(self, length: int) -> int:
        return (length - 2 * self.pairs(length)) // 2

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        n, V = self.pairs(length), self.vocab_size
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
            shown_answers=self.answers == "shown",
        )

    def _marginals(self, queries: SpacedSet, length: int) -> Floats:
        n, half, blank = self.pairs(length), self.vocab_size // 2, self._first_key
        asked = queries.order_pmf().sum(axis=0)
        asked[: 2 * n : 2] = 1.0
        keys, values = np.zeros(self.vocab_size), np.repeat([0.0, 1 / half], half)
        keys[blank:half] = 1 / self._num_keys
        filler = np.repeat([1 - n / half, 1.0], half) / (self.vocab_size - n)
        if blank:
            filler = np.eye(1, self.vocab_size)[0]
        following = np.append(0.0, asked[:-1])
        if self.answers == "hidden":
            following[2 * n :] = 0.0
        free = 1 - asked - following
        return np.asarray(asked[:, None] * keys + following[:, None] * values + free[:, None] * filler)

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        n, index = self.pairs(tokens.shape[1]), np.arange(len(tokens))[:, None]
        keys, values = tokens[:, : 2 * n : 2], tokens[:, 1 : 2 * n : 2] - self.vocab_size // 2
        asked = tokens[:, :, None] == keys[:, None, :]
        asked[:, : 2 * n] = False
        places = asked.any(axis=2).nonzero()[1].reshape(len(tokens), n)
        ranks = tokens - (keys[:, None, :] < tokens[:, :, None]).sum(axis=2)
        ranks[:, : 2 * n] = ranks[index, places] = -1
        if self.answers == "shown":
            ranks[index, places + 1] = -1
        if self.filler == "blank":
            ranks[:] = -1
        return {
            "values": Draw(values),
            "keys": Draw(ranks_of_distinct(keys - self._first_key)),
            "order": Draw(ranks_of_distinct(asked[index, places].argmax(axis=2))),
            "background": Draw(ranks),
            "places": Draw(places, together=True),
        }

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        context = 2 * self.pairs(len(tokens))
        place = {tokens[t]: t for t in range(0, context, 2)}
        return tuple(
            Step(t, (place[token], place[token] + 1), tokens[place[token] + 1])
            for t, token in enumerate(tokens)
            if t >= context and token in place
        )

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens, n = batch.tokens.numpy(), self.pairs(batch.tokens.shape[1])
        rows, places = batch.scored.nonzero().numpy().T
        same = tokens[rows, : 2 * n : 2] == tokens[rows, places][:, None]
        if not (same.sum(axis=1) == 1).all():
            raise ValueError(f"not sequences of {self}: each query must occur among the keys exactly once")
        posterior = torch.full((len(rows), self.vocab_size), -np.inf, dtype=torch.float64)
        values = tokens[rows, 2 * same.argmax(axis=1) + 1]
        posterior[torch.arange(len(rows)), torch.from_numpy(values)] = 0.0
        return posterior
