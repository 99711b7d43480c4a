"""``Addition``: sums of padded numbers, written backwards, with coupled position IDs.

For two operands, format and IDs are those of the position-coupling code (arXiv 2405.20671), with start s. For running
sums, this lab chose the second kind of ID and the width of operands. ``MultipleAddition`` has those of arXiv
2410.15787.
"""

from functools import lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.operands import ArithmeticTask, OperandDigits, carried, from_digits, to_digits
from sparsity_lab.generators.stream import Floats, whole
from sparsity_lab.settings import SettingError, register


class SumTask(ArithmeticTask):
    """Base of the addition tasks: the sum of N operands, or all running sums.

    The sources of the digit at place j are the addends' digits at place j. For the carry, they are also the addends'
    digits and the sum's own digit at place j - 1. The carry is (the addends' digits - the own digit) / base, rounded
    up. The addends of a running sum are the sum before it and an operand. The digits of the empty sum have the source
    ``=``. If the first sum has one operand, the sources of its digits are the operand's digits. The source of ``>``
    is the symbol after the last operand in the sum before it, or BOS if there is none. The same holds for EOS with
    running sums. Without them, the source of EOS is BOS, which is above the highest place of a.
    """

    operator: ClassVar[str] = "+"

    num_operands: int
    scratchpad: bool | None

    def check(self) -> None:
        super().check()
        whole("num_operands", self.num_operands, 2)
        if not self.has_scratchpad and self.num_operands > self.base:
            # Otherwise the place before does not determine the carry.
            raise SettingError("num_operands", f"at most base={self.base} without running sums", self.num_operands)

    @property
    def has_scratchpad(self) -> bool:
        """Whether running sums are written."""
        return self.num_operands > 2 if self.scratchpad is None else self.scratchpad

    @property
    def summed(self) -> range:
        """The number of operands in each sum of the response."""
        return range(0 if self.has_scratchpad else self.num_operands, self.num_operands + 1)

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return (2, 7) if self.has_scratchpad else (2, 12)

    @property
    def separators(self) -> tuple[str, ...]:
        return (">",) if self.has_scratchpad else ()

    @property
    def num_kinds(self) -> int:
        return 2 if self.has_scratchpad else 1

    def operand_places(self, length: int) -> tuple[int, ...]:
        return (length,) * self.num_operands

    def sum_places(self, length: int) -> int:
        """The number of places of a sum."""
        carry, places = self.num_operands - 1, length
        while carry:
            carry, places = carry // self.base, places + 1
        return places

    def digits_of(self, places: int) -> int:
        """The length of a sequence whose operands have ``length`` places."""
        return places

    def response_length(self, length: int) -> int:
        return len(self.summed) * (self.sum_places(length) + 1) - 1

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        operands, places = self.operands(prompts, length), self.sum_places(length)
        sums = np.zeros((places, len(self.summed), len(prompts)), dtype=np.int64)
        for i, operand in enumerate(operands):
            # The first sum that this operand enters.
            sums[: operand.shape[1], max(0, i + 1 - self.summed[0])] += operand.T
        sums = carried(np.cumsum(sums, axis=1), self.base)
        # Between the sums, and after the last one, where it is cut off.
        response = np.full((len(prompts), len(self.summed), places + 1), self.base + 1)
        response[:, :, :-1] = sums.transpose(2, 1, 0)
        return response.reshape(len(prompts), len(self.summed) * (places + 1))[:, :-1]

    def slot_sources(self, length: int) -> list[list[int]]:
        n, places, N = self.padded_places(length)[0], self.sum_places(length), self.num_operands
        equals = N * (n + 1)
        operands = [[1 + i * (n + 1) + n - 1 - j for j in range(n)] for i in range(N)]
        sums = [[equals + 1 + i * (places + 1) + j for j in range(places)] for i in range(len(self.summed))]
        if not self.has_scratchpad:
            return [*_digit_sources(operands, sums[0]), [0]]
        slots: list[list[int]] = []
        for i, count in enumerate(self.summed):
            if count == 0:
                slots += [[equals]] * places
            elif i == 0:
                slots += [[position] for position in operands[0]]
            else:
                slots += _digit_sources([sums[i - 1], operands[count - 1]], sums[i])
            slots.append([count * (n + 1)])
        return slots

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        places = self.sum_places(length)
        marginals = np.zeros((len(self.summed), places + 1, self.vocabulary.size))
        marginals[:, -1, self.base + 1] = 1
        for i, count in enumerate(self.summed):
            law = _sum_digits(count, self.num_operands, length, places, self.base, self.operand_digits)
            marginals[i, :-1, : self.base] = law
        return marginals.reshape(-1, self.vocabulary.size)[:-1]

    def significance(self, tokens: tuple[int, ...], equals: int) -> list[int]:
        """IDs of kind 1 for ``define_position_ids``. Places count from the preceding symbol, going from ``=`` to
        either end."""
        found, place = [0] * len(tokens), 0
        for t in [*range(equals, 0, -1), *range(equals, len(tokens) - 1)]:
            place = found[t] = 1 if tokens[t] >= self.base else place + 1
        return found

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        operands = self.split_operands(tokens, equals)
        values = [from_digits((tokens[t] for t in operand), self.base) for operand in operands]
        places = self.sum_places(self.digits_of(len(operands[0])))
        steps: list[tuple[list[int], int]] = []
        before: list[int] = []
        for count in self.summed:
            own = [equals + 1 + len(steps) + j for j in range(places)]
            addends = [before, *operands[count - 1 : count]] if self.has_scratchpad else operands
            copied = self.has_scratchpad and count == 1 and not before
            for j, digit in enumerate(to_digits(sum(values[:count]), self.base, places)):
                near = [addend[i] for addend in addends for i in (j - 1, j) if 0 <= i < len(addend)]
                near += own[max(0, j - 1) : j]
                if copied:
                    near = operands[0][j : j + 1]
                steps.append((near if count else [equals], digit))
            last = count == len(operands)
            behind = operands[count - 1][0] + 1 if count and self.has_scratchpad else 0
            steps.append(([behind], self.end if last else self.vocabulary.token(">")))
            before = own
        return steps


