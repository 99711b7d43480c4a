"""Languages as finite automata: Tomita's seven, bracket languages of bounded depth, and runs.

Words of a length are drawn exactly, by counting over the automaton.
"""

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.stream import Floats, Ints, whole
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, register

_MOST_STATES = 2000
_MOST_CELLS = 10_000_000  # of positions, states and symbols: 160 MB of probabilities
_MOST_BITS = 16
_SPARE_BITS = 12  # so that the highest bits of a rank are uniform to 2^-12


@dataclass(frozen=True)
class Automaton:
    """A deterministic finite automaton that starts in state 0.

    Attributes:
        transitions: (states, symbols), the next state.
        accepting: (states,).
    """

    transitions: Ints
    accepting: NDArray[np.bool_]


class Language(Setting, family="language"):
    """A regular language."""

    largest = LARGEST_SIZE

    @property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """The alphabet."""

    @cached_property
    @abstractmethod
    def automaton(self) -> Automaton:
        """A finite automaton that accepts the words of the language."""

    @abstractmethod
    def contains(self, word: tuple[str, ...]) -> bool:
        """Whether a word is in the language, by definition. The certificate compares the automaton with it."""


@register
class Tomita(Language):
    """Tomita's languages over 0 and 1.

    1: only 1s. 2: (10)*. 3: no odd run of 1s is followed by an odd run of 0s. 4: no 000. 5: even numbers of 0s and of
    1s. 6: the numbers of 0s and of 1s are equal modulo 3. 7: 0*1*0*1*.

    Attributes:
        number: 1 to 7.
    """

    number: int = 4

    def check(self) -> None:
        if not 1 <= whole("number", self.number, 1) <= 7:
            raise SettingError("number", "one of Tomita's languages, 1 to 7", self.number)

    @property
    def symbols(self) -> tuple[str, ...]:
        return "0", "1"

    @cached_property
    def automaton(self) -> Automaton:
        table, accepting = _TOMITA[self.number]
        return Automaton(np.array(table), np.isin(np.arange(len(table)), accepting))

    def contains(self, word: tuple[str, ...]) -> bool:
        text = "".join(word)
        zeros, ones = text.count("0"), text.count("1")
        match self.number:
            case 1:
                return zeros == 0
            case 2:
                return text == "10" * (len(text) // 2)
            case 3:
                runs = text.replace("01", "0 1").replace("10", "1 0").split()
                pairs = itertools.pairwise(runs)
                return not any(a[0] == "1" and len(a) % 2 and len(b) % 2 for a, b in pairs)
            case 4:
                return "000" not in text
            case 5:
                return zeros % 2 == 0 and ones % 2 == 0
            case 6:
                return (zeros - ones) % 3 == 0
            case _:
                return text.replace("01", "0 1").replace("10", "1 0").count(" ") <= (3 if text[:1] == "0" else 2)


# The next state of each state at 0 and at 1, and the accepting states.
_TOMITA: dict[int, tuple[list[tuple[int, int]], list[int]]] = {
    1: ([(1, 0), (1, 1)], [0]),
    2: ([(2, 1), (0, 2), (2, 2)], [0]),
    # An even run of 1s; an odd run of 1s; after it an odd number of 0s; after it an even number of 0s; rejected.
    3: ([(0, 1), (2, 0), (3, 4), (2, 1), (4, 4)], [0, 1, 3]),
    4: ([(1, 0), (2, 0), (3, 0), (3, 3)], [0, 1, 2]),
    5: ([(1, 2), (0, 3), (3, 0), (2, 1)], [0]),
    6: ([(1, 2), (2, 0), (0, 1)], [0]),
    7: ([(0, 1), (2, 1), (2, 3), (4, 3), (4, 4)], [0, 1, 2, 3]),
}


@register
class Dyck(Language):
    """Balanced brackets of several kinds that are never nested deeper than ``depth``.

    Attributes:
        kinds: kinds of bracket.
        depth: the deepest nesting, at least 1.
    """

    kinds: int = 1
    depth: int = 3

    def check(self) -> None:
        whole("kinds", self.kinds, 1)
        whole("depth", self.depth, 1)
        if self.kinds > 4:
            raise SettingError("kinds", "at most 4", self.kinds)
        if self._num_stacks(self.depth) > _MOST_STATES:
            deepest = max(depth for depth in range(_MOST_STATES) if self._num_stacks(depth) <= _MOST_STATES)
            raise SettingError("depth", f"at most {deepest} for {self.kinds} kinds", self.depth)

    def _num_stacks(self, depth: int) -> int:
        return depth + 1 if self.kinds == 1 else sum(self.kinds**i for i in range(min(depth, 16) + 1))

    @property
    def symbols(self) -> tuple[str, ...]:
        return (*"([{<"[: self.kinds], *")]}>"[: self.kinds])

    @cached_property
    def automaton(self) -> Automaton:
        kinds, sizes = range(self.kinds), range(self.depth + 1)
        stacks = [stack for size in sizes for stack in itertools.product(kinds, repeat=size)]
        state, lost = {stack: i for i, stack in enumerate(stacks)}, len(stacks)
        rows = [
            [state.get((*stack, kind), lost) for kind in kinds]
            + [state[stack[:-1]] if stack[-1:] == (kind,) else lost for kind in kinds]
            for stack in stacks
        ]
        return Automaton(np.array([*rows, [lost] * (2 * self.kinds)]), np.arange(lost + 1) == 0)

    def contains(self, word: tuple[str, ...]) -> bool:
        open_brackets: list[str] = []
        for symbol in word:
            if symbol in "([{<":
                open_brackets.append(symbol)
            elif not open_brackets or "([{<".index(open_brackets.pop()) != ")]}>".index(symbol):
                return False
            if len(open_brackets) > self.depth:
                return False
        return not open_brackets


@register
class Runs(Language):
    """One run of each symbol, in order: a+ b+ c+ for three symbols. This is a star-free language.

    Attributes:
        num_symbols: 2 to 26.
    """

    num_symbols: int = 3

    def check(self) -> None:
        if not 2 <= whole("num_symbols", self.num_symbols, 2) <= 26:
            raise SettingError("num_symbols", "at most 26", self.num_symbols)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple("abcdefghijklmnopqrstuvwxyz"[: self.num_symbols])

    @cached_property
    def automaton(self) -> Automaton:
        k = self.num_symbols
        lost = k + 1
        # State i: the last symbol was the i-th.
        rows = [[s + 1 if s in (i - 1, i) else lost for s in range(k)] for i in range(k + 1)]
        return Automaton(np.array([*rows, [lost] * k]), np.arange(k + 2) == k)

    def contains(self, word: tuple[str, ...]) -> bool:
        return tuple(symbol for symbol, _ in itertools.groupby(word)) == self.symbols


@dataclass(frozen=True)
class WordLaws:
    """The law of words of one length, outside and inside the language.

    Attributes:
        cumulative: (n, 2, states, symbols - 1), probability that the next symbol is at most each symbol.
        marginals: (n, 2, symbols), probability of each symbol at each position.
    """

    transitions: Ints
    cumulative: Floats
    marginals: Floats

    def draw(self, unit: Floats, inside: Ints, out: Ints) -> None:
        """Fill ``out`` (B, n) with words from uniform numbers; ``inside`` (B,) is 1 for words of the language."""
        state = np.zeros(len(out), dtype=np.int64)
        for t, below in enumerate(self.cumulative):
            symbol = (unit[:, t, None] >= below[inside, state]).sum(axis=1)
            out[:, t] = symbol
            state = self.transitions[state, symbol]

    def coins(self, words: Ints, inside: Ints, log2_sizes: tuple[float, float]) -> Ints:
        """(B, 16): the highest bits of each word's rank among the words of its length and kind, from its first
        symbols. A bit is -1 if there are too few words to make it a fair coin."""
        rank, share = np.zeros(len(words)), np.ones(len(words))
        state, index = np.zeros(len(words), dtype=np.int64), np.arange(len(words))
        for t, symbol in enumerate(words.T):
            edges = np.pad(self.cumulative[t][inside, state], ((0, 0), (1, 1)), constant_values=(0.0, 1.0))
            low = edges[index, symbol]
            rank += share * low
            share *= edges[index, symbol + 1] - low
            state = self.transitions[state, symbol]
        missing = (len(self.cumulative) - words.shape[1]) * np.log2(self.transitions.shape[1])
        bits = [max(0, min(_MOST_BITS, int(size - missing) - _SPARE_BITS)) for size in log2_sizes]
        number = np.minimum((rank * 2**_MOST_BITS).astype(np.int64), 2**_MOST_BITS - 1)
        coins = number[:, None] >> np.arange(_MOST_BITS)[::-1] & 1
        return np.where(np.arange(_MOST_BITS) < np.array(bits)[inside][:, None], coins, -1)


@lru_cache(maxsize=4)
def _counts(language: Language, length: int) -> tuple[Floats, Floats]:
    """Two arrays. The first, (length + 1, 2, states), is the share of strings of each length that lead from each
    state to a rejecting or an accepting state. It is divided by the largest share for that length. The second,
    (length + 1, 2), is the base-2 logarithm of these divisors."""
    automaton = language.automaton
    shares = [np.stack([~automaton.accepting, automaton.accepting]).astype(np.float64)]
    logs = [np.zeros(2)]
    for _ in range(length):
        mean = shares[-1][:, automaton.transitions].mean(axis=2)
        largest = mean.max(axis=1)
        safe = np.where(largest > 0, largest, 1.0)
        shares.append(mean / safe[:, None])
        logs.append(logs[-1] + np.log2(safe))
    return np.stack(shares), np.stack(logs)


@lru_cache(maxsize=256)
def log2_sizes(language: Language, length: int) -> tuple[float, float]:
    """Base-2 logarithms of the numbers of words of a length outside and inside the language."""
    shares, logs = _counts(language, length)
    with np.errstate(divide="ignore"):
        outside, inside = np.log2(shares[-1][:, 0]) + logs[-1] + length * np.log2(len(language.symbols))
    return float(outside), float(inside)


@lru_cache(maxsize=4)
def word_laws(language: Language, length: int) -> WordLaws:
    """The law of the next symbol, for which all words of a kind are equally likely."""
    transitions = language.automaton.transitions
    shares, _ = _counts(language, length)
    S, A = transitions.shape
    cumulative, marginals = np.empty((length, 2, S, A - 1)), np.zeros((length, 2, A))
    law = np.zeros((2, S))
    law[:, 0] = 1.0
    for t in range(length):
        weights = shares[length - t - 1][:, transitions]
        total = weights.sum(axis=2, keepdims=True)
        chance = np.divide(weights, total, out=np.full_like(weights, 1 / A), where=total > 0)
        cumulative[t] = chance.cumsum(axis=2)[:, :, :-1]
        # The last possible symbol closes the interval, so that rounding never picks an impossible one.
        cumulative[t][(chance[:, :, ::-1].cumsum(axis=2)[:, :, ::-1] == 0)[:, :, 1:]] = 1.0
        both = law[:, :, None] * chance
        marginals[t] = both.sum(axis=1)
        law = np.stack([np.bincount(transitions.reshape(-1), one.reshape(-1), S) for one in both])
    return WordLaws(transitions, cumulative, marginals)


def check_words(subject: Setting, language: Language, length: int, kinds: tuple[int, ...], expected: str) -> None:
    """Raise ``SettingError`` with the nearest possible length if the language has no words of this length (kind 1),
    or no others (kind 0), or if the tables are too large."""
    longest = _MOST_CELLS // language.automaton.transitions.size
    if length > longest:
        raise SettingError("length", f"at most {longest} for {subject}", length)

    def has(size: int) -> bool:
        return all(np.isfinite(log2_sizes(language, size)[kind]) for kind in kinds)

    if not has(length):
        near = (n for step in range(1, 50) for n in (length - step, length + step) if n > 0)
        nearest = next((n for n in near if has(n)), None)
        raise SettingError("length", expected + (f", such as {nearest}" if nearest else ""), length)
