"""Random words of 64 bits, and integers and reals made from them. Tasks and models use this module."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Words(Protocol):
    """A source of words for a batch, such as ``Stream.words`` for the batch's sequences.

    >>> from functools import partial
    >>> words: Words = partial(Stream(seed=0).words, length=8, start=0, count=2)
    >>> words("positions", per_sequence=3).shape
    (2, 3)
    """

    def __call__(self, purpose: str, *, per_sequence: int) -> NDArray[np.uint64]:
        """Independent uniform words, (B, per_sequence). Different purposes give different words."""
        ...


def bounded(words: NDArray[np.uint32] | NDArray[np.uint64], bound: int | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Integers uniform on 0 .. bound - 1 from 32-bit words, by multiply-shift: floor(word * bound / 2^32).

    Each value's probability is off by less than 2^-32; it is exact when ``bound`` is a power of two. 64-bit words
    give their upper half.

    >>> bounded(np.array([0, 2**31, 2**32 - 1], dtype=np.uint32), 10).tolist()
    [0, 5, 9]
    """
    wide = words >> np.uint64(32) if words.dtype == np.uint64 else words.astype(np.uint64)
    # In place, since memory traffic is most of the cost.
    wide *= np.uint64(bound)
    wide >>= np.uint64(32)
    return wide.view(np.int64)


def open_unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Reals uniform on the open interval (0, 1): odd multiples of 2^-54.

    >>> open_unit(np.array([2**63], dtype=np.uint64)).round(6).tolist()
    [0.5]
    """
    unit: NDArray[np.float64] = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return unit