@register
class Addition(SumTask):
    """Addition: ``BOS a + b = c EOS``, as in ``653+049=2070``; the length is the number n of places of the operands.

    The sum is reversed, so that carries move along with the response. Its extra places hold the largest carry, N - 1:
    one place for up to ``base`` operands. With running sums N operands are answered with N + 1 sums,
    ``57+48+96=000>750>501>102``: the sum of none, of the first, of the first two, and so on, up to all.

    A digit's sources are the addends' digits at its place and the one before, and the sum's own digit there. The
    source of ``>`` and EOS is the symbol after the last operand so far, or BOS if there is none.

    IDs: kind 1 gives place j the ID s + 1 + j in operands and in sums, and s to the symbols. With running sums there
    is a kind 2, chosen by this lab: s + i for operand i, running sum i, and the symbol before each.

    Attributes:
        num_operands: N.
        scratchpad: whether to write running sums. None: only for more than two operands.
        operand_digits: ``"fixed"``: n uniform digits each. ``"uniform"``: each operand has its own number of digits,
            uniform on 1 .. n; the digits are uniform, with zeros above. ``"published"``: the same, but the longest
            operand has n digits, and no number except 0 begins with 0, as in the position-coupling code at width n.
        base: of the digits.
        end_ids: in kind 1, give the symbol before each operand the ID of the place above its highest, s + 1 + n, as
            for a leading zero. Then a search for the place above succeeds at the end too. Otherwise the model has to
            notice that nothing is there. This variant is the lab's; the published rule gives ``+`` s, BOS none.
    """

    num_operands: int = 2
    scratchpad: bool | None = None
    operand_digits: OperandDigits = "fixed"
    base: int = 10
    end_ids: bool = False

    @classmethod
    def examples(cls) -> "tuple[Addition, ...]":
        return (
            cls(),
            cls(end_ids=True),
            cls(operand_digits="uniform", base=3),
            cls(num_operands=3),
            cls(num_operands=4, scratchpad=False, base=5, operand_digits="uniform"),
        )

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = self.sum_places(length)
        of_operand = [start + 1 + length if self.end_ids else start, *range(start + length, start, -1)]
        of_sum = [start, *range(start + 1, start + 1 + places)]
        # The symbol before the first operand is BOS.
        significance = [*of_operand * self.num_operands, *of_sum * len(self.summed), 0]
        if not self.end_ids:
            significance[0] = 0
        if not self.has_scratchpad:
            return [significance]
        # A symbol belongs to the number after it.
        operands = [start + i for i in range(1, self.num_operands + 1) for _ in range(length + 1)][1:]
        sums = [start + i for i in self.summed for _ in range(places + 1)]
        return [significance, [0, *operands, *sums, 0]]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        significance, number = self.significance(tokens, equals), [0] * len(tokens)
        if self.end_ids:
            significance[0] = significance[1] + 1
            for t in range(1, equals):
                if tokens[t] >= self.base:
                    significance[t] = significance[t + 1] + 1
        # Operands count from 2 and sums from 1, each with the symbol before it.
        which = 2
        for t in range(1, len(tokens) - 1):
            which = number[t] = 1 if t == equals else which + (tokens[t] >= self.base)
        return [significance, number] if self.has_scratchpad else [significance]


