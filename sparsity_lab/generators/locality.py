"""Locality laws: the positions of the k planted tokens among l places.

Places are 1 .. l from the start. The query is at l + 1, so the *distance* of place i from it is l + 1 - i.

A *product law* gives the set S the probability

    pmf(S) = prod_{i in S} w_i / e_k(w_1, .., w_l),        e_k: elementary symmetric polynomial.

Let E_r(p) = e_r(w_{p+1}, .., w_l) be the suffix polynomials. If r places remain after place p, the next one satisfies
P(next > i) = E_r(i) / E_r(p). So a set needs k random words, each looked up in one decreasing table. The order
statistics have the closed form E'_{j-1}(i - 1) w_i E_{k-j}(i) / e_k, where E' are the prefix polynomials. All tables
hold logarithms, so that ratios stay exact when the polynomials overflow.
"""

import math
from abc import abstractmethod
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.stream import Floats, Ints, open_unit, whole
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, register

# Beyond these, logarithms of weights lose the digits that distinguish places.
_LARGEST_EXPONENT = 100
_SMALLEST_SCALE = 0.01

Places = Ints


class Law(Setting, family="law"):
    """A distribution over sets of k places among l, for every k and l that it allows."""

    largest = LARGEST_SIZE

    anchor: ClassVar[str | None] = "query"
    """The anchor of a set when the length changes: distances from the ``"query"`` stay, or places from the
    ``"start"``. None: neither."""

    @abstractmethod
    def draw(self, words: NDArray[np.uint64], length: int) -> Places:
        """Draw sets from random words, both of shape (count, k), with ascending places."""

    @abstractmethod
    def order_pmf(self, k: int, length: int) -> Floats:
        """(k, l): probability that the j-th smallest place is i (column i - 1)."""

    @abstractmethod
    def log_pmf(self, places: Places, length: int) -> Floats:
        """Log-probability of each set: (count, k) ascending places to (count,)."""

    @abstractmethod
    def support_size(self, k: int, length: int) -> int:
        """Number of sets of positive probability."""

    def bound(self) -> tuple[str, int] | None:
        """The field that limits k at every length, and its limit; None if only the length limits k."""
        return None


class ProductLaw(Law):
    """Base of the laws whose probabilities are products of weights.

    >>> isinstance(Recent(width=8), ProductLaw), isinstance(Window(width=8), ProductLaw)
    (True, False)
    """

    @abstractmethod
    def log_weights(self, length: int) -> Floats:
        """(l,): log w_i, -inf where a place is never planted."""

    def draw(self, words: NDArray[np.uint64], length: int) -> Places:
        count, k = words.shape
        suffix = _suffix_tables(self, k, length)
        log_unit = np.log(open_unit(words))
        places = np.empty((count, k), dtype=np.int64)
        previous = np.zeros(count, dtype=np.int64)
        for j in range(k):
            table = suffix[k - j]
            # The first place i with E_r(i) < u E_r(previous); the table descends, so its negative is sorted.
            threshold = -(log_unit[:, j] + table[previous])
            previous = np.searchsorted(-table, threshold, side="right")
            places[:, j] = previous
        return places

    def order_pmf(self, k: int, length: int) -> Floats:
        log_weights = self.log_weights(length)
        suffix = _suffix_tables(self, k, length)
        prefix = _log_polynomials(log_weights[::-1], k)[:, ::-1]  # prefix[r, i] = log e_r(w_1, .., w_i)
        # Row j - 1, column i - 1: j - 1 places before i, k - j after it.
        logs = prefix[:k, :-1] + log_weights + suffix[k - 1 :: -1, 1:][:k] - suffix[k, 0]
        return np.asarray(np.exp(logs))

    def log_pmf(self, places: Places, length: int) -> Floats:
        k = places.shape[1]
        logs = self.log_weights(length)[places - 1].sum(axis=1) - _suffix_tables(self, k, length)[k, 0]
        return np.asarray(logs)

    def support_size(self, k: int, length: int) -> int:
        places = int(np.isfinite(self.log_weights(length)).sum())
        return math.comb(places, k)


