"""``Copy`` and ``Reverse``: the input again, forwards or backwards, with coupled position IDs.

The ambiguity of a copy depends on repeated symbols. With n symbols, a symbol recurs every n tokens on average. With
``distinct`` it never recurs, so one token tells the position in the copy. With ``ngram`` it takes that many tokens.
IDs as in the position-coupling code (arXiv 2405.20671), with start s. Each target depends on one token.
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.stream import whole
from sparsity_lab.generators.task import Truth
from sparsity_lab.generators.uniform_prompt import UniformPrompt
from sparsity_lab.settings import SettingError, register

__all__ = ["Copy", "Reverse"]


class _Repetition(UniformPrompt):
    """What the two have in common: ``BOS x_1 .. x_n = r_1 .. r_n EOS`` with uniform symbols."""

    size_field: ClassVar[str] = "alphabet_size"
    alphabet_size: int
    ngram: int

    def check(self) -> None:
        super().check()
        if whole("ngram", self.ngram, 1) > 1 and not self.distinct:
            raise SettingError("ngram", "1 where symbols are not distinct", self.ngram)
        if self.ngram > self.alphabet_size:
            raise SettingError("ngram", f"at most alphabet_size = {self.alphabet_size}", self.ngram)

    def check_length(self, length: int) -> None:
        if self.ngram > 1 and length > self._longest:
            raise SettingError("length", f"at most {self._longest} for {self}", length)
        super().check_length(length)

    @property
    def _longest(self) -> int:
        """Of prompts with as many different symbols as there are."""
        return (self.alphabet_size - self.ngram + 2) * self.ngram - 1

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return (min(5, self._longest), min(24, self._longest)) if self.ngram > 1 else super().certified_lengths

    def pattern(self, length: int) -> Int64[np.ndarray, " P"]:
        # One new symbol after ngram - 1 that recur.
        block, place = np.divmod(np.arange(length), self.ngram)
        return np.where(place < self.ngram - 1, place, self.ngram - 1 + block)

    def response_length(self, length: int) -> int:
        return length

    def truth(self, length: int) -> Truth:
        # Where all are different, each tells what the others are not.
        free = None if self.distinct else True
        return self.truth_with(length, label_free_subsets=None, label_free_bystanders=free)

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return self.prompt_marginals(length)


@register
class Copy(_Repetition):
    """The sequence once more: ``BOS x_1 .. x_n = x_1 .. x_n EOS``; the length is n.

    IDs: s + 1 .. s + n for the input, s for ``=``, s + 1 .. s + n for the response. The source of r_j is x_j; that of
    EOS is ``=``, which stands where x_(n+1) would.

    Attributes:
        alphabet_size: number of symbols, drawn uniformly.
        distinct: no symbol comes twice.
        ngram: with distinct symbols, the least n for which no n-gram comes twice in long prompts. The same n - 1
            symbols stand before every symbol that comes once, as in ``u v a u v b u v c`` for n = 3.
    """

    alphabet_size: int = 10
    distinct: bool = False
    ngram: int = 1

    @classmethod
    def examples(cls) -> "tuple[Copy, ...]":
        return cls(), cls(alphabet_size=30, distinct=True), cls(alphabet_size=12, distinct=True, ngram=3)

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return prompts

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = range(start + 1, start + length + 1)
        return [[0, *places, start, *places, 0]]

    def slot_sources(self, length: int) -> list[list[int]]:
        return [[t] for t in range(1, length + 2)]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        return [([t], tokens[t]) for t in range(1, equals)] + [([equals], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        ids, next_id = [], 0
        for token in tokens:
            next_id = 1 if token == self.equals else next_id + 1
            ids.append(0 if token == self.end else next_id)
        return [ids]


@register
class Reverse(_Repetition):
    """The sequence backwards: ``BOS x_1 .. x_n = x_n .. x_1 EOS``; the length is n.

    IDs: s .. s + n - 1 for the input, s + n for ``=``, s + n - 1 down to s for the response. The source of r_j is
    x_(n+1-j); that of EOS is BOS, which stands where x_0 would.

    Attributes:
        alphabet_size: number of symbols, drawn uniformly.
        distinct: no symbol comes twice.
        ngram: with distinct symbols, the least n for which no n-gram comes twice in long prompts. The same n - 1
            symbols stand before every symbol that comes once, as in ``u v a u v b u v c`` for n = 3.
    """

    alphabet_size: int = 10
    distinct: bool = False
    ngram: int = 1

    @classmethod
    def examples(cls) -> "tuple[Reverse, ...]":
        return (cls(alphabet_size=4),)

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return prompts[:, ::-1]

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = range(start, start + length)
        return [[0, *places, start + length, *reversed(places), 0]]

    def slot_sources(self, length: int) -> list[list[int]]:
        return [[t] for t in range(length, -1, -1)]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        # BOS is EOS, so even the last step copies its source.
        return [([t], tokens[t]) for t in reversed(range(equals))]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        # A tent: up to `=` in the middle, and down again.
        return [[min(t, 2 * equals - t) for t in range(len(tokens))]]
