"""Randomness: sequence i of a stream is a pure function of (seed, name, purpose, length, i).

The random words come from Philox, a counter-based generator: its output at position n is a function of (key, n) only.
Each (seed, name, purpose, length) has its own key. Sequence i owns the words [i w, (i + 1) w), where w is the fixed
number of words per sequence. So a batch is one contiguous block, and a sequence does not depend on the batch size,
the number of workers or the order of access.
"""

import hashlib
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.settings import whole
from sparsity_lab.settings.words import bounded, open_unit

__all__ = ["Floats", "Ints", "Stream", "bounded", "open_unit", "permutations", "whole"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_WORDS_PER_COUNTER = 4  # Philox-4x64 makes four 64-bit words at each counter value.


@dataclass(frozen=True)
class Stream:
    """A named source of random words.

    Attributes:
        seed: any integer; streams of different seeds are independent.
        name: the use of the stream (``"train"``, ``"evaluation"``); streams of different names are independent.
    """

    seed: int = 0
    name: str = "train"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole("seed", self.seed, None))

    def words(self, purpose: str, length: int, start: int, count: int, per_sequence: int) -> NDArray[np.uint64]:
        """The 64-bit words of sequences ``start .. start + count - 1``, shape (count, per_sequence).

        Args:
            purpose: what the words decide (``"background"``, ``"positions"``); words for different purposes are
                independent.
            length: the task's length; words for different lengths are independent.
            per_sequence: number of words of one sequence, the same in every call for this purpose and length.

        Raises:
            SettingError: ``length``, ``start``, ``count`` or ``per_sequence`` is negative or not an integer.
        """
        length, per_sequence = whole("length", length, 0), whole("per_sequence", per_sequence, 0)
        start, count = whole("start", start, 0), whole("count", count, 0)
        text = f"{self.seed}\x1f{self.name}\x1f{purpose}\x1f{length}"
        key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
        first_counter, skipped = divmod(start * per_sequence, _WORDS_PER_COUNTER)
        block = _philox_at(key, first_counter).random_raw(skipped + count * per_sequence)
        return block[skipped:].reshape(count, per_sequence)


def permutations(words: NDArray[np.uint64]) -> Ints:
    """Uniform permutations of 0 .. n - 1 from (B, n) words: the places, sorted by their words.

    The place replaces the lowest bits of its word. So words can be sorted in place, and no two are equal.
    """
    bits = np.uint64(words.shape[1].bit_length())
    marked = (words >> bits << bits) | np.arange(words.shape[1], dtype=np.uint64)
    marked.sort(axis=1)
    return (marked & ((np.uint64(1) << bits) - np.uint64(1))).view(np.int64)


_local = threading.local()


def _philox_at(key: NDArray[np.uint64], counter: int) -> np.random.Philox:
    """A generator that has made ``counter`` blocks of this key. Each thread reuses one generator and sets its state.
    A new generator would ask the operating system for entropy that is not needed."""
    if not hasattr(_local, "philox"):
        _local.philox = np.random.Philox(0)
    philox: np.random.Philox = _local.philox
    philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": np.array([counter % 2**64, counter >> 64, 0, 0], dtype=np.uint64), "key": key},
        "buffer": np.zeros(_WORDS_PER_COUNTER, dtype=np.uint64),
        "buffer_pos": _WORDS_PER_COUNTER,  # the buffer is empty
        "has_uint32": 0,
        "uinteger": 0,
    }
    return philox