@register
class Uniform(ProductLaw):
    """Every set of k places is equally likely: w = 1.

    >>> Uniform().log_pmf(np.array([[1, 2]]), 4).round(3).tolist()
    [-1.792]
    """

    def log_weights(self, length: int) -> Floats:
        return np.zeros(length)


@register
class Recent(ProductLaw):
    """Uniform over sets whose distances from the query are at most ``width``.

    Attributes:
        width: the largest distance from the query; the token before it has distance 1.
    """

    width: int = 8

    @classmethod
    def examples(cls) -> "tuple[Recent, ...]":
        return cls(), cls(width=5)

    def check(self) -> None:
        whole("width", self.width, 1)

    def log_weights(self, length: int) -> Floats:
        return np.where(_distances(length) <= self.width, 0.0, -np.inf)

    def bound(self) -> tuple[str, int] | None:
        return "width", self.width


@register
class PowerLaw(ProductLaw):
    """Heavy-tailed in the distance from the query: w(distance) = distance^-alpha.

    >>> PowerLaw(alpha=2).log_pmf(np.array([[8], [1]]), 8).round(2).tolist()
    [-0.42, -4.58]

    Attributes:
        alpha: the exponent. 0 is uniform, and a negative exponent prefers far places.
    """

    alpha: float = 1.0

    @classmethod
    def examples(cls) -> "tuple[PowerLaw, ...]":
        return cls(), cls(alpha=-2.5)

    def check(self) -> None:
        if abs(self.alpha) > _LARGEST_EXPONENT:
            raise SettingError("alpha", f"a number from -{_LARGEST_EXPONENT} to {_LARGEST_EXPONENT}", self.alpha)

    def log_weights(self, length: int) -> Floats:
        return np.asarray(-self.alpha * np.log(_distances(length)))


@register
class Geometric(ProductLaw):
    """Exponential in the distance from the query: w(distance) = exp(-distance / scale).

    >>> Geometric(scale=4).log_pmf(np.array([[7, 8]]), 8).round(3).tolist()
    [-2.105]

    Attributes:
        scale: distance over which the weight falls by a factor of e.
    """

    scale: float = 8.0

    @classmethod
    def examples(cls) -> "tuple[Geometric, ...]":
        return cls(), cls(scale=0.5)

    def check(self) -> None:
        if not self.scale >= _SMALLEST_SCALE:
            raise SettingError("scale", f"a number of at least {_SMALLEST_SCALE}", self.scale)

    def log_weights(self, length: int) -> Floats:
        return np.asarray(-_distances(length) / self.scale)


@register
class Anchored(ProductLaw):
    """Uniform over sets whose places, counted from the start, are at most ``width``: far from the query if l is
    large.

    Attributes:
        width: the last place, counted from 1 at the start.
    """

    anchor: ClassVar[str | None] = "start"
    width: int = 8

    @classmethod
    def examples(cls) -> "tuple[Anchored, ...]":
        return cls(), cls(width=5)

    def check(self) -> None:
        whole("width", self.width, 1)

    def log_weights(self, length: int) -> Floats:
        return np.where(np.arange(1, length + 1) <= self.width, 0.0, -np.inf)

    def bound(self) -> tuple[str, int] | None:
        return "width", self.width


