"""Criteria: tests of the numbers of seeds, by e-values that stay valid while seeds are added.

Each kind of number has a criterion. ``BoundedMean`` is for numbers in a range that is known in advance, such as
accuracies and their differences. ``NormalMean`` is for losses if every run learned. ``MostSeeds`` tests whether an
event happens in more than half of all seeds, which few seeds can decide.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparsity_lab.settings import SettingError
from sparsity_lab.studies.e_values import (
    ALPHA,
    PRIOR_SCALE,
    bounded_interval,
    bounded_mean,
    more_than_half,
    share_interval,
    t_interval,
    t_mean,
)

_BOTH_SIDES = 2 * ALPHA


def _check_finite(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise SettingError(name, "a finite number", number)


class Evidences(NamedTuple):
    """Three e-values. Each is evidence against the opposite of its name.

    Attributes:
        held: evidence that the claim holds.
        did_not_hold: evidence that it does not hold.
        smaller: evidence that the effect is too small to matter; 0 if the criterion names no such size.
    """

    held: float
    did_not_hold: float
    smaller: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Criterion(ABC):
    """A test of the numbers of seeds, fixed before the runs.

    >>> isinstance(NormalMean(above=0.0), Criterion)
    True
    """

    @abstractmethod
    def evidences(self, numbers: Sequence[float]) -> Evidences:
        """The e-values for the numbers of the seeds."""

    @abstractmethod
    def estimate(self, numbers: Sequence[float]) -> float:
        """The estimate from at least one number."""

    @abstractmethod
    def interval(self, numbers: Sequence[float]) -> tuple[float, float] | None:
        """The confidence sequence of the estimate, or None if there is none yet. It has an error of 5 % on each side,
        like the tests. So if a claim held or did not hold, its bound is outside."""

    @property
    def unit(self) -> str:
        """The unit of the estimate, if it differs from that of the numbers."""
        return ""

    @property
    @abstractmethod
    def words(self) -> str:
        """The test in one sentence."""


@dataclass(frozen=True, kw_only=True)
class _Mean(Criterion):
    """The mean over all seeds is ``above`` or ``below`` a bound.

    Attributes:
        above: the bound, if the claim is that the mean is larger. Give either this or ``below``.
        below: the bound, if the claim is that the mean is smaller.
        matters: the smallest distance from 0 that matters for the number of a seed; None if there is no such size.

    Raises:
        SettingError: both bounds or none are given, or ``matters`` is not above 0.
    """

    above: float | None = None
    below: float | None = None
    matters: float | None = None

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise SettingError("above, below", "give exactly one of the two")
        _check_finite(above=self.above, below=self.below)
        if self.matters is not None and not 0 < self.matters < math.inf:
            raise SettingError("matters", "a number above 0", self.matters)

    @abstractmethod
    def _above(self, numbers: Sequence[float], bound: float) -> float:
        """The e-value against "the mean is at most the bound"."""

    @abstractmethod
    def _below(self, numbers: Sequence[float], bound: float) -> float:
        """The e-value against "the mean is at least the bound"."""

    @abstractmethod
    def _within(self, numbers: Sequence[float], margin: float) -> float:
        """The e-value against "the effect matters"."""

    def evidences(self, numbers: Sequence[float]) -> Evidences:
        if self.above is not None:
            held, failed = self._above(numbers, self.above), self._below(numbers, self.above)
        else:
            assert self.below is not None
            held, failed = self._below(numbers, self.below), self._above(numbers, self.below)
        return Evidences(held, failed, 0.0 if self.matters is None else self._within(numbers, self.matters))

    def estimate(self, numbers: Sequence[float]) -> float:
        return sum(numbers) / len(numbers)

    def _bound_words(self) -> str:
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"


@dataclass(frozen=True, kw_only=True)
class BoundedMean(_Mean):
    """The mean of numbers that lie in a range. Nothing else is assumed about them.

    >>> BoundedMean(above=0.0).evidences([0.9] * 12).held > 20
    True

    Attributes:
        low, high: the range, known in advance: -1 and 1 for a difference of two accuracies.

    Raises:
        SettingError: a bound is outside the range.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        bound = self.above if self.above is not None else self.below
        assert bound is not None
        if not self.low < bound < self.high:
            raise SettingError("above, below", f"a number between {self.low:g} and {self.high:g}", bound)

    def _above(self, numbers: Sequence[float], bound: float) -> float:
        return bounded_mean(numbers, bound, self.low, self.high)

    def _below(self, numbers: Sequence[float], bound: float) -> float:
        return bounded_mean([-number for number in numbers], -bound, -self.high, -self.low)

    def _within(self, numbers: Sequence[float], margin: float) -> float:
        return more_than_half(sum(abs(number) <= margin for number in numbers), len(numbers))

    def interval(self, numbers: Sequence[float]) -> tuple[float, float] | None:
        return bounded_interval(numbers, self.low, self.high, _BOTH_SIDES)

    @property
    def words(self) -> str:
        text = f"The mean over all seeds, of numbers from {self.low:g} to {self.high:g}, is {self._bound_words()}."
        if self.matters is not None:
            text += f" Smaller than matters: more than half of all seeds are within {self.matters:g} of 0."
        return text


