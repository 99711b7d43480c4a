"""The random choices behind sequences, as columns of numbers that are uncorrelated if the choices are independent.

A *choice* is a background token, a value, a position, whether a label is noise, or the index in the stream. Each
choice is expanded into Walsh functions, +1 or -1 by the parity of some of its bits. They are centered and scaled to
variance one where the choice was made, and are 0 elsewhere. If choices are independent, a product of their columns
has mean zero and variance one. If all Walsh functions are used, any dependence of two choices shows in some pair of
columns.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.certify.findings import spread
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.generators.stream import Ints
from sparsity_lab.generators.task import Draw

Floats = NDArray[np.float32]

_LARGEST_COMPLETE = 16  # larger alphabets are compared by their bits
_LARGEST_LISTED = 1 << 16
_BINS = 8  # of places
_BLOCKS = 16  # of the stream
_MOST_TOGETHER = 8
_MOST_SLOTS = 64
_ANY = 2**30
_FOLLOWED = 6  # standard errors


@dataclass(frozen=True)
class Choices:
    """P choices of N sequences.

    Attributes:
        values: (N, P), -1 where the choice was not made.
        family: (P,) choices of one family may depend on each other.
        free: (P,) True if the targets are independent of the choice.
        position: (P,) the position, if the choice is the token there; else -1.
        names: the kinds of choices, each once.
    """

    values: Ints
    family: Ints
    free: NDArray[np.bool_]
    position: Ints
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Ints, name: str, *, free: bool = True, together: bool = False) -> "Choices":
        """Choices of one kind, which are not tokens at known positions."""
        every = np.arange(values.shape[1])
        return cls(values, 0 * every if together else every, np.full(len(every), free), 0 * every - 1, (name,))

    def only(self, keep: NDArray[np.bool_], rows: Ints | slice = slice(None)) -> "Choices":
        """The choices in ``keep``, for the sequences in ``rows``."""
        kept = self.values[rows][:, keep]
        return Choices(kept, self.family[keep], self.free[keep], self.position[keep], self.names)

    def beside(self, other: "Choices") -> "Choices":
        """These choices, and others of the same sequences that are independent of them."""
        above = int(self.family.max(initial=-1)) + 1
        return Choices(
            np.concatenate([self.values, other.values], axis=1),
            np.concatenate([self.family, above + other.family]),
            np.concatenate([self.free, other.free]),
            np.concatenate([self.position, other.position]),
            (*self.names, *other.names),
        )


@lru_cache(maxsize=1)
def choices_of(sample: DrawnSequences) -> Choices:
    """All known choices: the task's draws (or the choices that its truth declares independent), the noise, and the
    index in the stream, on which nothing may depend."""
    N, T = sample.tokens.shape
    parts = []
    draws = draws_of(sample)
    for name, draw in draws.items():
        values = draw.values
        values = np.where(values < 0, -1, values - values.min(initial=_ANY, where=values >= 0))
        if draw.together:
            values = values[:, spread(values.shape[1], _MOST_TOGETHER)]
            values = np.concatenate([np.where(values < 0, -1, values & 3), _binned(values)], axis=1)
        choices = Choices.of(values, name, free=name not in {"values", "noise"}, together=draw.together)
        if values.shape[1] == T and not draw.together:
            choices = replace(choices, position=np.arange(T))
        parts.append(choices.only(values.max(axis=0, initial=-1) > 0))
    if "noise" not in draws and (noise := sample.noise).size:
        kept = noise[:, (noise >= 0).any(axis=0)]
        parts.append(Choices.of(kept[:, spread(kept.shape[1], _MOST_SLOTS)], "noise", free=False))
    i = np.arange(N)
    index = np.stack([i & 15, i * _BLOCKS // N, i % 3, i % 5], axis=1)
    return reduce(Choices.beside, [*parts, Choices.of(index, "place in the stream", together=True)])


def draws_of(sample: DrawnSequences) -> dict[str, Draw]:
    """The task's draws. If it gives none, the choices that its truth declares independent: source tokens, their
    places, and all other tokens except marks."""
    if sample.draws:
        return sample.draws
    truth, roles = sample.truth, np.array(sample.task.vocabulary.roles)
    if truth.independent_values and sample.one_target:
        (slot,) = sample.slots
        others = np.where(slot.free, slot.tokens, -1)
        return {
            "values": Draw(slot.source_tokens),
            "background": Draw(others),
            "places": Draw(slot.sources, together=True),
        }
    if truth.independent_background:
        return {"background": Draw(np.where(roles[sample.tokens] == "background", sample.tokens, -1))}
    return {}


def _binned(values: Ints) -> Ints:
    """The index of each value's bin, out of up to eight bins of about equal probability."""
    bins = np.full(values.shape, -1)
    for j, column in enumerate(values.T):
        present = column >= 0
        if present.any():
            edges = np.unique(np.quantile(column[present], np.arange(1, _BINS) / _BINS))
            bins[present, j] = np.searchsorted(edges, column[present], side="left")
    return bins


