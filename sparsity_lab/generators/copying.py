"""``Copy``, ``Reverse`` and ``OddsFirst``: the input again in another order, with coupled position IDs.

The ambiguity of a copy depends on repeated symbols. With n symbols, a symbol recurs every n tokens on average. With
``distinct`` it never recurs, so one token determines the position in the copy. With ``ngram``, n tokens do. IDs are
those of the position-coupling code (arXiv 2405.20671), with start s. Each target depends on one token.
"""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.stream import whole
from sparsity_lab.generators.task import Truth
from sparsity_lab.generators.uniform_prompt import UniformPrompt
from sparsity_lab.settings import SettingError, register


class _Repetition(UniformPrompt):
    """Base of the copying tasks: ``BOS x_1 .. x_n = r_1 .. r_R EOS`` with uniform symbols, each r a copy of one x."""

    size_field: ClassVar[str] = "alphabet_size"
    alphabet_size: int
    ngram: int = 1

    @abstractmethod
    def slots(self, length: int) -> list[int]:
        """The positions of the tokens that r_1 .. r_R copy, and of the source of EOS."""

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

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.asarray(prompts[:, np.array(self.slots(length)[:-1]) - 1])

    def slot_sources(self, length: int) -> list[list[int]]:
        return [[t] for t in self.slots(length)]

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        # If all are different, each symbol excludes itself for the others, and one copy determines the next.
        free = None if self.distinct or self.response_length(length) > length else True
        return self.truth_with(length, label_free_subsets=None, label_free_bystanders=free)

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return np.asarray(self.prompt_marginals(length)[np.array(self.slots(length)[:-1]) - 1])


@register
class Copy(_Repetition):
    """The sequence again: ``BOS x_1 .. x_n = x_1 .. x_n EOS``. The length is n.

    IDs: s + 1 .. s + n for the input, s for ``=``, s + 1 .. s + n for the response. The source of r_j is x_j. That of
    EOS is ``=``, which is at the position after x_n.

    Attributes:
        alphabet_size: number of symbols, drawn uniformly.
        distinct: no symbol occurs twice.
        ngram: with distinct symbols, the smallest n for which no n-gram occurs twice in long prompts. The same n - 1
            symbols come before every symbol that occurs once, as in ``u v a u v b u v c`` for n = 3.
        copies: how often the input is written, one copy after the other.
    """

    alphabet_size: int = 10
    distinct: bool = False
    ngram: int = 1
    copies: int = 1

    @classmethod
    def examples(cls) -> "tuple[Copy, ...]":
        return (
            cls(),
            cls(alphabet_size=30, distinct=True),
            cls(alphabet_size=12, distinct=True, ngram=3),
            cls(alphabet_size=2, copies=2),
        )

    def check(self) -> None:
        super().check()
        whole("copies", self.copies, 1)

    def response_length(self, length: int) -> int:
        return length * self.copies

    def slots(self, length: int) -> list[int]:
        return [*list(range(1, length + 1)) * self.copies, length + 1]

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = range(start + 1, start + length + 1)
        return [[0, *places, start, *list(places) * self.copies, 0]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        return [([t], tokens[t]) for t in range(1, equals)] * self.copies + [([equals], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        n = tokens.index(self.equals) - 1
        # From `=` on, the count starts again with every copy.
        return [[0, *range(2, n + 2), 1, *(2 + j % n for j in range(len(tokens) - n - 3)), 0]]


@register
class Reverse(_Repetition):
    """The sequence backwards: ``BOS x_1 .. x_n = x_n .. x_1 EOS``. The length is n.

    IDs: s .. s + n - 1 for the input, s + n for ``=``, s + n - 1 down to s for the response. The source of r_j is
    x_(n+1-j). That of EOS is BOS, which is at the position before x_1.

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

    def slots(self, length: int) -> list[int]:
        return list(range(length, -1, -1))

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = range(start, start + length)
        return [[0, *places, start + length, *reversed(places), 0]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        # BOS is EOS, so even the last step copies its source.
        return [([t], tokens[t]) for t in reversed(range(equals))]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        # A tent: up to `=` in the middle, and down again.
        return [[min(t, 2 * equals - t) for t in range(len(tokens))]]


@register
class OddsFirst(_Repetition):
    """The symbols at odd places and then those at even places: ``BOS x_1 .. x_n = x_1 x_3 .. x_2 x_4 .. EOS``; the
    length is n.

    IDs: s + 1 .. s + n for the input, s for ``=``, and for each r the ID of its source. The source of EOS is ``=``.

    >>> print(sequence_text(OddsFirst().sample(Stream(seed=0), 0, 1, 4).view(0)))
    BOS/EOS [1] [0] [0] [1] [=] <1> <0> <0> <1> <BOS/EOS>
            2   3   4   5   1   2   4   3   5

    Attributes:
        alphabet_size: number of symbols, drawn uniformly.
    """

    alphabet_size: int = 2

    def slots(self, length: int) -> list[int]:
        return [*range(1, length + 1, 2), *range(2, length + 1, 2), length + 1]

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = [start + place for place in self.slots(length)]
        return [[0, *range(start + 1, start + length + 1), start, *places[:-1], 0]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        odd, even = ([([t], tokens[t]) for t in range(1, equals) if t % 2 == rest] for rest in (1, 0))
        return [*odd, *even, ([equals], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        n = tokens.index(self.equals) - 1
        response = [2 * j + 2 if 2 * j < n else 2 * (j - (n + 1) // 2) + 3 for j in range(n)]
        return [[0, *range(2, n + 2), 1, *response, 0]]