@dataclass(frozen=True, kw_only=True)
class NormalMean(_Mean):
    """The mean of approximately normal numbers, such as differences of losses if every run learned.

    >>> NormalMean(below=0.0, scale=0.1).evidences([-0.5, -0.6, -0.4, -0.5]).held > 1
    True

    Attributes:
        scale: standard deviation of the prior of the standardized effect.
    """

    scale: float = PRIOR_SCALE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale < math.inf:
            raise SettingError("scale", "a number above 0", self.scale)

    def _above(self, numbers: Sequence[float], bound: float) -> float:
        return t_mean(numbers, bound, self.scale)

    def _below(self, numbers: Sequence[float], bound: float) -> float:
        return t_mean([-number for number in numbers], -bound, self.scale)

    def _within(self, numbers: Sequence[float], margin: float) -> float:
        # Both one-sided tests must reach the bound.
        return min(self._above(numbers, -margin), self._below(numbers, margin))

    def interval(self, numbers: Sequence[float]) -> tuple[float, float] | None:
        found = t_interval(numbers, _BOTH_SIDES, self.scale)
        # Too few numbers give infinite limits.
        return None if found is None or math.isinf(found[0]) else found

    @property
    def words(self) -> str:
        text = f"The mean over all seeds is {self._bound_words()} (t e-process, prior scale {self.scale:g})."
        if self.matters is not None:
            text += f" Smaller than matters: the mean is within {self.matters:g} of 0."
        return text


@dataclass(frozen=True, kw_only=True)
class MostSeeds(Criterion):
    """In more than half of all seeds, the number is at least or at most a bound.

    >>> MostSeeds(at_least=0.9).estimate([1.0, 0.95, 0.2, 0.3])
    0.5

    Attributes:
        at_least, at_most: the bounds; both together give a range.

    Raises:
        SettingError: neither is given, or the range is empty.
    """

    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise SettingError("at_least, at_most", "give at least one of the two")
        _check_finite(at_least=self.at_least, at_most=self.at_most)
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise SettingError("at_most", f"at least at_least={self.at_least:g}", self.at_most)

    def _successes(self, numbers: Sequence[float]) -> list[bool]:
        return [
            (self.at_least is None or number >= self.at_least) and (self.at_most is None or number <= self.at_most)
            for number in numbers
        ]

    def evidences(self, numbers: Sequence[float]) -> Evidences:
        good, count = sum(self._successes(numbers)), len(numbers)
        return Evidences(more_than_half(good, count), more_than_half(count - good, count))

    def estimate(self, numbers: Sequence[float]) -> float:
        return sum(self._successes(numbers)) / len(numbers)

    def interval(self, numbers: Sequence[float]) -> tuple[float, float] | None:
        return share_interval(sum(self._successes(numbers)), len(numbers), _BOTH_SIDES)

    @property
    def unit(self) -> str:
        return "of the seeds"

    @property
    def words(self) -> str:
        limits = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        limits += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        return f"In more than half of all seeds the number is {' and '.join(limits)}."
