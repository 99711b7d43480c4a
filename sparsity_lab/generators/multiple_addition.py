"""``MultipleAddition``: sums of several numbers with running sums, as published.

Format and IDs are those of the position-coupling code for several operands (arXiv 2410.15787), with start s.
"""

from sparsity_lab.generators.addition import SumTask
from sparsity_lab.generators.operands import OperandDigits
from sparsity_lab.settings import register


@register
class MultipleAddition(SumTask):
    """Sums of several numbers, with every running sum: ``BOS a + b + c = 0 > a > a + b > a + b + c EOS``. The length
    is the number n of digits of the longest operand.

    An example is ``057+048+096=000>750>501>102``. Sums are reversed. All operands and sums have as many places as the
    largest sum, N (base^n - 1), has digits.

    A digit's sources are the addends' digits at its place and the one before, and the sum's own digit there. The
    source of ``>`` and EOS is the symbol after the last operand so far, or BOS if there is none.

    IDs: kind 1 gives place j the ID s + 1 + j in operands and in sums, and s to the symbols. Kind 2 exists only
    with running sums. It gives s + i - 1 to operand i and to the ``+`` after it. The sum of the first i and the
    symbol before it get s + i, or s + i - 1 if the empty sum is left out. So both addends of the next sum share an
    ID.

    Attributes:
        num_operands: N.
        scratchpad: whether to write running sums. If False, the answer is the last sum only.
        start_with_zeros: whether to begin with the empty sum.
        operand_digits: as in ``Addition``.
        base: of the digits.
    """

    num_operands: int = 3
    scratchpad: bool = True
    start_with_zeros: bool = True
    operand_digits: OperandDigits = "published"
    base: int = 10

    @classmethod
    def examples(cls) -> "tuple[MultipleAddition, ...]":
        return cls(base=4), cls(num_operands=2, start_with_zeros=False, base=3, operand_digits="fixed")

    @property
    def summed(self) -> range:
        first = 1 - self.start_with_zeros if self.scratchpad else self.num_operands
        return range(first, self.num_operands + 1)

    def sum_places(self, length: int) -> int:
        # From 64 places on, base^n exceeds any number of operands, so each further digit adds one place.
        short = min(length, 64)
        largest, places = self.num_operands * (self.base**short - 1), length - short
        while largest:
            largest, places = largest // self.base, places + 1
        return places

    def padded_places(self, length: int) -> tuple[int, ...]:
        return (self.sum_places(length),) * self.num_operands

    def digits_of(self, places: int) -> int:
        for n in range(1, places + 1):
            if self.sum_places(n) == places:
                return n
        raise ValueError(f"expected operands as wide as a sum, got {places} places")

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places, N = self.sum_places(length), self.num_operands
        of_operand, of_sum = [start, *range(start + places, start, -1)], range(start, start + places + 1)
        significance = [0, *(of_operand * N)[1:], *list(of_sum) * len(self.summed), 0]
        if not self.scratchpad:
            return [significance]
        # A symbol belongs to the operand before it, and to the sum after it.
        operands = [start + i for i in range(N) for _ in range(places + 1)][:-1]
        sums = [start + i for i in range(len(self.summed)) for _ in range(places + 1)]
        return [significance, [0, *operands, *sums, 0]]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        significance, number = self.significance(tokens, equals), [0] * len(tokens)
        which = 1
        for t in range(1, len(tokens) - 1):
            # `=` and `>` belong to the sum after them, and `+` to the operand before it.
            which = 1 if t == equals else which + (t > equals and tokens[t] >= self.base)
            number[t] = which
            which += t < equals and tokens[t] >= self.base
        return [significance, number] if self.scratchpad else [significance]
