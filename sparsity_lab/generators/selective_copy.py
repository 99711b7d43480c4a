"""``SelectiveCopy``: repeat the few data tokens that are scattered among noise.

This is a standard probe of sequence models (Gu and Dao, arXiv 2312.00752). The token layout and the parameters are
this lab's.
"""

from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.locality import Geometric, Law, Uniform
from sparsity_lab.generators.position_laws import OneBlock
from sparsity_lab.generators.query_layout import (
    background_tokens,
    noisy_log_posterior,
    recited_batch,
    rows_of_chunks,
)
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.settings import SettingError, register


@register
class SelectiveCopy(Task):
    """The data tokens among noise, in order: ``BOS x_1 .. x_l = y_1 .. y_m``, where the y are the m data tokens among
    the x. Every y is scored.

    T = l + m + 1, because the last answer is not a token of the sequence.

    Attributes:
        num_tokens: m.
        locality: law of their places among the l.
        data_vocab: number of data tokens, 0 .. data_vocab - 1.
        noise_vocab: number of noise tokens. With one, all noise is the same blank.
    """

    num_tokens: int = 4
    locality: Law = Uniform()
    data_vocab: int = 8
    noise_vocab: int = 1

    @classmethod
    def examples(cls) -> "tuple[SelectiveCopy, ...]":
        return cls(), cls(num_tokens=3, locality=Geometric(scale=6.0), data_vocab=4, noise_vocab=5)

    def check(self) -> None:
        for name, least in (("num_tokens", 1), ("data_vocab", 2), ("noise_vocab", 1)):
            whole(name, getattr(self, name), least)
        bound = self.locality.bound()
        if bound and bound[1] < self.num_tokens:
            raise SettingError(f"locality.{bound[0]}", f"enough room for num_tokens={self.num_tokens}", bound[1])

    def check_length(self, length: int) -> None:
        if length < self.num_tokens:
            raise SettingError("length", f"at least num_tokens={self.num_tokens} for {self}", length)

    def sequence_length(self, length: int) -> int:
        return length + self.num_tokens + 1

    @property
    def _query(self) -> int:
        return self.data_vocab + self.noise_vocab

    @cached_property
    def vocabulary(self) -> Vocabulary:
        noise = (".",) if self.noise_vocab == 1 else tuple(f"n{i}" for i in range(self.noise_vocab))
        names = (*(str(value) for value in range(self.data_vocab)), *noise, "=", "BOS")
        roles = ("planted",) * self.data_vocab + ("background",) * self.noise_vocab + ("query", "special")
        return Vocabulary(names=names, roles=roles)

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return max(12, self.num_tokens + 2), max(33, self.num_tokens + 5), max(200, self.num_tokens + 50)

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count, m = whole("count", count, 0), self.num_tokens
        tokens = np.empty((count, self.sequence_length(length)), dtype=np.int64)
        values = np.empty((count, m), dtype=np.int64)
        for rows, first in rows_of_chunks(start, count, length):
            prompt = tokens[rows, : length + 2]
            if self.noise_vocab == 1:
                prompt[:] = self.data_vocab
                prompt[:, 0], prompt[:, -1] = self._query + 1, self._query
            else:
                background_tokens(
                    stream, first, prompt, self.data_vocab, self.noise_vocab, self._query + 1, self._query
                )
            values[rows] = bounded(stream.words("planted", length, first, len(prompt), m), self.data_vocab)
            np.put_along_axis(prompt, self._places(stream, first, len(prompt), length), values[rows], axis=1)
        return recited_batch(self.vocabulary, tokens, values, partial(self._places, stream, start, count, length))

    def _places(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, m) ascending positions of the data tokens."""
        return self.locality.draw(stream.words("positions", length, start, count, self.num_tokens), length)

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        m = self.num_tokens
        places = np.zeros((m, self.sequence_length(length)))
        places[:, 1 : length + 1] = self.locality.order_pmf(m, length)
        return Truth.of_uniform_labels(
            self.data_vocab,
            self.vocabulary.size,
            k=1,
            num_targets=m,
            position_law=tuple(OneBlock(row) for row in places),
            build_marginals=partial(self._marginals, places, length),
            label_free_bystanders=True,
            independent_background=True,
        )

    def _marginals(self, places: Floats, length: int) -> Floats:
        q, V = self.data_vocab, self.vocabulary.size
        marginals = np.zeros((places.shape[1], V))
        data = places.sum(axis=0)
        data[length + 2 :] = 1.0  # the answers
        marginals[:, :q] = data[:, None] / q
        marginals[1 : length + 1, q : q + self.noise_vocab] = (1 - data[1 : length + 1, None]) / self.noise_vocab
        marginals[0], marginals[length + 1] = np.eye(V)[[V - 1, V - 2]]
        return marginals

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        q, m = self.data_vocab, self.num_tokens
        places = (tokens[:, :-m] < q).nonzero()[1].reshape(len(tokens), m)
        plain = (tokens >= q) & (tokens < self._query)
        return {
            "values": Draw(np.take_along_axis(tokens, places, axis=1)),
            "background": Draw(np.where(plain, tokens - q, -1)),
            "places": Draw(places, together=True),
        }

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        query = tokens.index(self._query)
        data = [t for t in range(1, query) if tokens[t] < self.data_vocab]
        return tuple(Step(query + j, (t,), tokens[t]) for j, t in enumerate(data))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        m = self.num_tokens
        tokens = batch.tokens.numpy()
        prompt, query = tokens[:, 1:-m], tokens[:, -m]
        data = prompt < self.data_vocab
        if not (data.sum(axis=1) == m).all() or (query != self._query).any():
            raise ValueError(f"not sequences of {self}: each needs {m} data tokens and the query")
        return noisy_log_posterior(prompt[data], self.data_vocab, 0.0, self.vocabulary.size)
