"""``Passkey``: repeat the digits that are hidden in a long filler.

This follows Mohtashami and Jaggi (arXiv 2305.16300). There, the filler is English. Here it has its own alphabet.
"""

from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.locality import Uniform
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

_DIGITS = 10
_UNIFORM = Uniform()


@register
class Passkey(Task):
    """Digits hidden in filler: ``BOS x_1 .. x_l = d_1 .. d_m``. The x are filler, except for a block ``# d_1 ..
    d_m``. Every digit is scored.

    Distractors are blocks ``! e_1 .. e_m`` with independent digits. They have another mark, so that the answer stays
    determined. If a block counts as one item, the x are s items. The passkey's item is drawn uniformly, or fixed by
    ``depth``. The distractors are a uniform set of the other items. T = l + m + 1, because the last digit is not a
    token of the sequence.

    Attributes:
        num_digits: m.
        depth: place of the passkey's item, from 0 (first) to 1 (last), rounded. None draws it.
        distractors: number of distractors.
        filler_vocab: number of filler tokens.
    """

    num_digits: int = 4
    depth: float | None = None
    distractors: int = 0
    filler_vocab: int = 16

    @classmethod
    def examples(cls) -> "tuple[Passkey, ...]":
        return cls(num_digits=3), cls(num_digits=2, distractors=2), cls(depth=0.25, num_digits=2, distractors=1)

    def check(self) -> None:
        for name, least in (("num_digits", 1), ("distractors", 0), ("filler_vocab", 1)):
            whole(name, getattr(self, name), least)
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise SettingError("depth", "a number from 0 to 1, or None", self.depth)

    @property
    def shortest_length(self) -> int:
        return (1 + self.distractors) * (1 + self.num_digits)

    def sequence_length(self, length: int) -> int:
        return length + self.num_digits + 1

    def _items(self, length: int) -> int:
        return length - (1 + self.distractors) * self.num_digits

    @property
    def _mark(self) -> int:
        """The token ``#``. The tokens after it are the distractors' ``!``, ``=`` and BOS."""
        return _DIGITS + self.filler_vocab

    @cached_property
    def vocabulary(self) -> Vocabulary:
        digits, filler = (str(d) for d in range(_DIGITS)), (f"w{i}" for i in range(self.filler_vocab))
        return Vocabulary(
            names=(*digits, *filler, "#", "!", "=", "BOS"),
            roles=("data",) * _DIGITS + ("background",) * self.filler_vocab + ("cue", "cue", "query", "special"),
        )

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        least = self.shortest_length
        return least + 6, least + 24, least + 200

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count, m = whole("count", count, 0), self.num_digits
        tokens = np.empty((count, self.sequence_length(length)), dtype=np.int64)
        digits = np.empty((count, m), dtype=np.int64)
        for rows, first in rows_of_chunks(start, count, length):
            prompt, n = tokens[rows, : length + 2], rows.stop - rows.start
            background_tokens(stream, first, prompt, _DIGITS, self.filler_vocab, self._mark + 3, self._mark + 2)
            words = stream.words("planted", length, first, n, m * (1 + self.distractors))
            blocks = bounded(words, _DIGITS).reshape(n, 1 + self.distractors, m)
            digits[rows] = blocks[:, 0]
            index = np.arange(n)[:, None]
            for b, place in enumerate(self._places(stream, first, n, length).T):
                prompt[index[:, 0], place] = self._mark + (b > 0)
                prompt[index, place[:, None] + np.arange(1, m + 1)] = blocks[:, b]
        return recited_batch(
            self.vocabulary, tokens, digits, partial(self._digit_places, stream, start, count, length)
        )

    def _digit_places(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, m) positions of the passkey's digits."""
        return self._places(stream, start, count, length)[:, :1] + np.arange(1, self.num_digits + 1)

    def _places(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, 1 + distractors) positions of the marks, the passkey's first."""
        s, decoys = self._items(length), self.distractors
        items = np.empty((count, 1 + decoys), dtype=np.int64)
        if self.depth is None:
            items[:, 0] = bounded(stream.words("depth", length, start, count, 1)[:, 0], s)
        else:
            items[:, 0] = round(self.depth * (s - 1))
        if decoys:
            others = _UNIFORM.draw(stream.words("positions", length, start, count, decoys), s - 1) - 1
            items[:, 1:] = others + (others >= items[:, :1])
        earlier = (items[:, None, :] < items[:, :, None]).sum(axis=2)
        return np.asarray(1 + items + self.num_digits * earlier)

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        m, V = self.num_digits, self.vocabulary.size
        marks = self._mark_pmf(length)
        return Truth(
            k=1,
            num_targets=m,
            chance_accuracy=1 / _DIGITS,
            chance_loss=float(np.log(_DIGITS)),
            bayes_accuracy=1.0,
            bayes_loss=0.0,
            position_law=tuple(OneBlock(_shifted(marks[0], j)) for j in range(1, m + 1)),
            labels=tuple(range(_DIGITS)),
            label_distribution=np.append(np.full(_DIGITS, 1 / _DIGITS), np.zeros(V - _DIGITS)),
            build_marginals=partial(self._marginals, marks, length),
            label_free_bystanders=True,
            independent_background=True,
        )

    def _mark_pmf(self, length: int) -> Floats:
        """(2, T): probability that the passkey's mark, or a distractor's mark, is at position t."""
        from scipy.stats import hypergeom  # noqa: PLC0415

        s, m, decoys = self._items(length), self.num_digits, self.distractors
        own = np.full(s, 1 / s) if self.depth is None else np.eye(s)[round(self.depth * (s - 1))]
        pmf = np.zeros((2, self.sequence_length(length)))
        item = np.arange(s)
        for earlier in range(decoys + 1):
            # The number of distractors among the items before the passkey's.
            pmf[0, 1 + item + m * earlier] += own * hypergeom.pmf(earlier, s - 1, item, decoys)
        for key in np.flatnonzero(own) if decoys else ():
            other = np.delete(item, key)
            after = other > key
            for earlier in range(decoys):  # other distractors before this one
                before = hypergeom.pmf(earlier, s - 2, other - after, decoys - 1) if s > 2 else 1.0
                np.add.at(pmf[1], 1 + other + m * (earlier + after), own[key] * decoys / (s - 1) * before)
        return pmf

    def _marginals(self, marks: Floats, length: int) -> Floats:
        V, m = self.vocabulary.size, self.num_digits
        digits = np.sum([_shifted(marks.sum(axis=0), j) for j in range(1, m + 1)], axis=0)
        marginals = np.zeros((marks.shape[1], V))
        marginals[:, self._mark], marginals[:, self._mark + 1] = marks
        marginals[:, :_DIGITS] = (digits / _DIGITS)[:, None]
        marginals[:, _DIGITS : self._mark] = ((1 - digits - marks.sum(axis=0)) / self.filler_vocab)[:, None]
        marginals[0], marginals[length + 1] = np.eye(V)[[V - 1, V - 2]]
        marginals[length + 2 :] = np.append(np.full(_DIGITS, 1 / _DIGITS), np.zeros(V - _DIGITS))
        return marginals

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        of_key, of_decoys = ((tokens == self._mark + b).nonzero()[1].reshape(len(tokens), -1) for b in (0, 1))
        index, digits = np.arange(len(tokens))[:, None], np.arange(1, self.num_digits + 1)
        decoys = tokens[index, (of_decoys[:, :, None] + digits).reshape(len(tokens), -1)]
        plain = (tokens >= _DIGITS) & (tokens < self._mark)
        return {
            "values": Draw(tokens[index, of_key + digits]),
            "distractors": Draw(decoys),
            "background": Draw(np.where(plain, tokens - _DIGITS, -1)),
            "places": Draw(np.concatenate([of_key, of_decoys], axis=1), together=True),
        }

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        mark, query = tokens.index(self._mark), tokens.index(self._mark + 2)
        if tokens.count(self._mark) != 1:
            raise ValueError("more than one passkey")
        return tuple(Step(query + j, (mark + 1 + j,), tokens[mark + 1 + j]) for j in range(self.num_digits))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens, m = batch.tokens.numpy(), self.num_digits
        marked = tokens == self._mark
        if not (marked.sum(axis=1) == 1).all() or marked[:, -m:].any() or (tokens[:, -m] != self._mark + 2).any():
            raise ValueError(f"not sequences of {self}: each needs one # and the query")
        place = marked.argmax(axis=1)[:, None] + np.arange(1, m + 1)
        digits = np.take_along_axis(tokens, place, axis=1).reshape(-1)
        return noisy_log_posterior(digits, _DIGITS, 0.0, self.vocabulary.size)


def _shifted(pmf: Floats, by: int) -> Floats:
    return np.append(np.zeros(by), pmf[:-by])
