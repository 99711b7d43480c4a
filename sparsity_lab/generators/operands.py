"""What the arithmetic tasks share: operands in the prompt, and carries.

Numbers stand in the prompt with the most significant digit first, padded with zeros, and in the response reversed.
*Place* j of a number is its digit of base^j.
"""

from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.response_layout import END, FixedFormat
from sparsity_lab.generators.stream import Stream, bounded
from sparsity_lab.generators.task import Draw
from sparsity_lab.generators.uniform_prompt import drawn_tokens
from sparsity_lab.settings import SettingError

__all__ = ["ArithmeticTask", "OperandDigits", "carried", "from_digits", "to_digits"]

Ints = NDArray[np.int64]

OperandDigits = Literal["fixed", "uniform"]


class ArithmeticTask(FixedFormat):
    """Base of the tasks whose prompt is numbers with an operator between them. Token d < base is the digit d.

    With ``operand_digits="fixed"`` all digits of an operand are uniform. With ``"uniform"`` each operand has its own
    number of digits, uniform from 1 to its places; these are uniform, and all above are zero.
    """

    operator: ClassVar[str]
    base: int
    operand_digits: OperandDigits

    @abstractmethod
    def operand_places(self, length: int) -> tuple[int, ...]:
        """The number of places of each operand."""

    def check(self) -> None:
        if self.base < 2:
            raise SettingError("base", "a whole number of at least 2", self.base)

    @property
    def separators(self) -> tuple[str, ...]:
        """Symbols that only the response has."""
        return ()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        digits = tuple(str(digit) for digit in range(self.base))
        symbols = (self.operator, *self.separators)
        roles = ("data",) * self.base + ("special",) * len(symbols)
        return Vocabulary(names=(*digits, *symbols, "=", END), roles=(*roles, "query", "special"))

    def prompt_length(self, length: int) -> int:
        places = self.operand_places(length)
        return sum(places) + len(places) - 1

    def _columns(self, length: int) -> list[slice]:
        """Where each operand stands in the prompt."""
        ends = np.cumsum([n + 1 for n in self.operand_places(length)]) - 1
        return [slice(end - n, end) for n, end in zip(self.operand_places(length), ends.tolist(), strict=True)]

    def operands(self, prompts: Int64[np.ndarray, "B P"], length: int) -> list[Int64[np.ndarray, "B places"]]:
        """The digits of each operand, place 0 first."""
        return [prompts[:, columns][:, ::-1] for columns in self._columns(length)]

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        columns = self._columns(length)
        places = self.operand_places(length)
        digits = drawn_tokens(stream, length, start, len(out), sum(places), self.base)
        starts = np.cumsum([0, *places]).tolist()
        for own, (first, last) in zip(columns, pairwise(starts), strict=True):
            out[:, own] = digits[:, first:last]
            out[:, own.stop : own.stop + 1] = self.vocabulary.token(self.operator)
        if self.operand_digits == "uniform":
            words = stream.words("operand digits", length, start, len(out), len(columns))
            for own, word, n in zip(columns, words.T, places, strict=True):
                out[:, own] *= np.arange(n)[::-1] <= bounded(word, n)[:, None]

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        operands = self.operands(*self.prompts_of(tokens))
        if self.operand_digits == "fixed":
            return {"values": Draw(np.concatenate(operands, axis=1))}
        # Below its highest digit other than 0 an operand's digits are uniform, whatever that digit's place is.
        columns = []
        for digits in operands:
            from_above = np.maximum.accumulate(digits[:, ::-1] > 0, axis=1)[:, ::-1]
            above = np.append(from_above[:, 1:], np.zeros((len(digits), 1), dtype=bool), axis=1)
            columns += [np.where(above, digits, -1), from_above.sum(axis=1, keepdims=True)]
        return {"values": Draw(np.concatenate(columns, axis=1))}

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        template = np.full(prompts.shape[1], self.vocabulary.token(self.operator))
        for own in self._columns(length):
            template[own] = -1
        digits = (prompts >= 0) & (prompts < self.base)
        return bool(np.where(template < 0, digits, prompts == template).all())

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        marginals = np.zeros((self.prompt_length(length), self.vocabulary.size))
        marginals[:, self.vocabulary.token(self.operator)] = 1
        for own, n in zip(self._columns(length), self.operand_places(length), strict=True):
            # Place j is drawn if the number of digits, uniform on 1 .. n, is more than j.
            drawn = np.arange(1, n + 1) / n if self.operand_digits == "uniform" else np.ones(n)
            marginals[own] = 0
            marginals[own, : self.base] = drawn[:, None] / self.base
            marginals[own, 0] += 1 - drawn
        return marginals

    def split_operands(self, tokens: tuple[int, ...], equals: int) -> list[list[int]]:
        """For ``work_out``: the positions of each operand's digits, place 0 first."""
        operator = self.vocabulary.token(self.operator)
        ends = [0, *(t for t in range(equals) if tokens[t] == operator), equals]
        operands = [list(range(last - 1, first, -1)) for first, last in pairwise(ends)]
        if not all(operands):
            raise ValueError(f"expected digits on either side of each {self.operator}, got {tokens}")
        return operands


def carried(sums: Int64[np.ndarray, "places *rest"], base: int) -> Int64[np.ndarray, "places *rest"]:
    """Turn the sums at each place into digits, in the same array. They have room: the last carries nothing."""
    for place in range(len(sums) - 1):
        carry = sums[place] // base
        sums[place + 1] += carry
        carry *= base
        sums[place] -= carry
    return sums


def to_digits(number: int, base: int, places: int) -> list[int]:
    """The lowest digits of a number, place 0 first."""
    return [number // base**place % base for place in range(places)]


def from_digits(digits: Iterable[int], base: int) -> int:
    """The number with these digits, place 0 first."""
    return sum(digit * base**place for place, digit in enumerate(digits))
