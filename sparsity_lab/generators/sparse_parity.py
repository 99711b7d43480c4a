"""``SparseParity``: parity of the planted bits. The number of planted bits varies between sequences.

This is the task family D^sp(l, k) of Golowich et al. (arXiv 2502.16792). The token layout is this lab's. Training on
small k as well is also a curriculum: with many bits only, training may never leave chance.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.locality import Uniform
from sparsity_lab.generators.query_layout import (
    EXTRA_POSITIONS,
    background_tokens,
    noisy_log_posterior,
    query_batch,
    rows_of_chunks,
)
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, whole
from sparsity_lab.generators.task import Step, Task, Truth
from sparsity_lab.settings import SettingError, register

_BITS, _QUERY, _BOS, _VOCAB = 2, 4, 5, 7
_UNIFORM = Uniform()


@register
class SparseParity(Task):
    """The parity of planted bits, for several k: last-token prediction on ``BOS x_1 .. x_l =``.

    Tokens 0 and 1 are planted bits, and 2 and 3 are distractor bits, so a model can distinguish them without
    positions. Each sequence has its own number of planted bits, uniform on ``min_k .. max_k``, at a uniform set of
    places. To evaluate at one k, set both to it.

    Attributes:
        min_k, max_k: the smallest and the largest number of planted bits.
    """

    extra_positions: ClassVar[int] = EXTRA_POSITIONS

    min_k: int = 1
    max_k: int = 4

    @classmethod
    def examples(cls) -> "tuple[SparseParity, ...]":
        return cls(), cls(min_k=3, max_k=3), cls(min_k=1, max_k=8)

    def check(self) -> None:
        whole("min_k", self.min_k, 1)
        if self.max_k < self.min_k:
            raise SettingError("max_k", f"a whole number of at least min_k={self.min_k}", self.max_k)

    def check_length(self, length: int) -> None:
        if length < self.max_k:
            raise SettingError("length", f"at least max_k={self.max_k} for {self}", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(
            names=("0", "1", "o", "i", "=", "BOS", "PAD"),
            roles=("planted", "planted", "background", "background", "query", "special", "unused"),
        )

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return max(12, self.max_k), max(33, self.max_k + 5), max(240, self.max_k + 50)

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count = whole("count", count, 0)
        tokens = np.empty((count, length + EXTRA_POSITIONS), dtype=np.int64)
        labels = np.empty(count, dtype=np.int64)
        for rows, first in rows_of_chunks(start, count, length):
            chunk = tokens[rows]
            background_tokens(stream, first, chunk, _BITS, _BITS, _BOS, _QUERY)
            places = self._places(stream, first, len(chunk), length)
            bits = bounded(stream.words("planted", length, first, len(chunk), self.max_k), 2)
            planted = places > 0
            row_index = np.broadcast_to(np.arange(len(chunk))[:, None], places.shape)
            chunk[row_index[planted], places[planted]] = bits[planted]
            labels[rows] = (bits * planted).sum(axis=1) % 2
        return query_batch(self.vocabulary, tokens, labels, partial(self._places, stream, start, count, length))

    def _places(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, max_k) ascending positions of the planted bits, padded with -1."""
        span = self.max_k - self.min_k + 1
        ks = self.min_k + bounded(stream.words("sparsity", length, start, count, 1)[:, 0], span)
        words = stream.words("positions", length, start, count, self.max_k)
        places = np.full((count, self.max_k), -1, dtype=np.int64)
        for k in range(self.min_k, self.max_k + 1):
            rows = np.flatnonzero(ks == k)
            places[rows, :k] = _UNIFORM.draw(words[rows, :k], length)
        return places

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        return Truth.of_uniform_labels(
            _BITS,
            _VOCAB,
            k=self.max_k,
            position_law=MixedUniformPositions(min_k=self.min_k, max_k=self.max_k, length=length),
            build_joint=partial(self._token_label_joint, length),
            value_distribution=np.array([0.5, 0.5, 0, 0, 0, 0, 0]),
            label_free_subsets=True,
            independent_values=True,
        )

    def _token_label_joint(self, length: int) -> Floats:
        joint = np.zeros((length + EXTRA_POSITIONS, _VOCAB, 2))
        ks = np.arange(self.min_k, self.max_k + 1)
        planted = ks / length  # a place is one of k in l
        # A planted bit determines the label only if it is the only one.
        alone = np.mean(np.where(ks == 1, planted, 0.0))
        shared = planted.mean() - alone
        joint[1:-1, :2] = shared / 4 + alone / 2 * np.eye(2)
        joint[1:-1, 2:4] = (1 - planted.mean()) / 4
        joint[0, _BOS] = joint[-1, _QUERY] = 0.5
        return joint

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        planted = tuple(t for t, token in enumerate(tokens) if token in (0, 1))
        return (Step(len(tokens) - 1, planted, [tokens[t] for t in planted].count(1) & 1),)

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        planted = (batch.tokens < _BITS).sum(dim=1)
        if not ((planted >= self.min_k) & (planted <= self.max_k)).all():
            raise ValueError(f"not sequences of {self}: wrong number of planted bits")
        labels = (batch.tokens == 1).sum(dim=1).numpy() % 2
        return noisy_log_posterior(labels, 2, 0.0, _VOCAB)

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " B"]:
        length = batch.tokens.shape[1] - EXTRA_POSITIONS
        k = (batch.tokens < _BITS).sum(dim=1).numpy()
        span, ks = self.max_k - self.min_k + 1, np.arange(self.min_k, self.max_k + 1)
        log_sets = np.log([float(_UNIFORM.support_size(int(one), length)) for one in ks])
        likelihood = -np.log(span) - log_sets[(k - self.min_k).clip(0, span - 1)] - length * np.log(_BITS)
        bits = (batch.tokens[:, 1:-1] < 2 * _BITS).all(dim=1)
        framed = (bits & (batch.tokens[:, 0] == _BOS) & (batch.tokens[:, -1] == _QUERY)).numpy()
        return torch.from_numpy(np.where(framed & (k >= self.min_k) & (k <= self.max_k), likelihood, -np.inf))


@dataclass(frozen=True, kw_only=True)
class MixedUniformPositions:
    """Law of a uniform set whose size is uniform on min_k .. max_k (see ``PositionLaw``)."""

    min_k: int
    max_k: int
    length: int

    def order_pmf(self) -> Floats:
        ks = range(self.min_k, self.max_k + 1)
        pmf = np.zeros((self.max_k, self.length + EXTRA_POSITIONS))
        for k in ks:
            pmf[:k, 1:-1] += _UNIFORM.order_pmf(k, self.length) / len(ks)
        return pmf

    def pmf(self, sources: Ints) -> Floats:
        sizes = (sources >= 0).sum(axis=1)
        probability = np.zeros(self.max_k + 1)
        for k in range(self.min_k, self.max_k + 1):
            probability[k] = 1 / (self.max_k - self.min_k + 1) / _UNIFORM.support_size(k, self.length)
        return np.asarray(probability[sizes])

    def support_size(self) -> int:
        return sum(_UNIFORM.support_size(k, self.length) for k in range(self.min_k, self.max_k + 1))
