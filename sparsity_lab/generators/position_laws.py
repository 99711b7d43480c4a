"""Laws of positions that several tasks declare (see ``PositionLaw``)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from sparsity_lab.generators.locality import Law
from sparsity_lab.generators.stream import Floats, Ints


@dataclass(frozen=True, eq=False)
class OneBlock:
    """A block of ``width`` neighboring positions, its first one at position t with probability ``first[t]``."""

    first: Floats
    width: int = 1

    def order_pmf(self) -> Floats:
        T = len(self.first)
        pmf = np.zeros((self.width, T))
        for j in range(self.width):
            pmf[j, j:] = self.first[: T - j]
        return pmf

    def pmf(self, sources: Ints) -> Floats:
        inside = (sources[:, 0] >= 0) & (np.diff(sources, axis=1) == 1).all(axis=1)
        return np.where(inside, self.first[np.maximum(sources[:, 0], 0)], 0.0)

    def support_size(self) -> int:
        return int(np.count_nonzero(self.first))


@dataclass(frozen=True, eq=False)
class SpacedSet:
    """A set of k positions among ``offset``, ``offset + stride``, ... The i-th of them is place ``places + 1 - i`` of
    a locality law. So the law's distance counts from the start, 1 for the first.

    Attributes:
        T: positions of the sequence.
        places: number of positions to choose from.
    """

    law: Law
    k: int
    T: int
    places: int
    offset: int
    stride: int

    def order_pmf(self) -> Floats:
        pmf = np.zeros((self.k, self.T))
        last = self.offset + self.stride * self.places
        pmf[:, self.offset : last : self.stride] = self.law.order_pmf(self.k, self.places)[::-1, ::-1]
        return pmf

    def pmf(self, sources: Ints) -> Floats:
        index, odd = np.divmod(sources[:, ::-1] - self.offset, self.stride)
        inside = ((odd == 0) & (index >= 0) & (index < self.places)).all(axis=1)
        places = np.where(inside[:, None], self.places - index, np.arange(1, self.k + 1))
        return np.where(inside, np.exp(self.law.log_pmf(places, self.places)), 0.0)

    def support_size(self) -> int:
        return self.law.support_size(self.k, self.places)


class ListedSets:
    """The law of a set that is one of a few listed ones (see ``PositionLaw``).

    >>> law = ListedSets(np.array([[1, 2], [2, 3]]), T=5)
    >>> isinstance(law, PositionLaw)
    True

    Attributes:
        sets: (N, K) ascending, padded with -1, all different.
        probabilities: (N,), 1 / N each if not given.
    """

    def __init__(self, sets: Int64[np.ndarray, "N K"], T: int, probabilities: Floats | None = None) -> None:
        self.sets = sets
        self.probabilities = np.full(len(sets), 1 / len(sets)) if probabilities is None else probabilities
        self._T = T

    def order_pmf(self) -> Floats:
        columns = []
        for places in self.sets.T:
            there = places >= 0
            columns.append(np.bincount(places[there], self.probabilities[there], minlength=self._T))
        return np.array(columns)

    def pmf(self, sources: Ints) -> Floats:
        def key(row: list[int]) -> tuple[int, ...]:
            return tuple(t for t in row if t >= 0)

        listed = dict(zip(map(key, self.sets.tolist()), self.probabilities.tolist(), strict=True))
        return np.array([listed.get(key(row), 0.0) for row in sources.tolist()])

    def support_size(self) -> int:
        return int((self.probabilities > 0).sum())