@register
class Window(Law):
    """Uniform over sets that fit in a window, anywhere in the sequence: span max - min + 1 <= ``width``.

    A set consists of its first position a and k - 1 of the m_a = min(width - 1, l - a) positions after it. So a has
    weight C(m_a, k - 1), and the rest is uniform.

    Attributes:
        width: width of the window, in tokens.
    """

    anchor: ClassVar[str | None] = None
    width: int = 8

    @classmethod
    def examples(cls) -> "tuple[Window, ...]":
        return cls(), cls(width=4)

    def check(self) -> None:
        whole("width", self.width, 1)

    def bound(self) -> tuple[str, int] | None:
        return "width", self.width

    def draw(self, words: NDArray[np.uint64], length: int) -> Places:
        k = words.shape[1]
        cumulative = np.cumsum(np.exp(self._log_first(k, length)))
        first = np.searchsorted(cumulative, open_unit(words[:, 0]) * cumulative[-1], side="right") + 1
        places = np.empty(words.shape, dtype=np.int64)
        places[:, 0] = first
        if k > 1:
            # The rest is a uniform set in the last m places of a row of `width - 1`.
            row = self.width - 1
            suffix = _suffix_tables(Uniform(), k - 1, row)
            log_unit = np.log(open_unit(words))
            offset = row - np.minimum(row, length - first)
            previous = offset
            for j in range(1, k):
                table = suffix[k - j]
                previous = np.searchsorted(-table, -(log_unit[:, j] + table[previous]), side="right")
                places[:, j] = first + previous - offset
        return places

    def order_pmf(self, k: int, length: int) -> Floats:
        first = np.arange(1, length + 1)
        room = np.minimum(self.width - 1, length - first)
        log_sets = _log_binomial(room, k - 1)
        log_total = np.logaddexp.reduce(log_sets)
        pmf = np.zeros((k, length))
        pmf[0] = np.exp(log_sets - log_total)
        for distance in range(1, min(self.width, length)):
            inside = room >= distance
            places = first[inside] + distance
            for j in range(1, k):
                before = _log_binomial(np.array([distance - 1]), j - 1)
                after = _log_binomial(room[inside] - distance, k - 1 - j)
                pmf[j, places - 1] += np.exp(before + after - log_total)
        return pmf

    def log_pmf(self, places: Places, length: int) -> Floats:
        k = places.shape[1]
        room = np.minimum(self.width - 1, length - np.arange(1, length + 1))
        log_total = np.logaddexp.reduce(_log_binomial(room, k - 1))
        span = places[:, -1] - places[:, 0] + 1
        return np.where(span <= self.width, -log_total, -np.inf)

    def support_size(self, k: int, length: int) -> int:
        return sum(math.comb(min(self.width - 1, length - a), k - 1) for a in range(1, length + 1))

    def _log_first(self, k: int, length: int) -> Floats:
        """(l,): log-probability of each first place, up to a constant."""
        room = np.minimum(self.width - 1, length - np.arange(1, length + 1))
        log_sets = _log_binomial(room, k - 1)
        return np.asarray(log_sets - log_sets.max())


def _distances(length: int) -> Floats:
    return np.arange(length, 0, -1, dtype=np.float64)


def _log_binomial(n: Ints, k: int) -> Floats:
    """log C(n, k), -inf where k > n."""
    from scipy.special import gammaln  # noqa: PLC0415

    possible = n >= k
    m = np.where(possible, n, k)
    return np.where(possible, gammaln(m + 1) - gammaln(k + 1) - gammaln(m - k + 1), -np.inf)


def _log_polynomials(log_weights: Floats, k: int) -> Floats:
    """(k + 1, l + 1): row r, column p is log e_r(w_{p+1}, .., w_l)."""
    length = len(log_weights)
    tables = np.full((k + 1, length + 1), -np.inf)
    tables[0] = 0.0
    for r in range(1, k + 1):
        # e_r of a suffix is the sum, over its first chosen place i, of w_i times e_{r-1} of the places after i.
        terms = log_weights + tables[r - 1, 1:]
        tables[r, :-1] = np.logaddexp.accumulate(terms[::-1])[::-1]
    return tables


@lru_cache(maxsize=512)
def _suffix_tables(law: ProductLaw, k: int, length: int) -> Floats:
    return _log_polynomials(law.log_weights(length), k)
