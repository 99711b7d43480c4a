"""Curricula: the length of each training step."""

from abc import abstractmethod

from sparsity_lab.generators import Stream
from sparsity_lab.generators.stream import bounded
from sparsity_lab.settings import Setting, SettingError, register

__all__ = ["Curriculum", "FixedLength", "UniformLength"]


class Curriculum(Setting, family="curriculum"):
    """The law of the training lengths; one length a step."""

    @abstractmethod
    def at(self, stream: Stream, step: int, steps: int) -> int:
        """The length of training step ``step`` of ``steps``: a pure function of the stream's seed and the step."""

    @abstractmethod
    def range(self) -> tuple[int, int]:
        """Smallest and largest length that can occur; all lengths between them count as trained."""


@register
class FixedLength(Curriculum):
    """Every step at the same length."""

    length: int = 16

    def check(self) -> None:
        if self.length < 1:
            raise SettingError("length", "a positive length", self.length)

    def at(self, stream: Stream, step: int, steps: int) -> int:
        return self.length

    def range(self) -> tuple[int, int]:
        return self.length, self.length


@register
class UniformLength(Curriculum):
    """Every step at a length drawn uniformly from ``low`` to ``high``, both included."""

    low: int = 8
    high: int = 24

    def check(self) -> None:
        if self.low < 1:
            raise SettingError("low", "a positive length", self.low)
        if self.high < self.low:
            raise SettingError("high", f"a length of at least low = {self.low}", self.high)

    def at(self, stream: Stream, step: int, steps: int) -> int:
        # The draw decides the length, so it cannot belong to one: it lies under length 0.
        words = stream.words("curriculum", 0, step, 1, 1)
        return self.low + int(bounded(words, self.high - self.low + 1)[0, 0])

    def range(self) -> tuple[int, int]:
        return self.low, self.high
