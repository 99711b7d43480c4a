"""Planted rules: the label as a function of the k planted values, the same at every length.

Values are independent and uniform on 0 .. q - 1, where q is the size of the planted alphabet. Labels are 0 .. m - 1.
"""

from abc import abstractmethod
from functools import lru_cache

import numpy as np

from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, whole
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, register


class Rule(Setting, family="rule"):
    """A map from k planted values to a label."""

    largest = LARGEST_SIZE

    def check_use(self, k: int, planted_vocab: int) -> None:
        """Raise ``SettingError`` (with paths relative to the task) if the rule cannot take k values of this
        alphabet."""

    @abstractmethod
    def num_labels(self, planted_vocab: int) -> int:
        """m."""

    @abstractmethod
    def apply(self, values: Ints, planted_vocab: int) -> Ints:
        """Labels of (count, k) values, shape (count,)."""

    @abstractmethod
    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        """The label of one tuple, written like the definition. The certificate compares ``apply`` with it."""

    @abstractmethod
    def joint(self, k: int, planted_vocab: int) -> Floats:
        """(k, q, m): joint probability of the j-th value and the label."""

    def label_free_subsets(self, k: int, planted_vocab: int) -> bool:
        """True if every proper subset of the values is independent of the label."""
        return False


class _ResidueRule(Rule):
    """Sum of the values modulo m."""

    @abstractmethod
    def modulus(self) -> int: ...

    def num_labels(self, planted_vocab: int) -> int:
        return self.modulus()

    def apply(self, values: Ints, planted_vocab: int) -> Ints:
        return np.asarray(values.sum(axis=1) % self.modulus())

    def joint(self, k: int, planted_vocab: int) -> Floats:
        m = self.modulus()
        single = np.bincount(np.arange(planted_vocab) % m, minlength=m) / planted_vocab
        others = np.zeros(m)
        others[0] = 1.0
        for _ in range(k - 1):  # circular convolution: add the residue of one more value
            others = np.array([np.dot(others, single[(y - np.arange(m)) % m]) for y in range(m)])
        value, label = np.arange(planted_vocab)[:, None], np.arange(m)[None, :]
        one = others[(label - value) % m] / planted_vocab
        return np.broadcast_to(one, (k, planted_vocab, m)).copy()

    def label_free_subsets(self, k: int, planted_vocab: int) -> bool:
        # If the residue of one missing value is uniform, the sum is uniform.
        return planted_vocab % self.modulus() == 0


@register
class Parity(_ResidueRule):
    """Sum of the planted values modulo 2.

    >>> Parity().apply(np.array([[1, 1], [0, 1]]), 2).tolist()
    [0, 1]
    """

    def modulus(self) -> int:
        return 2

    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        odd = False
        for value in values:
            odd ^= bool(value & 1)
        return int(odd)


@register
class SumMod(_ResidueRule):
    """Sum of the planted values modulo ``m``.

    Attributes:
        m: the modulus, which is also the number of labels.
    """

    m: int = 3

    @classmethod
    def examples(cls) -> "tuple[SumMod, ...]":
        return cls(), cls(m=5)

    def check(self) -> None:
        whole("m", self.m, 2)

    def modulus(self) -> int:
        return self.m

    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        total = sum(values)
        while total >= self.m:
            total -= self.m
        return total


@register
class Majority(Rule):
    """1 if more than half of the planted bits are 1, else 0; a tie (even k) gives 0.

    >>> Majority().apply(np.array([[1, 1, 0], [0, 1, 0]]), 2).tolist()
    [1, 0]
    """

    def check_use(self, k: int, planted_vocab: int) -> None:
        if planted_vocab != 2:
            raise SettingError("planted_vocab", "2, since Majority counts bits", planted_vocab)

    def num_labels(self, planted_vocab: int) -> int:
        return 2

    def apply(self, values: Ints, planted_vocab: int) -> Ints:
        return np.asarray(2 * values.sum(axis=1) > values.shape[1], dtype=np.int64)

    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        return int(values.count(1) > values.count(0))

    def joint(self, k: int, planted_vocab: int) -> Floats:
        from scipy.stats import binom  # noqa: PLC0415

        # The label is 1 if and only if the other k - 1 bits have more than k / 2 - value ones.
        ones = np.array([binom.sf(k // 2 - value, k - 1, 0.5) for value in (0, 1)]) / 2
        return np.broadcast_to(np.stack([0.5 - ones, ones], axis=1), (k, 2, 2)).copy()


@register
class First(Rule):
    """The first planted value. The others are decoys, so one dependency is enough.

    >>> First().apply(np.array([[1, 0], [0, 1]]), 2).tolist()
    [1, 0]
    """

    def num_labels(self, planted_vocab: int) -> int:
        return planted_vocab

    def apply(self, values: Ints, planted_vocab: int) -> Ints:
        return values[:, 0].copy()

    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        return next(iter(values))

    def joint(self, k: int, planted_vocab: int) -> Floats:
        table = np.full((k, planted_vocab, planted_vocab), 1 / planted_vocab**2)
        table[0] = np.eye(planted_vocab) / planted_vocab
        return table


@register
class Lookup(Rule):
    """A random table of labels, fixed by ``seed``: q^k entries, uniform on 0 .. q - 1.

    The entry of values z_1 .. z_k has index sum_j z_j q^(k - j). A table may have at most 2^20 entries.

    Attributes:
        seed: of the table.
    """

    seed: int = 0

    @classmethod
    def examples(cls) -> "tuple[Lookup, ...]":
        return cls(), cls(seed=4)

    def check_use(self, k: int, planted_vocab: int) -> None:
        if k * np.log2(planted_vocab) > 20:
            raise SettingError("rule", "a Lookup table of at most 2^20 entries", f"{planted_vocab}^{k} entries")
        table = self.table(k, planted_vocab)
        if (table == table[0]).all():
            raise SettingError("rule.seed", "a seed whose Lookup table is not constant", self.seed)

    def num_labels(self, planted_vocab: int) -> int:
        return planted_vocab

    def table(self, k: int, planted_vocab: int) -> Ints:
        """The (q^k,) labels."""
        return _lookup_table(self.seed, k, planted_vocab)

    def apply(self, values: Ints, planted_vocab: int) -> Ints:
        k = values.shape[1]
        return np.asarray(self.table(k, planted_vocab)[values @ planted_vocab ** np.arange(k - 1, -1, -1)])

    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        k = len(values)
        return int(self.table(k, planted_vocab).reshape((planted_vocab,) * k)[values])

    def joint(self, k: int, planted_vocab: int) -> Floats:
        cube = self.table(k, planted_vocab).reshape((planted_vocab,) * k)
        rows = [np.moveaxis(cube, j, 0).reshape(planted_vocab, -1) for j in range(k)]
        counts = [[np.bincount(row, minlength=planted_vocab) for row in by_value] for by_value in rows]
        return np.asarray(np.array(counts) / planted_vocab**k)


@lru_cache(maxsize=64)
def _lookup_table(seed: int, k: int, planted_vocab: int) -> Ints:
    entries = planted_vocab**k
    words = Stream(seed=seed, name="lookup").words(f"table of {planted_vocab} symbols", k, 0, 1, entries)
    table = bounded(words[0], planted_vocab)
    table.flags.writeable = False
    return table