def _digit_sources(addends: list[list[int]], own: list[int]) -> list[list[int]]:
    """Sources of each digit of a sum, from the positions of the digits, place 0 first."""
    here = [[addend[j] for addend in addends if j < len(addend)] for j in range(len(own))]
    return [here[0], *(here[j] + here[j - 1] + [own[j - 1]] for j in range(1, len(own)))]


@lru_cache(maxsize=256)
def _sum_digits(count: int, num_operands: int, n: int, places: int, base: int, drawn: OperandDigits) -> Floats:
    """(places, base): law of each digit of the sum of the first ``count`` operands with n places."""
    if drawn != "published" or n == 1:
        return _independent_sum(count, n, places, base, drawn)
    # The longest operand has n digits: all operands with up to n digits, minus all with up to n - 1.
    shorter = ((n - 1) / n) ** num_operands
    every, short = (_independent_sum(count, size, places, base, drawn) for size in (n, n - 1))
    return np.asarray((every - shorter * short) / (1 - shorter))


def _independent_sum(count: int, n: int, places: int, base: int, drawn: OperandDigits) -> Floats:
    """(places, base): law of each digit of the sum of ``count`` independent operands with up to n digits.

    It is computed place by place, from the joint law of the carry and the number of operands that still have digits.
    Take an operand with a digit at place j. If its number of digits is uniform, it has one at place j + 1 with
    probability (n
    - j - 1) / (n - j). Otherwise it always has one, until j = n - 1.
    """
    from scipy.stats import binom  # noqa: PLC0415

    digits = np.zeros((places, base))
    if count == 0:
        digits[:, 0] = 1
        return digits
    inner = _powers(np.full(base, 1 / base), count)
    lowest = np.append(0.0, np.full(base - 1, 1 / (base - 1)))
    highest = _powers(lowest, count) if drawn == "published" else inner
    state = np.zeros((count + 1, count))
    state[count, 0] = 1
    for j in range(places):
        stay = 0.0 if j >= n - 1 else 1.0 if drawn == "fixed" else (n - j - 1) / (n - j)
        following = np.zeros_like(state)
        for left in range(count + 1):
            for more, share in enumerate(binom.pmf(np.arange(left + 1), left, stay)):
                if share == 0 or not state[left].any():
                    continue
                # The operands that end here have their highest digit here.
                own = np.convolve(inner[more], (highest if j else inner)[left - more])
                # The largest total, count (base - 1) + count - 1, still fits: a row is the next carry.
                total = np.zeros(count * base)
                total[: left * (base - 1) + count] = share * np.convolve(own, state[left])
                by_carry = total.reshape(count, base)
                digits[j] += by_carry.sum(axis=0)
                following[more] += by_carry.sum(axis=1)
        state = following
    return digits


def _powers(law: Floats, count: int) -> list[Floats]:
    """Laws of the sums of 0 .. count independent digits."""
    powers = [np.ones(1)]
    for _ in range(count):
        powers.append(np.convolve(powers[-1], law))
    return powers
