"""``Multiplication``: products of a long and a short number, written backwards, with coupled position IDs.

Format and IDs are those of the position-coupling code (arXiv 2405.20671), with start s.
"""

from functools import lru_cache
from math import gcd
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.operands import ArithmeticTask, carried, from_digits, to_digits
from sparsity_lab.generators.stream import Floats
from sparsity_lab.settings import SettingError, register

_MOST_MULTIPLIERS = 128  # for which the law of the product's digits is computed


@register
class Multiplication(ArithmeticTask):
    """Multiplication: ``BOS a * b = c EOS``, as in ``123*45=53550``. The length is the number n of places of a.

    The product is reversed and padded to n + M places, where M is the number of places of b.

    Let S_j be the sum of all products of two digits whose places add up to j. Digit j is S_j plus a carry, modulo
    base. Its sources are the digits that enter S_j, S_(j-1) and S_(j-2), and the product's own digit at place j - 1.
    They determine it. S_(j-1) and the digit at place j - 1 give the carry into that place modulo base. S_(j-2) limits
    the carry to at most base consecutive values, as long as M is at most base. So k = 2 M + 3 for any length of a.
    Carries are below M (base - 1). If that is at most base (M = 1 or base = 2), the carry is known without S_(j-2).
    The digits of S_(j-2) are then not sources, and k = 2 M + 2. The source of EOS is BOS, which is above the highest
    place of a.

    IDs: s + n + M for ``*`` and ``=``, one less for the units, and one less for each further place in a, b and c.

    Attributes:
        multiplier_digits: M.
        operand_digits: ``"fixed"``: all digits are uniform. ``"uniform"``: each operand has its own number of digits,
            uniform on 1 .. n or 1 .. M. These digits are uniform, with zeros above.
        base: of the digits.
    """

    operator: ClassVar[str] = "*"

    multiplier_digits: int = 2
    operand_digits: Literal["fixed", "uniform"] = "fixed"
    base: int = 10
    certified_lengths = (3, 14)

    @classmethod
    def examples(cls) -> "tuple[Multiplication, ...]":
        return cls(), cls(multiplier_digits=3, base=4, operand_digits="uniform")

    def check(self) -> None:
        super().check()
        if not 1 <= self.multiplier_digits <= self.base:
            # Otherwise two places before do not determine the carry.
            raise SettingError("multiplier_digits", f"from 1 to base={self.base}", self.multiplier_digits)

    def operand_places(self, length: int) -> tuple[int, ...]:
        return length, self.multiplier_digits

    def response_length(self, length: int) -> int:
        return length + self.multiplier_digits

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        a, b = (np.ascontiguousarray(operand.T) for operand in self.operands(prompts, length))
        sums = np.zeros((self.response_length(length), len(prompts)), dtype=np.int64)
        for place, digit in enumerate(b):
            sums[place : place + length] += a * digit
        return carried(sums, self.base).T

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        M = self.multiplier_digits
        e = start + length + M
        a, b, c = range(e - length, e), range(e - M, e), range(e - 1, start - 1, -1)
        return [[0, *a, e, *b, e, *c, 0]]

    @property
    def _places_before(self) -> int:
        """The number of places below its own at which a digit has sources."""
        return 2 if self.multiplier_digits * (self.base - 1) > self.base else 1

    def slot_sources(self, length: int) -> list[list[int]]:
        n, M, before = length, self.multiplier_digits, self._places_before
        equals = n + M + 2
        slots = []
        for j in range(n + M):
            # Places i of a and j - i, j - 1 - i or j - 2 - i of b.
            of_a = [n - i for i in range(max(0, j - before - M + 1), min(j + 1, n))]
            of_b = [equals - 1 - i for i in range(max(0, j - before - n + 1), min(j + 1, M))]
            slots.append(of_a + of_b + ([equals + j] if j else []))
        return [*slots, [0]]

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"] | None:
        """None if b can have more than 128 values, which are too many to enumerate."""
        if self.base**self.multiplier_digits > _MOST_MULTIPLIERS:
            return None
        marginals = np.zeros((self.response_length(length), self.vocabulary.size))
        uniform = self.operand_digits == "uniform"
        marginals[:, : self.base] = _product_digits(length, self.multiplier_digits, self.base, uniform)
        return marginals

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        a, b = self.split_operands(tokens, equals)
        product = from_digits([tokens[t] for t in a], self.base) * from_digits([tokens[t] for t in b], self.base)
        # Two places determine the carry. One is enough if carries are digits.
        before = 1 if len(b) == 1 or self.base == 2 else 2
        steps: list[tuple[list[int], int]] = []
        for j, digit in enumerate(to_digits(product, self.base, len(a) + len(b))):
            pairs = [(x, y) for y in range(len(b)) for x in range(j - before - y, j + 1 - y) if 0 <= x < len(a)]
            sources = {a[x] for x, _ in pairs} | {b[y] for _, y in pairs} | ({equals + j} if j else set())
            steps.append((list(sources), digit))
        return [*steps, ([0], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        ids = [0] * len(tokens)
        top = ids[equals] = ids[tokens.index(self.vocabulary.token("*"))] = equals - 1
        for operand in self.split_operands(tokens, equals):
            for place, t in enumerate(operand):
                ids[t] = top - 1 - place
        for place, t in enumerate(range(equals + 1, len(tokens) - 1)):
            ids[t] = top - 1 - place
        return [ids]


@lru_cache(maxsize=64)
def _product_digits(n: int, M: int, base: int, uniform: bool) -> Floats:
    """(n + M, base): law of each digit of a b, by enumeration of all b.

    Digit j of a b depends only on a modulo base^(j+1). So if a has m > j digits, the law is that of a multiple of b
    modulo base^(j+1), for any m. If a has fewer digits, the digit is at the top of the product, and its law is
    counted.
    """
    sizes = range(1, n + 1) if uniform else (n,)
    low, top = np.zeros((n, base)), np.zeros((len(sizes), M, base))
    for b in range(base**M):
        fits = [m for m in (range(1, M + 1) if uniform else (M,)) if b < base**m]
        of_b = sum(base**-m for m in fits) / (M if uniform else 1)
        low += of_b * np.array([_digit_of_multiple(b, j, base) for j in range(n)])
        top += of_b * np.array([[_digit_of_top(b, m, i, base) for i in range(M)] for m in sizes])
    digits = np.zeros((n + M, base))
    for own, m in zip(top, sizes, strict=True):
        digits[:m] += low[:m] / len(sizes)
        digits[m : m + M] += own / len(sizes)
        digits[m + M :, 0] += 1 / len(sizes)
    return digits


@lru_cache(maxsize=1 << 16)
def _digit_of_multiple(b: int, j: int, base: int) -> Floats:
    """(base,): law of digit j of a b, if a has more than j uniform digits."""
    one = base**j
    # Modulo base^(j+1) the product is uniform on the multiples of g.
    g = gcd(b, one * base)
    multiples = np.array([-(-digit * one // g) for digit in range(base + 1)], dtype=object)
    return np.asarray(np.diff(multiples) / (one * base // g), dtype=np.float64)


@lru_cache(maxsize=1 << 16)
def _digit_of_top(b: int, m: int, i: int, base: int) -> Floats:
    """(base,): law of digit m + i of a b, if a has m uniform digits."""
    law, one, numbers = np.zeros(base), base ** (m + i), base**m
    # a b is between t base^(m+i) and the next such multiple if a is between two of these.
    for t in range(b // base**i + 1):
        first, last = (min(numbers, -(-u * one // b)) if b else u * numbers for u in (t, t + 1))
        law[t % base] += (last - first) / numbers
    return law