@dataclass(frozen=True)
class Columns:
    """C columns of N sequences.

    Attributes:
        x: (N, C).
        choice: (C,) the choice that each column is a function of.
        function: (C,) the mask of bits of its Walsh function.
        family, position: (C,) of the choice.
        bound: (C,) the largest absolute value.
        present: (N, P) 1 where a choice was made, 0 elsewhere; None if all were made.
    """

    x: Floats
    choice: Ints
    function: Ints
    family: Ints
    position: Ints
    bound: NDArray[np.float64]
    present: Floats | None

    @cached_property
    def number(self) -> NDArray[np.float64]:
        """(C,) the number of sequences in which the choice was made."""
        if self.present is None:
            return np.full(len(self.choice), float(len(self.x)))
        return np.asarray(self.present.sum(axis=0, dtype=np.float64)[self.choice])

    def variances_with(self, other: "Columns") -> NDArray[np.float64]:
        """As ``variances``, for products of one of these columns and one of ``other``, of the same sequences."""
        every = np.ones((len(self.x), 1), np.float32)
        mine, my_choice = (every, 0 * self.choice) if self.present is None else (self.present, self.choice)
        theirs, their_choice = (every, 0 * other.choice) if other.present is None else (other.present, other.choice)
        variance = np.asarray((mine.T @ theirs).astype(np.float64)[np.ix_(my_choice, their_choice)])
        if self.present is not None and len(deciding := np.flatnonzero(other.deciding)):
            variance[:, deciding] = ((other.x[:, deciding] ** 2).T @ mine)[:, my_choice].T
        if other.present is not None and len(deciding := np.flatnonzero(self.deciding)):
            variance[deciding] = ((self.x[:, deciding] ** 2).T @ theirs)[:, their_choice]
        return variance

    def variances(self, weight: Floats | None = None, start: int = 0) -> NDArray[np.float64]:
        """(C, C) variance of the summed products of two columns of independent choices and a weight, for the columns
        from ``start`` on. It is the sum of the squared weights where both choices were made.

        A choice may decide whether another is made: the place of a source leaves no room for a background token.
            Where
        the other choice was made, the square of the deciding one does not have mean 1. So it is used as it is.
        """
        square = np.ones(len(self.x), np.float32) if weight is None else weight**2
        if self.present is None:
            return np.broadcast_to(square.sum(dtype=np.float64), (len(self.choice) - start,) * 2)
        used, choice = np.unique(self.choice[start:], return_inverse=True)
        present = self.present[:, used]
        weighed = present if weight is None else present * square[:, None]
        variance = np.asarray((weighed.T @ present).astype(np.float64)[np.ix_(choice, choice)])
        if len(deciding := np.flatnonzero(self.deciding[start:])):
            block = ((self.x[:, start + deciding] ** 2).T @ weighed)[:, choice]
            variance[deciding], variance[:, deciding] = block, block.T
        return variance

    @cached_property
    def deciding(self) -> NDArray[np.bool_]:
        """(C,) True for choices that may decide whether another is made: choices that are always made, places of
        sets, and choices that are correlated with the presence of others."""
        shared = np.unique(self.family[np.unique(self.choice, return_index=True)[1]], return_counts=True)
        found = np.asarray((self.number == len(self.x)) | np.isin(self.family, shared[0][shared[1] > 1]))
        if self.present is not None:
            both = (self.present.T @ self.present)[self.choice]
            z = np.abs(self.x.T @ self.present) / np.sqrt(np.maximum(both, 1))
            found |= (z > _FOLLOWED).any(axis=1)
        return found

    def first(self, count: int) -> "Columns":
        """The same columns of the first sequences."""
        return replace(self, x=self.x[:count], present=None if self.present is None else self.present[:count])

    def ordered(self, order: Ints) -> "Columns":
        """The same columns in another order."""
        names = ("choice", "function", "family", "position", "bound")
        return replace(self, x=self.x.T[order].T, **{name: getattr(self, name)[order] for name in names})


