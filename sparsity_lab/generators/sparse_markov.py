"""``SparseMarkov``: dense next-token prediction where every token is a noisy sum of k earlier ones.

The definition is this lab's. Let L be the largest lag. The first L tokens are independent and uniform, and then

    x_i = x_{i - lag_1} + .. + x_{i - lag_k} + e_i  (mod V),

where e_i is 0 with probability 1 - noise, and otherwise uniform on 1 .. V - 1. The map from (e_i, the last L tokens)
to the next L tokens is a bijection, because x_{i - L} has coefficient one. So any L consecutive tokens are uniform on
V^L, and no context shorter than L helps. The optimal loss is exactly log V for the first L tokens. For all others it
is the entropy of the noise,

    h = -(1 - noise) log(1 - noise) - noise log(noise / (V - 1)),

which is the floor of the loss by position, and the entropy rate.
"""

from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.locality import Geometric, Law, Recent, Uniform
from sparsity_lab.generators.query_layout import noisy_log_posterior, rows_of_chunks
from sparsity_lab.generators.stream import Stream, bounded, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.settings import SettingError, register

Words = NDArray[np.uint32]


@register
class SparseMarkov(Task):
    """Sequences in which each token depends on a few earlier ones: ``x_0 .. x_{l-1}``, with every next token scored,
    including x_l. T = l.

    Attributes:
        k: number of lags.
        locality: law of the set of lags, as a law of distances.
        max_lag: lags are drawn from 1 .. max_lag.
        vocab_size: V.
        noise: probability that a token is not the sum.
        lag_seed: seed of the lags. They are drawn once and do not depend on the stream.
    """

    k: int = 2
    locality: Law = Geometric(scale=4.0)
    max_lag: int = 16
    vocab_size: int = 8
    noise: float = 0.1
    lag_seed: int = 0

    @classmethod
    def examples(cls) -> "tuple[SparseMarkov, ...]":
        return (
            cls(),
            cls(k=1, noise=0.0, vocab_size=4, locality=Uniform()),
            cls(k=3, vocab_size=5, noise=0.3, locality=Recent(width=5), lag_seed=1),
        )

    def check(self) -> None:
        for name, least in (("k", 1), ("max_lag", 1), ("vocab_size", 2)):
            whole(name, getattr(self, name), least)
        if self.k > self.max_lag:
            raise SettingError("k", f"at most max_lag={self.max_lag}", self.k)
        if self.locality.anchor != "query":
            raise SettingError("locality", "a law over distances, such as PowerLaw", self.locality.kind)
        bound = self.locality.bound()
        if bound and bound[1] < self.k:
            raise SettingError(f"locality.{bound[0]}", f"enough room for k={self.k}", bound[1])
        if not 0 <= self.noise <= 1 - 1 / self.vocab_size:
            raise SettingError("noise", f"a number from 0 to 1 - 1/{self.vocab_size}", self.noise)

    def check_length(self, length: int) -> None:
        if length < self.lags[-1]:
            raise SettingError("length", f"at least the largest lag, {self.lags[-1]}, for {self}", length)

    @cached_property
    def lags(self) -> tuple[int, ...]:
        """The k lags, ascending."""
        words = Stream(seed=self.lag_seed, name="lags").words("positions", self.max_lag, 0, 1, self.k)
        places = self.locality.draw(words, self.max_lag)[0]
        return tuple((self.max_lag + 1 - places[::-1]).tolist())

    @property
    def entropy_rate(self) -> float:
        """h, in nats per token."""
        from scipy.special import xlogy  # noqa: PLC0415

        others = self.vocab_size - 1
        return float(0.0 - xlogy(1 - self.noise, 1 - self.noise) - xlogy(self.noise, self.noise / others))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(names=tuple(map(str, range(self.vocab_size))), roles=("data",) * self.vocab_size)

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        longest = self.lags[-1]
        return longest + 4, 2 * longest + 12, 2 * longest + 50

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count = whole("count", count, 0)
        x = np.empty((count, length + 1), dtype=np.int64)
        for rows, first in rows_of_chunks(start, count, length):
            x[rows] = self._sequences(stream, first, rows.stop - rows.start, length)
        whole_sequence = torch.from_numpy(x)
        tokens, targets = whole_sequence[:, :-1].contiguous(), whole_sequence[:, 1:].contiguous()
        return Batch(tokens, targets, None, partial(self._sources, count, length), vocabulary=self.vocabulary)

    def _sources(self, count: int, length: int) -> Tensor:
        one = np.full((length, self.k), -1, dtype=np.int64)
        target = np.arange(self.lags[-1], length + 1)
        one[target - 1] = target[:, None] - np.array(self.lags[::-1])
        return torch.from_numpy(one).expand(count, -1, -1)

    def _sequences(self, stream: Stream, start: int, count: int, length: int) -> Words:
        """(count, l + 1): x_0 .. x_l."""
        V, longest, shortest = self.vocab_size, self.lags[-1], self.lags[0]
        words = stream.words("background", length, start, count, (length + 2) // 2)
        halves = np.ascontiguousarray(words, dtype="<u8").view("<u4")[:, : length + 1]
        x = np.empty((length + 1, count), dtype=np.uint32)  # time first, so that a step is one block
        x[:longest] = bounded(np.ascontiguousarray(halves[:, :longest].T), V)
        noise = x[longest:]
        noise[:] = 0
        later = np.ascontiguousarray(halves[:, longest:].T)
        # One word decides whether there is noise. Its value below the threshold decides which.
        threshold = round(self.noise * 2**32)
        noisy = np.nonzero(later < threshold)
        noise[noisy] = 1 + later[noisy].astype(np.uint64) * np.uint64(V - 1) // np.uint64(max(1, threshold))
        # Compute as many steps at once as the shortest lag allows.
        for i in range(longest, length + 1, shortest):
            end = min(i + shortest, length + 1)
            block = x[i:end]
            for lag in self.lags:
                block += x[i - lag : end - lag]
            block %= V
        return x.T

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        V, unruled = self.vocab_size, self.lags[-1] - 1  # targets x_1 .. x_{L-1} are free
        loss = np.where(np.arange(length) < unruled, np.log(V), self.entropy_rate)
        accuracy = np.where(np.arange(length) < unruled, 1 / V, 1 - self.noise)
        return Truth.of_uniform_labels(
            V,
            V,
            k=self.k,
            num_targets=length,
            bayes_accuracy=float(accuracy.mean()),
            bayes_loss=float(loss.mean()),
            bayes_loss_by_slot=loss,
            label_noise=self.noise,
            build_marginals=partial(np.full, (length, V), 1 / V),
            label_free_subsets=self.k > 1,
        )

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        drawn, longest = tokens.copy(), self.lags[-1]
        for lag in self.lags:
            drawn[:, longest:] -= tokens[:, longest - lag : tokens.shape[1] - lag]
        drawn %= self.vocab_size
        noise = np.where(np.arange(drawn.shape[1]) < longest, -1, drawn)
        return {"values": Draw(drawn[:, :longest]), "noise": Draw(noise)}

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        # The first targets lack some of their lags. The others have one column for each lag.
        longest = self.lags[-1]
        free = min(longest - 1, len(tokens))
        read = [slice(longest - lag, len(tokens) + 1 - lag) for lag in self.lags[::-1]]
        sources = zip(*(range(len(tokens))[each] for each in read), strict=True)
        answers = (sum(values) % self.vocab_size for values in zip(*(tokens[each] for each in read), strict=True))
        return (*map(Step, range(free)), *map(Step, range(free, len(tokens)), sources, answers))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens, V, longest = batch.tokens.numpy(), self.vocab_size, self.lags[-1]
        count, T = tokens.shape
        if tokens.max(initial=0) >= V:
            raise ValueError(f"these tokens are not sequences of {self}")
        target = np.arange(longest, T + 1)
        sums = sum(tokens[:, target - lag] for lag in self.lags) % V
        posterior = torch.full((count, T, V), -np.log(V), dtype=torch.float64)
        ruled = noisy_log_posterior(np.asarray(sums).reshape(-1), V, self.noise, V)
        posterior[:, longest - 1 :] = ruled.reshape(count, -1, V)
        return posterior[batch.scored]
