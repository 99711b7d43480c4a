"""``Needles``: several keys with several values, hidden in a long filler. The query asks for one key.

This follows the needle tasks with many keys and many values of RULER (arXiv 2404.06654). There, keys are words or
numbers and the filler is text. Here each has its own alphabet.
"""

from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.locality import Uniform
from sparsity_lab.generators.position_laws import ListedSets
from sparsity_lab.generators.query_layout import (
    background_tokens,
    noisy_log_posterior,
    recited_batch,
    rows_of_chunks,
)
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, permutations, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth, ranks_of_distinct
from sparsity_lab.settings import SettingError, register

_UNIFORM = Uniform()
_MOST_KEYS = 4096


@register
class Needles(Task):
    """All values of one key, hidden in filler: ``BOS x_1 .. x_l k = v_1 .. v_m``. The v are the values that follow
    the key k in x, in order. All are scored.

    The x are filler, except for n m needles. A needle is a key and a value, and each of the n keys has m needles. If
    a needle counts as one item, the x are s items, of which the needles are a uniform set. The keys are assigned to
    them uniformly. Keys are distinct and uniform. Values are independent and uniform. T = l + m + 2, because the last
    value is not a token of the sequence.

    The sources of v_j are the queried key, and the j-th needle with that key.

    Attributes:
        num_keys: n. All keys except the queried one are distractors.
        values_per_key: m.
        key_vocab, value_vocab: numbers of tokens for keys and for values.
        filler_vocab: number of filler tokens.
    """

    num_keys: int = 4
    values_per_key: int = 1
    key_vocab: int = 16
    value_vocab: int = 16
    filler_vocab: int = 16

    @classmethod
    def examples(cls) -> "tuple[Needles, ...]":
        return (cls(num_keys=3, values_per_key=2, key_vocab=8, value_vocab=8, filler_vocab=8),)

    def check(self) -> None:
        for name, least in (("num_keys", 1), ("values_per_key", 1), ("value_vocab", 2), ("filler_vocab", 1)):
            whole(name, getattr(self, name), least)
        if whole("key_vocab", self.key_vocab, 1) > _MOST_KEYS:
            raise SettingError("key_vocab", f"at most {_MOST_KEYS}", self.key_vocab)
        if self.num_keys > self.key_vocab:
            raise SettingError("num_keys", f"at most key_vocab = {self.key_vocab}", self.num_keys)

    @property
    def shortest_length(self) -> int:
        return 2 * self._needles

    def sequence_length(self, length: int) -> int:
        return length + self.values_per_key + 2

    @property
    def _needles(self) -> int:
        return self.num_keys * self.values_per_key

    @cached_property
    def vocabulary(self) -> Vocabulary:
        sizes = {"v": self.value_vocab, "k": self.key_vocab, "w": self.filler_vocab}
        names = tuple(f"{letter}{i}" for letter, size in sizes.items() for i in range(size))
        roles = ("data",) * (self.value_vocab + self.key_vocab) + ("background",) * self.filler_vocab
        return Vocabulary(names=(*names, "=", "BOS"), roles=(*roles, "query", "special"))

    @property
    def _filler(self) -> int:
        """The first filler token; values come first, then keys."""
        return self.value_vocab + self.key_vocab

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return self.shortest_length + 6, self.shortest_length + 40

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, count, m = self.checked_length(length), whole("count", count, 0), self.values_per_key
        tokens = np.empty((count, self.sequence_length(length)), dtype=np.int64)
        answers = np.empty((count, m), dtype=np.int64)
        equals = self._filler + self.filler_vocab
        for rows, first in rows_of_chunks(start, count, length):
            prompt, size = tokens[rows, : length + 3], rows.stop - rows.start
            background_tokens(stream, first, prompt[:, :-1], self._filler, self.filler_vocab, equals + 1, equals)
            index = np.arange(size)[:, None]
            keys = permutations(stream.words("keys", length, first, size, self.key_vocab))[:, : self.num_keys]
            values = bounded(stream.words("planted", length, first, size, self._needles), self.value_vocab)
            places, owner = self._places(stream, first, size, length), self._owners(stream, first, size, length)
            prompt[index, places] = self.value_vocab + keys[index, owner]
            prompt[index, places + 1] = values
            # The first key is the queried one, because the keys are in uniform order.
            prompt[:, -2], prompt[:, -1] = self.value_vocab + keys[:, 0], equals
            answers[rows] = values[owner == 0].reshape(size, m)
        return recited_batch(self.vocabulary, tokens, answers, partial(self._sources, stream, start, count, length))

    def _sources(self, stream: Stream, start: int, count: int, length: int) -> Int64[np.ndarray, "B m K"]:
        places, owner = self._places(stream, start, count, length), self._owners(stream, start, count, length)
        own = places[owner == 0].reshape(count, self.values_per_key)
        return np.stack([own, own + 1, np.full_like(own, length + 1)], axis=2)

    def _places(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, n m) ascending positions of the needles' keys."""
        words = stream.words("positions", length, start, count, self._needles)
        return _UNIFORM.draw(words, length - self._needles) + np.arange(self._needles)

    def _owners(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, n m) index of each needle's key, from 0; the queried key is 0."""
        return permutations(stream.words("owners", length, start, count, self._needles)) % self.num_keys

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        m, T = self.values_per_key, self.sequence_length(length)
        # The j-th needle of the queried key is the r-th of all, at the place of the r-th item of a set.
        of_all = _UNIFORM.order_pmf(m, self._needles)
        items = _UNIFORM.order_pmf(self._needles, length - self._needles)
        first = np.zeros((self._needles, T))
        for r, row in enumerate(items):
            first[r, 1 + r : 1 + r + len(row)] = row
        return Truth.of_uniform_labels(
            self.value_vocab,
            self.vocabulary.size,
            k=3,
            num_targets=m,
            position_law=tuple(self._law(row @ first, length) for row in of_all),
            build_marginals=partial(self._marginals, first.sum(axis=0), length),
            label_free_bystanders=True,
            independent_background=True,
        )

    def _law(self, first: Floats, length: int) -> ListedSets:
        places = np.flatnonzero(first)
        sets = np.stack([places, places + 1, np.full_like(places, length + 1)], axis=1)
        return ListedSets(sets, self.sequence_length(length), first[places])

    def _marginals(self, first: Floats, length: int) -> Float[np.ndarray, "T V"]:
        """Token marginals from the probability that a needle begins at each position."""
        V, values, keys = self.vocabulary.size, slice(self.value_vocab), slice(self.value_vocab, self._filler)
        marginals, second = np.zeros((len(first), V)), np.append(0.0, first[:-1])
        marginals[:, values] = second[:, None] / self.value_vocab
        marginals[:, keys] = first[:, None] / self.key_vocab
        marginals[:, self._filler : V - 2] = (1 - first - second)[:, None] / self.filler_vocab
        marginals[length + 1 :] = 0
        marginals[length + 1, keys] = 1 / self.key_vocab
        marginals[length + 3 :, values] = 1 / self.value_vocab
        marginals[0], marginals[length + 2] = np.eye(V)[[V - 1, V - 2]]
        return marginals

    def _read(self, tokens: Ints) -> tuple[Ints, Ints, Ints]:
        """(B, n m) places and keys of all needles, and (B, n) the keys in order of appearance."""
        prompt = tokens[:, : tokens.shape[1] - self.values_per_key - 1]
        is_key = (prompt >= self.value_vocab) & (prompt < self._filler)
        if not (is_key.sum(axis=1) == self._needles).all():
            raise ValueError(f"expected sequences of {self}, with {self._needles} needles each, got other tokens")
        places = is_key.nonzero()[1].reshape(len(tokens), self._needles)
        keys = np.take_along_axis(tokens, places, axis=1) - self.value_vocab
        earlier = np.tri(self._needles, k=-1, dtype=bool)
        new = ~((keys[:, :, None] == keys[:, None, :]) & earlier).any(axis=2)
        if not (new.sum(axis=1) == self.num_keys).all():
            raise ValueError(f"expected sequences of {self}, with {self.num_keys} keys each, got other tokens")
        return places, keys, keys[new].reshape(len(tokens), self.num_keys)

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        places, keys, in_order = self._read(tokens)
        asked = tokens[:, -self.values_per_key - 1, None] - self.value_vocab
        values = np.take_along_axis(tokens, places + 1, axis=1)
        own = values[keys == asked].reshape(len(tokens), self.values_per_key)
        plain = (tokens >= self._filler) & (tokens < self._filler + self.filler_vocab)
        return {
            "values": Draw(own),
            "distractors": Draw(values[keys != asked].reshape(len(tokens), self._needles - self.values_per_key)),
            "keys": Draw(ranks_of_distinct(in_order)),
            "asked": Draw((in_order == asked).argmax(axis=1)[:, None]),
            "background": Draw(np.where(plain, tokens - self._filler, -1)),
            "places": Draw(places, together=True),
        }

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        query = tokens.index(self._filler + self.filler_vocab)
        found = [t for t in range(1, query - 1) if tokens[t] == tokens[query - 1]]
        if len(found) != self.values_per_key:
            raise ValueError(f"expected {self.values_per_key} needles of the key asked for, got {len(found)}")
        return tuple(Step(query + j, (t, t + 1, query - 1), tokens[t + 1]) for j, t in enumerate(found))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens, m = batch.tokens.numpy(), self.values_per_key
        query, asked = tokens[:, -m], tokens[:, -m - 1]
        found = tokens[:, : -m - 1] == asked[:, None]
        values = tokens[:, 1:-m][found]
        equals = self._filler + self.filler_vocab
        if (
            (query != equals).any()
            or not ((tokens == equals).sum(axis=1) == 1).all()
            or not (found.sum(axis=1) == m).all()
            or (values >= self.value_vocab).any()
        ):
            raise ValueError(f"expected sequences of {self}, with {m} needles of the key asked for, got other tokens")
        return noisy_log_posterior(values, self.value_vocab, 0.0, self.vocabulary.size)
