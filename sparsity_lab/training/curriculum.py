"""Curricula: the length of each training step.

What else a curriculum may mix, such as k, is mixed by the task: see ``Mixture`` and ``SparseParity``.
"""

from abc import abstractmethod
from itertools import accumulate

from sparsity_lab.generators import Stream
from sparsity_lab.generators.stream import bounded, open_unit
from sparsity_lab.settings import Setting, SettingError, check_that, register


class Curriculum(Setting, family="curriculum"):
    """The law of the training lengths; one length a step.

    >>> isinstance(FixedLength(length=8), Curriculum)
    True
    """

    @abstractmethod
    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        """The length of training step ``step`` of ``steps``: a pure function of the stream's seed and the step. In a
        data set without end ``steps`` is None."""

    @abstractmethod
    def range(self) -> tuple[int, int]:
        """Smallest and largest length that can occur; all lengths between them count as trained."""


@register
class FixedLength(Curriculum):
    """Every step at the same length.

    Attributes:
        length: of every step.
    """

    length: int = 16

    def check(self) -> None:
        check_that(self.length >= 1, "length", "a positive length", self.length)

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        return self.length

    def range(self) -> tuple[int, int]:
        return self.length, self.length


@register
class UniformLength(Curriculum):
    """Every step at a length drawn uniformly from ``low`` to ``high``, both included.

    Attributes:
        low, high: the smallest and the largest length.
    """

    low: int = 8
    high: int = 24

    def check(self) -> None:
        check_that(self.low >= 1, "low", "a positive length", self.low)
        check_that(self.high >= self.low, "high", f"a length of at least low = {self.low}", self.high)

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        return _uniform(stream, step, self.low, self.high)

    def range(self) -> tuple[int, int]:
        return self.low, self.high


@register
class GrowingLength(Curriculum):
    """Every step at a length drawn uniformly from ``low`` to a bound that grows.

    The bound rises linearly from ``start`` at the first step to ``high`` after the share ``growth`` of the steps, and
    stays there.

    Attributes:
        low: the smallest length.
        start: the bound at the first step.
        high: the bound in the end, the largest length.
        growth: share of the steps over which the bound rises.
    """

    low: int = 8
    start: int = 8
    high: int = 24
    growth: float = 0.5

    def check(self) -> None:
        check_that(self.low >= 1, "low", "a positive length", self.low)
        check_that(self.start >= self.low, "start", f"a length of at least low = {self.low}", self.start)
        check_that(self.high >= self.start, "high", f"a length of at least start = {self.start}", self.high)
        check_that(0 <= self.growth <= 1, "growth", "a share of the steps, from 0 to 1", self.growth)

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        if steps is None:
            raise SettingError("steps", "a number of steps, over which the length grows", steps)
        grown = step / (self.growth * steps) if step < self.growth * steps else 1.0
        return _uniform(stream, step, self.low, self.start + int((self.high - self.start) * grown))

    def range(self) -> tuple[int, int]:
        return self.low, self.high


@register
class MixedLengths(Curriculum):
    """Every step from one of several curricula, picked at random.

    >>> MixedLengths(curricula=(FixedLength(length=8), FixedLength(length=32)), shares=(0.75, 0.25)).range()
    (8, 32)

    Attributes:
        curricula: the components; each sees the step and the number of steps of the whole run.
        shares: their probabilities, which sum to 1; None makes them equal.
    """

    curricula: tuple[Curriculum, ...] = (FixedLength(length=8), FixedLength(length=24))
    shares: tuple[float, ...] | None = None

    def check(self) -> None:
        number = len(self.curricula)
        check_that(number, "curricula", "at least one curriculum", self.curricula)
        if self.shares is not None:
            each = f"{number} numbers, one for each curriculum"
            check_that(len(self.shares) == number, "shares", each, self.shares)
            fits = min(self.shares) > 0 and abs(sum(self.shares) - 1) <= 1e-9
            check_that(fits, "shares", "positive numbers that sum to 1", self.shares)

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        shares = self.shares or (1 / len(self.curricula),) * len(self.curricula)
        purpose = f"curriculum component {self._depth}" if self._depth else "curriculum component"
        unit = float(open_unit(stream.words(purpose, 0, step, 1, 1))[0, 0])
        picked = sum(unit >= bound for bound in list(accumulate(shares))[:-1])
        return self.curricula[picked].at(stream, step, steps)

    @property
    def _depth(self) -> int:
        """How many mixtures lie within each other below this one; each picks with a word of its own."""
        return max((part._depth + 1 for part in self.curricula if isinstance(part, MixedLengths)), default=0)

    def range(self) -> tuple[int, int]:
        ranges = [curriculum.range() for curriculum in self.curricula]
        return min(low for low, _ in ranges), max(high for _, high in ranges)


def _uniform(stream: Stream, step: int, low: int, high: int) -> int:
    # The draw decides the length, so it cannot belong to one: it lies under length 0.
    words = stream.words("curriculum", 0, step, 1, 1)
    return low + int(bounded(words, high - low + 1)[0, 0])