def _functions(size: int, complete: bool) -> list[int]:
    """Bit masks. The parity of the masked bits is a Walsh function."""
    bits = max(1, (size - 1).bit_length())
    return list(range(1, 1 << bits)) if complete and size <= _LARGEST_COMPLETE else [1 << b for b in range(bits)]


def number_of_columns(choices: Choices, complete: bool) -> int:
    """An upper bound for the number of columns that ``columns`` makes."""
    return sum(len(_functions(int(size), complete)) for size in choices.values.max(axis=0, initial=0) + 1)


def _tabulated(column: Ints) -> tuple[Ints, Ints, Ints]:
    """The different values; for each entry the index of its value from 1, or 0 if it is absent; the count of each
    value."""
    where = column + 1
    if (largest := int(column.max(initial=-1))) < _LARGEST_LISTED:
        return np.arange(largest + 1), where, np.bincount(where, minlength=1)[1:]
    values, where, counts = np.unique(np.append(-1, column), return_inverse=True, return_counts=True)
    return values[1:], where[1:], counts[1:]


def columns(choices: Choices, complete: bool = False) -> Columns:
    """The bits of each choice. If ``complete``, all Walsh functions of choices with at most 16 values."""
    N, P = choices.values.shape
    sizes = choices.values.max(axis=0, initial=-1) + 1
    of_choice = {p: _functions(max(1, int(sizes[p])), complete) for p in range(P)}
    listed = [(p, mask) for p, masks in of_choice.items() for mask in masks]
    # Columns are contiguous in memory, so that products of few columns or few sequences read only those.
    x = np.empty((len(listed), N), dtype=np.float32)
    bound, used = np.zeros(len(listed)), np.zeros(len(listed), dtype=bool)
    absent = choices.values.T < 0
    present = (~absent).astype(np.float32).T if absent.any() else None
    start = 0
    for p, masks in of_choice.items():
        values, where, counts = _tabulated(choices.values[:, p])
        bits = np.bitwise_count(values & np.array(masks)[:, None]) & 1
        share = bits @ counts / max(1, int(counts.sum()))
        varies = (share > 0) & (share < 1)
        scale = np.where(varies, np.sqrt(share * (1 - share)), 1.0)
        here = slice(start, start := start + len(masks))
        used[here], bound[here] = varies, np.maximum(share, 1 - share) / scale
        tables = np.zeros((len(masks), len(values) + 1), np.float32)  # 0 for an absent choice
        tables[:, 1:] = (bits - share[:, None]) / scale[:, None]
        np.take(tables, where, axis=1, out=x[here], mode="clip")
    kept = np.array(listed, dtype=np.int64).reshape(-1, 2)[used]
    family, position = (of[kept[:, 0]] for of in (choices.family, choices.position))
    x = x if used.all() else x[used]
    return Columns(x.T, kept[:, 0], kept[:, 1], family, position, bound[used], present)
