"""``SuccessivePower``: a locality law that draws places one after the other without replacement.

Successive draws with weights w are the first k arrivals of independent exponential waiting times with rates w. Let W
be the total weight outside a set S. S is drawn if all its places arrive before any other place:

    pmf(S) = int_0^inf W exp(-W t) prod_{i in S} (1 - exp(-w_i t)) dt.

In log t the integrand is analytic and falls off at both ends, so the trapezoidal rule is exact up to rounding.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from sparsity_lab.generators.locality import Law
from sparsity_lab.generators.stream import Floats, Ints, open_unit
from sparsity_lab.settings import SettingError, register

Places = Ints

_STEP = 0.15
_LOG_TIMES = np.arange(-45.0, 45.0, _STEP)
_SETS_AT_ONCE = 4096


@register
class SuccessivePower(Law):
    """Places are drawn one after the other, without replacement, by a power of the distance.

    The weight of a place is distance^(power_a - 1). This is the law of gaps in zoology's recall task (Arora et al.,
    arXiv 2312.04927), where ``power_a`` is 0.01. With 1, the law is ``Uniform``.

    >>> near, uniform = SuccessivePower(power_a=0.01), SuccessivePower(power_a=1.0)
    >>> sets = np.array([[8], [1]])
    >>> near.log_pmf(sets, 8).round(2).tolist(), uniform.log_pmf(sets, 8).round(2).tolist()
    ([-1.01, -3.07], [-2.08, -2.08])

    Attributes:
        power_a: a smaller value prefers nearer places.
    """

    power_a: float = 0.01

    def check(self) -> None:
        if not -20 <= self.power_a <= 20:
            raise SettingError("power_a", "a number from -20 to 20", self.power_a)

    def draw(self, words: NDArray[np.uint64], length: int) -> Places:
        count, k = words.shape
        weights = self._weights(length)
        cumulative = np.cumsum(weights)
        places, index = np.empty((count, 0), dtype=np.int64), np.arange(count)
        unit = open_unit(words)
        for j in range(k):
            taken = np.zeros((count, j + 1))
            np.cumsum(weights[places], axis=1, out=taken[:, 1:])
            point = unit[:, j] * (cumulative[-1] - taken[:, -1])
            # The point is an index among free places. Skip each taken place that has no more free places before it.
            passed = (point[:, None] >= cumulative[places] - taken[:, 1:]).sum(axis=1)
            found = np.searchsorted(cumulative, point + taken[index, passed], side="right")
            places = np.sort(np.column_stack([places, np.minimum(found, length - 1)]), axis=1)
        return places + 1

    def _weights(self, length: int) -> Floats:
        """(l,): the weight of each place, divided by the largest weight."""
        logs = (self.power_a - 1) * np.log(np.arange(length, 0, -1.0))
        return np.asarray(np.exp(logs - logs.max()))

    def order_pmf(self, k: int, length: int) -> Float[np.ndarray, "k l"]:
        if k == length:
            return np.eye(length)
        return _order_pmf(self, k, length)

    def log_pmf(self, places: Int64[np.ndarray, "N k"], length: int) -> Float[np.ndarray, " N"]:
        if places.shape[1] == length:
            return np.zeros(len(places))
        weights, times = self._weights(length), np.exp(_LOG_TIMES)
        found = np.empty(len(places))
        for start in range(0, len(places), _SETS_AT_ONCE):
            own = weights[places[start : start + _SETS_AT_ONCE] - 1]
            outside = weights.sum() - own.sum(axis=1, keepdims=True)
            logs = np.log(outside * times) - outside * times
            for one in own.T:
                logs += np.log(-np.expm1(-one[:, None] * times))
            found[start : start + _SETS_AT_ONCE] = np.logaddexp.reduce(logs, axis=1) + np.log(_STEP)
        return found

    def support_size(self, k: int, length: int) -> int:
        return math.comb(length, k)


@lru_cache(maxsize=64)
def _order_pmf(law: SuccessivePower, k: int, length: int) -> Floats:
    """For each place: the number of arrivals until time t, and whether the first arrival outside is among these."""
    times, weights = np.exp(_LOG_TIMES), law._weights(length)
    here = -np.expm1(-weights[:, None] * times)
    not_yet = np.exp(-weights[:, None] * times)
    last = weights[:, None] * times * not_yet * _STEP

    def begun(order: range) -> list[Floats]:
        """(2, k, times) after each place: by the flag and the number of arrivals."""
        tables = [np.zeros((2, k + 1, len(times)))]
        tables[0][0, 0] = 1.0
        for i in order:
            before = tables[-1]
            after = before * not_yet[i]
            after[:, 1:] += before[:, :-1] * here[i]
            after[1] += before[0] * last[i]
            tables.append(after)
        return tables

    prefix, suffix = begun(range(length)), begun(range(length - 1, -1, -1))[::-1]
    pmf = np.empty((k, length))
    for i in range(length):
        left, right = prefix[i], suffix[i + 1]
        for j in range(k):
            both = left[0, j] * right[1, k - 1 - j] + left[1, j] * right[0, k - 1 - j]
            pmf[j, i] = both @ here[i]
    return pmf
