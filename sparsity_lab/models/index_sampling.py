"""Index sampling: which indices the tokens of a training sequence get. At inference indices are always 0 .. n - 1.

Index sampling is a pure function of a fixed number of random words per sequence. So indices come from the same
counter-based streams as the data, under their own purpose. n is the sequence's size, its number of tokens.
"""

from abc import abstractmethod
from typing import ClassVar, Self

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from numpy import ndarray
from torch import Tensor

from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, check_least, register
from sparsity_lab.settings.words import Words, bounded


class IndexSampling(Setting, family="index_sampling"):
    """How sequence indices move in training."""

    largest = LARGEST_SIZE

    @abstractmethod
    def limit(self) -> int | None:
        """The largest index it can give; None if that is n - 1, as without it."""

    @abstractmethod
    def num_words(self, size: int) -> int:
        """Number of 64-bit words for a sequence of ``size`` tokens.

        Raises:
            SettingError: the index sampling has no room for so many.
        """

    @abstractmethod
    def indices(self, words: UInt64[ndarray, "count words"], size: int) -> Int64[ndarray, "count size"]:
        """(count, size) int64 indices, ascending in each row.

        Args:
            words: (count, num_words(size)) independent uniform words, a row for each sequence.

        Raises:
            SettingError: the index sampling has no room for so many tokens, or the words do not fit.
        """

    def sampled_indices(self, words: Words, size: int) -> Int64[Tensor, "B T"] | None:
        """Indices of training sequences of ``size`` tokens, by words of their own purpose; None: 0 .. size - 1.

        Raises:
            SettingError: as ``num_words``.
        """
        num_words = self.num_words(size)
        # Every stored run was trained on words of this purpose, so it keeps its first name.
        return torch.from_numpy(self.indices(words("schedule", per_sequence=num_words), size)) if num_words else None

    def _check_words(self, words: UInt64[ndarray, "count words"], size: int) -> None:
        if words.shape[1] != self.num_words(size):
            raise SettingError("words", f"{self.num_words(size)} words a sequence", words.shape[1])


@register
class Plain(IndexSampling):
    """Indices 0 .. n - 1, in training as at inference.

    >>> Decoder(index_sampling=Plain()) == Decoder()
    True
    """

    def limit(self) -> int | None:
        return None

    def num_words(self, size: int) -> int:
        return 0

    def indices(self, words: UInt64[ndarray, "count words"], size: int) -> Int64[ndarray, "count size"]:
        self._check_words(words, size)
        return np.tile(np.arange(size, dtype=np.int64), (len(words), 1))


class _Within(IndexSampling):
    """Base of those whose indices stay below a number, which one of their fields says.

    Attributes:
        room_field: name of the field.
    """

    room_field: ClassVar[str]

    @classmethod
    def examples(cls) -> "tuple[Self, ...]":
        return (cls(**{cls.room_field: 64}),)

    @property
    def _room(self) -> int:
        return int(getattr(self, self.room_field))

    @abstractmethod
    def _words_needed(self, size: int) -> int:
        """Words for a sequence of ``size`` tokens, for which there is room."""

    def check(self) -> None:
        check_least(1, **{self.room_field: self._room})

    def limit(self) -> int:
        return self._room - 1

    def num_words(self, size: int) -> int:
        if size > self._room:
            raise SettingError(self.room_field, f"at least {size}, the size of the sequence", self._room)
        return self._words_needed(size)


@register
class RandomOffset(_Within):
    """Indices that begin anywhere in training: o .. o + n - 1 with o uniform on 0 .. size - n.

    >>> Decoder(index_sampling=RandomOffset(size=128)).index_sampling.size
    128

    Attributes:
        size: number of indices there are.
    """

    size: int
    room_field = "size"

    def _words_needed(self, size: int) -> int:
        return 1

    def indices(self, words: UInt64[ndarray, "count words"], size: int) -> Int64[ndarray, "count size"]:
        self._check_words(words, size)
        return bounded(words, self.size - size + 1) + np.arange(size)


@register
class PoSE(_Within):
    """Positional skip-wise training with two chunks (Zhu et al., 2023): indices 0 .. a - 1, then a + u .. n - 1 + u.

    The first chunk's length a is uniform on 1 .. (n + 1) // 2, the skip u on 0 .. target - n.

    >>> Decoder(index_sampling=PoSE(target=128)).index_sampling.target
    128

    Attributes:
        target: length to be prepared for; the largest index is target - 1.
    """

    target: int
    room_field = "target"

    def _words_needed(self, size: int) -> int:
        return 2

    def indices(self, words: UInt64[ndarray, "count words"], size: int) -> Int64[ndarray, "count size"]:
        self._check_words(words, size)
        first = 1 + bounded(words[:, :1], (size + 1) // 2)
        skip = bounded(words[:, 1:], self.target - size + 1)
        place = np.arange(size)
        return place + np.where(place >= first, skip, 0)


@register
class Randomized(_Within):
    """Randomized positions (Ruoss et al., 2023): a uniformly random n-subset of 0 .. target - 1, in ascending order.

    >>> Decoder(index_sampling=Randomized(target=128)).index_sampling.target
    128

    Attributes:
        target: number of indices there are.
    """

    target: int
    room_field = "target"

    def _words_needed(self, size: int) -> int:
        return size

    def indices(self, words: UInt64[ndarray, "count words"], size: int) -> Int64[ndarray, "count size"]:
        self._check_words(words, size)
        # Floyd's method: n draws for n members, whatever the target. At step s draw from 0 .. largest; a value that
        # is already in is replaced by ``largest``, which cannot be in yet.
        members = np.empty((len(words), size), dtype=np.int64)
        for step in range(size):
            largest = self.target - size + step
            drawn = bounded(words[:, step], largest + 1)
            taken = (members[:, :step] == drawn[:, None]).any(axis=1)
            members[:, step] = np.where(taken, largest, drawn)
        members.sort(axis=1)
        return members
