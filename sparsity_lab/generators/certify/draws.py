"""The random choices that sequences were made of, as columns of numbers that independence makes uncorrelated.

A *choice* is a background token, a value, a position, whether a label is noise, or where in the stream a sequence
stands. Each choice is expanded into Walsh functions, +1 or -1 by the parity of some of its bits. They are centered
and scaled to variance one where the choice was made, and are 0 elsewhere. A product of columns of different choices
then has mean zero and variance one, if they are independent. Any dependence of two choices shows in some pair of
columns, if these are complete.
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
        values: (N, P), -1 where there was no such choice.
        family: (P,) choices of one family may depend on each other.
        free: (P,) True if a choice tells nothing of the targets.
        position: (P,) where the choice is a token of that position, else -1.
        names: what is drawn, each once.
    """

    values: Ints
    family: Ints
    free: NDArray[np.bool_]
    position: Ints
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Ints, name: str, *, free: bool = True, together: bool = False) -> "Choices":
        """All of one name, which are no tokens of known positions."""
        every = np.arange(values.shape[1])
        return cls(values, 0 * every if together else every, np.full(len(every), free), 0 * every - 1, (name,))

    def only(self, keep: NDArray[np.bool_], rows: Ints | slice = slice(None)) -> "Choices":
        """Some of the choices, of some of the sequences."""
        kept = self.values[rows][:, keep]
        return Choices(kept, self.family[keep], self.free[keep], self.position[keep], self.names)

    def beside(self, other: "Choices") -> "Choices":
        """These and others of the same sequences, which are independent of them."""
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
    """All choices that are known: the task's draws, or what its truth declares independent; noise; and where in the
    stream the sequence stands, which must tell nothing."""
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
    """What the task says was drawn, or else what its truth declares independent: source tokens and places, and all
    other tokens but marks."""
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
    """Which of up to eight ranges of about equal probability each value lies in."""
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
        choice: (C,) which choice each column is a function of.
        function: (C,) which of the Walsh functions.
        family, position: (C,) of the choice.
        bound: (C,) the largest absolute value.
        present: (N, P) 1 where a choice was made, 0 elsewhere; None if all were.
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
        """(C,) in how many sequences the choice was made."""
        if self.present is None:
            return np.full(len(self.choice), float(len(self.x)))
        return np.asarray(self.present.sum(axis=0, dtype=np.float64)[self.choice])

    def variances_with(self, other: "Columns") -> NDArray[np.float64]:
        """As ``variances``, of a column of these and one of others, of the same sequences."""
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
        """(C, C) variance of the sum of the products of two columns, of independent choices, and a weight: the sum of
        the squared weights where both choices were made. Of the columns from ``start`` on.

        A choice may decide whether another is made, as a place does that leaves no room for a background token. Where
        the other was made its own square then is not 1 in the mean, and enters as it is.
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
        """(C,) True for choices that may decide whether another is made: those always made, places of sets, and those
        that others' presence is seen to follow."""
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
    """Masks of the bits whose parity is a Walsh function."""
    bits = max(1, (size - 1).bit_length())
    return list(range(1, 1 << bits)) if complete and size <= _LARGEST_COMPLETE else [1 << b for b in range(bits)]


def number_of_columns(choices: Choices, complete: bool) -> int:
    """How many ``columns`` makes, at most."""
    return sum(len(_functions(int(size), complete)) for size in choices.values.max(axis=0, initial=0) + 1)


def _tabulated(column: Ints) -> tuple[Ints, Ints, Ints]:
    """What values there are, from 0; of each entry the number of its value, from 1, or 0 if it is absent; how often
    each value comes."""
    where = column + 1
    if (largest := int(column.max(initial=-1))) < _LARGEST_LISTED:
        return np.arange(largest + 1), where, np.bincount(where, minlength=1)[1:]
    values, where, counts = np.unique(np.append(-1, column), return_inverse=True, return_counts=True)
    return values[1:], where[1:], counts[1:]


def columns(choices: Choices, complete: bool = False) -> Columns:
    """Of each choice its bits, or if ``complete`` all Walsh functions of those with at most 16 values."""
    N, P = choices.values.shape
    sizes = choices.values.max(axis=0, initial=-1) + 1
    of_choice = {p: _functions(max(1, int(sizes[p])), complete) for p in range(P)}
    listed = [(p, mask) for p, masks in of_choice.items() for mask in masks]
    # One column after the other in memory: products of few columns and of few sequences read no others.
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
        tables = np.zeros((len(masks), len(values) + 1), np.float32)  # of an absent choice 0
        tables[:, 1:] = (bits - share[:, None]) / scale[:, None]
        np.take(tables, where, axis=1, out=x[here], mode="clip")
    kept = np.array(listed, dtype=np.int64).reshape(-1, 2)[used]
    family, position = (of[kept[:, 0]] for of in (choices.family, choices.position))
    x = x if used.all() else x[used]
    return Columns(x.T, kept[:, 0], kept[:, 1], family, position, bound[used], present)
