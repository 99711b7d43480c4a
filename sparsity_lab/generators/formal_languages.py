"""``Membership``: is a word in a language? Words of the language and of its complement, each uniform at its length.

A language is a finite automaton: Tomita's seven, and bracket languages of bounded depth, which are star-free. Words
are drawn exactly, by counting over the automaton. The layout is this lab's.
"""

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.response_layout import END, OneAnswer
from sparsity_lab.generators.stream import Stream, open_unit, whole
from sparsity_lab.generators.task import Draw
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, register

__all__ = ["Dyck", "Language", "Membership", "Tomita"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

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
        """Whether a word is in the language, by its definition; the certificate holds the automaton against it."""


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


# The next state of each state at 0 and at 1, and the states that accept.
_TOMITA: dict[int, tuple[list[tuple[int, int]], list[int]]] = {
    1: ([(1, 0), (1, 1)], [0]),
    2: ([(2, 1), (0, 2), (2, 2)], [0]),
    # Even 1s; odd 1s; after an odd run of 1s an odd, and an even, number of 0s; lost.
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
class Membership(OneAnswer):
    """Whether a word belongs to a language: ``BOS x_1 .. x_n = r EOS``; the length is n.

    Half of the words are in the language. They are uniform among its words of length n, and the other half among all
    other strings of length n.

    IDs: s for all x, s + 1 for ``=``, s for r. All x are sources of r; the source of EOS is ``=``.

    Attributes:
        language: Tomita or Dyck.
    """

    language: Language = Tomita()

    @classmethod
    def examples(cls) -> "tuple[Membership, ...]":
        return cls(), cls(language=Tomita(number=5)), cls(language=Dyck(kinds=2, depth=2))

    def check_length(self, length: int) -> None:
        super().check_length(length)
        longest = _MOST_CELLS // self.language.automaton.transitions.size
        if length > longest:
            raise SettingError("length", f"at most {longest} for {self}", length)
        if not self.has_length(length):
            near = (n for step in range(1, 50) for n in (length - step, length + step) if n > 0)
            nearest = next((n for n in near if self.has_length(n)), None)
            expected = "a length with words in the language and others"
            raise SettingError("length", expected + (f", such as {nearest}" if nearest else ""), length)

    def has_length(self, length: int) -> bool:
        """Whether there are words of this length in the language, and others."""
        return all(np.isfinite(size) for size in _log2_sizes(self.language, length))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        def next_from(length: int) -> int:
            return next(n for n in range(length, length + 200) if self.has_length(n))

        return next_from(4), next_from(24)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        names = (*self.language.symbols, "no", "yes", "=", END)
        return Vocabulary(names=names, roles=("data",) * (len(names) - 2) + ("query", "special"))

    @property
    def _no(self) -> int:
        return len(self.language.symbols)

    def prompt_length(self, length: int) -> int:
        return length

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        of = _laws(self.language, length)
        inside = (stream.words("labels", length, start, len(out), 1)[:, 0] >> np.uint64(63)).view(np.int64)
        unit = open_unit(stream.words("words", length, start, len(out), length))
        state = np.zeros(len(out), dtype=np.int64)
        for t in range(length):
            below = of.cumulative[t][inside, state]
            symbol = (unit[:, t, None] >= below).sum(axis=1)
            out[:, t] = symbol
            state = of.transitions[state, symbol]

    def _final(self, prompts: Ints) -> Ints:
        automaton = self.language.automaton
        state = np.zeros(len(prompts), dtype=np.int64)
        for symbol in prompts.T:
            state = automaton.transitions[state, symbol]
        return automaton.accepting[state].astype(np.int64)

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        return bool(((prompts >= 0) & (prompts < self._no)).all()) and (length == 0 or self.has_length(length))

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, length = self.prompts_of(tokens)
        of, inside = _laws(self.language, length), self._final(prompts)
        # Where a word stands among those of its length, as a share of them: its highest bits are fair coins.
        rank, share = np.zeros(len(prompts)), np.ones(len(prompts))
        state = np.zeros(len(prompts), dtype=np.int64)
        index = np.arange(len(prompts))
        for t, symbol in enumerate(prompts.T):
            edges = np.pad(of.cumulative[t][inside, state], ((0, 0), (1, 1)), constant_values=(0.0, 1.0))
            low = edges[index, symbol]
            rank += share * low
            share *= edges[index, symbol + 1] - low
            state = of.transitions[state, symbol]
        bits = [max(0, min(_MOST_BITS, int(size) - _SPARE_BITS)) for size in _log2_sizes(self.language, length)]
        number = np.minimum((rank * 2**_MOST_BITS).astype(np.int64), 2**_MOST_BITS - 1)
        coins = number[:, None] >> np.arange(_MOST_BITS)[::-1] & 1
        known = np.arange(_MOST_BITS) < np.array(bits)[inside][:, None]
        return {"values": Draw(inside[:, None]), "word": Draw(np.where(known, coins, -1))}

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return self._no + self._final(prompts)[:, None]

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        marginals = np.zeros((length, self.vocabulary.size))
        marginals[:, : self._no] = _laws(self.language, length).marginals
        return marginals

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return np.array([[0.0] * self._no + [0.5, 0.5, 0.0, 0.0]])

    def answer(self, prompt: tuple[int, ...]) -> int:
        return self._no + self.language.contains(tuple(self.language.symbols[token] for token in prompt))


@dataclass(frozen=True)
class _Laws:
    """How words of one length are drawn, outside and inside the language.

    Attributes:
        cumulative: (n, 2, states, symbols - 1), probability that the next symbol is at most each one.
        marginals: (n, symbols), over both.
    """

    transitions: Ints
    cumulative: Floats
    marginals: Floats


@lru_cache(maxsize=4)
def _counts(language: Language, length: int) -> tuple[Floats, Floats]:
    """(length + 1, 2, states) share of the strings that lead from each state outside, and inside, after so many more
    symbols, divided by the largest share of each number; and (length + 1, 2) the logarithms of these to base 2."""
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
def _log2_sizes(language: Language, length: int) -> tuple[float, float]:
    """Logarithms to base 2 of the number of words of a length outside, and inside, the language."""
    shares, logs = _counts(language, length)
    with np.errstate(divide="ignore"):
        outside, inside = np.log2(shares[-1][:, 0]) + logs[-1] + length * np.log2(len(language.symbols))
    return float(outside), float(inside)


@lru_cache(maxsize=4)
def _laws(language: Language, length: int) -> _Laws:
    transitions = language.automaton.transitions
    shares, _ = _counts(language, length)
    S, A = transitions.shape
    cumulative, marginals = np.empty((length, 2, S, A - 1)), np.zeros((length, A))
    law = np.zeros((2, S))
    law[:, 0] = 0.5
    for t in range(length):
        weights = shares[length - t - 1][:, transitions]
        total = weights.sum(axis=2, keepdims=True)
        chance = np.divide(weights, total, out=np.full_like(weights, 1 / A), where=total > 0)
        cumulative[t] = chance.cumsum(axis=2)[:, :, :-1]
        # The last symbol of any chance closes the interval, so that rounding never picks one of none.
        cumulative[t][(chance[:, :, ::-1].cumsum(axis=2)[:, :, ::-1] == 0)[:, :, 1:]] = 1.0
        both = law[:, :, None] * chance
        marginals[t] = both.sum(axis=(0, 1))
        law = np.stack([np.bincount(transitions.reshape(-1), one.reshape(-1), S) for one in both])
    return _Laws(transitions, cumulative, marginals)
