"""Shared parts of the arithmetic tasks: operands in the prompt, and carries.

In the prompt, numbers are written with the most significant digit first and padded with zeros. In the response they
are reversed. *Place* j of a number is its digit of base^j.
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
from sparsity_lab.generators.response_layout import FixedFormat, prompt_vocabulary
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, open_unit, whole
from sparsity_lab.generators.task import Draw
from sparsity_lab.generators.uniform_prompt import drawn_tokens

OperandDigits = Literal["fixed", "uniform", "published"]


class ArithmeticTask(FixedFormat):
    """Base of the tasks whose prompt is numbers with operators between them. Token d < base is the digit d.

    ``operand_digits`` says how numbers are drawn. ``"fixed"``: all digits of an operand are uniform. ``"uniform"``:
    each operand has its own number of digits, uniform from 1 to its places. These digits are uniform, and all above
    are zero. ``"published"``: as in the position-coupling code at the width of the longest operand. This is the same,
    but the longest operand uses all places, and the highest digit of a number is not 0 unless it is the only one.
    """

    operator: ClassVar[str]
    base: int
    operand_digits: OperandDigits

    @abstractmethod
    def operand_places(self, length: int) -> tuple[int, ...]:
        """The number of drawn digits of each operand."""

    def padded_places(self, length: int) -> tuple[int, ...]:
        """The number of written places of each operand, including the zeros above the drawn digits."""
        return self.operand_places(length)

    def check(self) -> None:
        whole("base", self.base, 2)

    @property
    def separators(self) -> tuple[str, ...]:
        """Symbols that occur only in the response."""
        return ()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        digits, symbols = range(self.base), (self.operator, *self.separators)
        roles = ("data",) * self.base + ("special",) * len(symbols)
        return prompt_vocabulary([*map(str, digits), *symbols], *roles)

    def prompt_length(self, length: int) -> int:
        places = self.padded_places(length)
        return sum(places) + len(places) - 1

    def _columns(self, length: int) -> list[slice]:
        """The place of each operand in the prompt."""
        ends = np.cumsum([n + 1 for n in self.padded_places(length)]) - 1
        return [slice(end - n, end) for n, end in zip(self.padded_places(length), ends.tolist(), strict=True)]

    def operands(self, prompts: Int64[np.ndarray, "B P"], length: int) -> list[Int64[np.ndarray, "B places"]]:
        """The digits of each operand, place 0 first."""
        return [prompts[:, columns][:, ::-1] for columns in self._columns(length)]

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        columns, places = self._columns(length), self.operand_places(length)
        digits = drawn_tokens(stream, length, start, len(out), sum(places), self.base)
        if self.padded_places(length) != places:
            out[:] = 0
        starts = np.cumsum([0, *places]).tolist()
        for own, (first, last) in zip(columns, pairwise(starts), strict=True):
            out[:, own.stop - (last - first) : own.stop] = digits[:, first:last]
            out[:, own.stop : own.stop + 1] = self.vocabulary.token(self.operator)
        if self.operand_digits == "uniform":
            words = stream.words("operand digits", length, start, len(out), len(columns))
            for own, word, n in zip(columns, words.T, places, strict=True):
                out[:, own.stop - n : own.stop] *= np.arange(n)[::-1] <= bounded(word, n)[:, None]
        elif self.operand_digits == "published":
            words = stream.words("published digits", length, start, len(out), 3 * len(columns))
            sizes = _sizes_with_a_longest(words[:, : 2 * len(columns)], length)
            highest = 1 + bounded(words[:, 2 * len(columns) :], self.base - 1)
            index = np.arange(len(out))
            for own, size, top in zip(columns, sizes.T, highest.T, strict=True):
                out[:, own.stop - length : own.stop] *= np.arange(length)[::-1] < size[:, None]
                at = own.stop - size
                out[index, at] = np.where(size > 1, top, out[index, at])

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, length = self.prompts_of(tokens)
        drawn = zip(self.operands(prompts, length), self.operand_places(length), strict=True)
        operands = [digits[:, :n] for digits, n in drawn]
        if self.operand_digits == "fixed":
            return {"values": Draw(np.concatenate(operands, axis=1))}
        # The digits below an operand's highest nonzero digit are uniform, at any place of that digit.
        columns = []
        for digits in operands:
            from_above = np.maximum.accumulate(digits[:, ::-1] > 0, axis=1)[:, ::-1]
            above = np.append(from_above[:, 1:], np.zeros((len(digits), 1), dtype=bool), axis=1)
            size = from_above.sum(axis=1, keepdims=True)
            if self.operand_digits == "uniform":
                columns += [np.where(above, digits, -1), size]
                continue
            # So is the highest digit, and so is a single digit, including 0. Sizes depend on each other, so only one
            # is given.
            size = np.maximum(size, 1)
            top = np.take_along_axis(digits, size - 1, axis=1)
            columns += [np.where(above, digits, -1), np.where(size > 1, top, -1), np.where(size == 1, top, -1)]
            columns += [size] if digits is operands[0] else []
        return {"values": Draw(np.concatenate(columns, axis=1))}

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        template = np.full(prompts.shape[1], self.vocabulary.token(self.operator))
        longest = np.zeros(len(prompts), dtype=bool)
        for own, n in zip(self._columns(length), self.operand_places(length), strict=True):
            template[own] = -2
            template[own.stop - n : own.stop] = -1
            longest |= prompts[:, own.stop - n] > 0 if n else False
        digits = (prompts >= 0) & (prompts < self.base)
        fits = np.where(template == -1, digits, prompts == np.where(template == -2, 0, template)).all()
        return bool(fits and (self.operand_digits != "published" or length == 1 or longest.all()))

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        marginals = np.zeros((self.prompt_length(length), self.vocabulary.size))
        marginals[:, self.vocabulary.token(self.operator)] = 1
        for own, n in zip(self._columns(length), self.operand_places(length), strict=True):
            marginals[own] = 0
            marginals[own, 0] = 1
            law = self._digit_law(n, len(self.operand_places(length)))
            marginals[own.stop - n : own.stop, : self.base] = law[::-1]
        return marginals

    def _digit_law(self, n: int, num_operands: int) -> Floats:
        """(n, base): probability of each digit at each place of one operand, place 0 first."""
        if self.operand_digits == "published":
            law = _numbers_without_zeros(n, self.base)
            if n > 1:  # subtract the shorter ones
                rest, short = ((n - 1) / n) ** num_operands, np.eye(1, self.base).repeat(n, axis=0)
                short[:-1] = _numbers_without_zeros(n - 1, self.base)
                law = (law - rest * short) / (1 - rest)
            return law
        # Place j is drawn if the number of digits, uniform on 1 .. n, is more than j.
        drawn = np.arange(n, 0, -1) / n if self.operand_digits == "uniform" else np.ones(n)
        law = np.repeat(drawn[:, None] / self.base, self.base, axis=1)
        law[:, 0] += 1 - drawn
        return law

    def split_operands(self, tokens: tuple[int, ...], equals: int) -> list[list[int]]:
        """The positions of each operand's digits, place 0 first, for ``work_out``."""
        operator = self.vocabulary.token(self.operator)
        ends = [0, *(t for t in range(equals) if tokens[t] == operator), equals]
        operands = [list(range(last - 1, first, -1)) for first, last in pairwise(ends)]
        if not all(operands):
            raise ValueError(f"expected digits on either side of each {self.operator}, got {tokens}")
        return operands


def _sizes_with_a_longest(words: NDArray[np.uint64], n: int) -> Ints:
    """(B, N) integers from 1 to n, uniform over rows that contain n, from (B, 2 N) words."""
    count, N = len(words), words.shape[1] // 2
    sizes, found = np.empty((count, N), dtype=np.int64), np.zeros(count, dtype=bool)
    for i in range(N):
        left = N - i
        # The share of rows that begin with n, among those with an n in the remaining places.
        share = n ** (left - 1) / (n**left - (n - 1) ** left)
        longest = ~found & (open_unit(words[:, 2 * i]) < share)
        shorter = 1 + bounded(words[:, 2 * i + 1], max(1, n - 1))
        sizes[:, i] = np.where(longest, n, np.where(found, 1 + bounded(words[:, 2 * i + 1], n), shorter))
        found |= longest
    return sizes


def _numbers_without_zeros(n: int, base: int) -> Floats:
    """(n, base): law of the digits of a number with 1 to n digits, all equally likely, that does not begin with 0."""
    law = np.zeros((n, base))
    for j in range(n):
        inner, highest = (n - 1 - j) / n, 1 / n
        law[j] = inner / base
        if j:
            law[j, 1:] += highest / (base - 1)
        else:
            law[j] += highest / base
        law[j, 0] += j / n
    return law


def carried(sums: Int64[np.ndarray, "places *rest"], base: int) -> Int64[np.ndarray, "places *rest"]:
    """Turn the sums at each place into digits, in place. The last place must have no carry."""
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
