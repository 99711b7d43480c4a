"""Order and counting: ``Sort``, ``Mode``, ``MajorityOfAll`` and ``CountSymbol``. Each target needs the whole input.

They are common probes of length generalization (Zhou et al., arXiv 2310.16028). The layout, the parameters and the
position IDs are this lab's.
"""

from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.response_layout import EachOfAll, OneAnswer, prompt_vocabulary
from sparsity_lab.generators.stream import Floats, whole
from sparsity_lab.generators.uniform_prompt import UniformPrompt
from sparsity_lab.settings import SettingError, register

_MOST_SYMBOLS, _LONGEST = 32, 1000  # beyond these, the law of the most common symbol takes seconds


@register
class Sort(EachOfAll, UniformPrompt):
    """The same numbers in ascending order: ``BOS x_1 .. x_n = r_1 .. r_n EOS``. The length is n.

    IDs: s for all x and ``=``, s + j for r_j. All x are sources of each r. The source of EOS is ``=``.

    Attributes:
        num_values: the numbers are 0 .. num_values - 1, drawn uniformly.
        distinct: no number occurs twice.
    """

    size_field: ClassVar[str] = "num_values"

    num_values: int = 32
    distinct: bool = False

    @classmethod
    def examples(cls) -> "tuple[Sort, ...]":
        return cls(num_values=8), cls(distinct=True)

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.sort(prompts, axis=1)

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        from scipy.stats import binom, hypergeom  # noqa: PLC0415

        # r_j is at most v if at least j of the numbers are.
        R, below, j = self.num_values, np.arange(1, self.num_values + 1), np.arange(length)[:, None]
        most = hypergeom.sf(j, R, below, length) if self.distinct else binom.sf(j, length, below / R)
        marginals = np.zeros((length, self.vocabulary.size))
        marginals[:, :R] = np.diff(most, axis=1, prepend=0.0)
        return marginals

    def answers(self, prompt: tuple[int, ...]) -> list[int]:
        return sorted(prompt)


@register
class Mode(OneAnswer, UniformPrompt):
    """The most common symbol, the lowest one in a tie: ``BOS x_1 .. x_n = r EOS``. The length is n.

    IDs: s for all x, s + 1 for ``=``, s for r. All x are sources of r. The source of EOS is ``=``.

    Attributes:
        alphabet_size: number of symbols, drawn uniformly.
    """

    size_field: ClassVar[str] = "alphabet_size"

    alphabet_size: int = 4

    def check(self) -> None:
        super().check()
        if self.alphabet_size > _MOST_SYMBOLS:
            raise SettingError("alphabet_size", f"at most {_MOST_SYMBOLS}", self.alphabet_size)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length > _LONGEST:
            raise SettingError("length", f"at most {_LONGEST} for {self}", length)

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        counts = np.stack([(prompts == symbol).sum(axis=1) for symbol in range(self.alphabet_size)], axis=1)
        return np.asarray(counts.argmax(axis=1)[:, None])

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return np.append(_law_of_the_mode(self.alphabet_size, length), [0.0, 0.0])[None]

    def answer(self, prompt: tuple[int, ...]) -> int:
        return max(range(self.alphabet_size), key=lambda symbol: (prompt.count(symbol), -symbol))


@register
class MajorityOfAll(OneAnswer, UniformPrompt):
    """Whether most bits are 1: ``BOS x_1 .. x_n = r EOS``, r = 1 if more than half are 1, else 0. The length is n.

    IDs: s for all x, s + 1 for ``=``, s for r. All x are sources of r. The source of EOS is ``=``.

    >>> print(sequence_text(MajorityOfAll().sample(Stream(seed=0), 0, 1, 5).view(0)))
    BOS/EOS [1] [1] [0] [0] [1] [=] <1> <BOS/EOS>
            1   1   1   1   1   2   1
    """

    @property
    def num_inputs(self) -> int:
        return 2

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.asarray(2 * prompts.sum(axis=1, keepdims=True) > length, dtype=np.int64)

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        from scipy.stats import binom  # noqa: PLC0415

        more = float(binom.sf(length // 2, length, 0.5))
        return np.array([[1 - more, more, 0.0, 0.0]])

    def answer(self, prompt: tuple[int, ...]) -> int:
        return int(prompt.count(1) > prompt.count(0))


@register
class CountSymbol(OneAnswer, UniformPrompt):
    """The count of a symbol: ``BOS x_1 .. x_n q = r EOS``, where r of the x are q. The length is n.

    Numbers have their own tokens. IDs: s for all x and q, s + 1 for ``=``, s for r. The sources of r are all x and q.
    The source of EOS is ``=``.

    Attributes:
        alphabet_size: number of symbols. The x and q are drawn uniformly.
        largest_count: the largest number with a token, and so the largest length.
    """

    size_field: ClassVar[str] = "alphabet_size"

    alphabet_size: int = 4
    largest_count: int = 64

    def check(self) -> None:
        super().check()
        whole("largest_count", self.largest_count, 1)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length > self.largest_count:
            raise SettingError("length", f"at most largest_count = {self.largest_count} for {self}", length)

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return min(3, self.largest_count), min(24, self.largest_count)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        symbols = (f"s{i}" for i in range(self.alphabet_size))
        return prompt_vocabulary([*symbols, *map(str, range(self.largest_count + 1))])

    def prompt_length(self, length: int) -> int:
        return length + 1

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.asarray(self.alphabet_size + (prompts[:, :-1] == prompts[:, -1:]).sum(axis=1, keepdims=True))

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        from scipy.stats import binom  # noqa: PLC0415

        marginals = np.zeros((1, self.vocabulary.size))
        counts = np.arange(length + 1)
        marginals[0, self.alphabet_size + counts] = binom.pmf(counts, length, 1 / self.alphabet_size)
        return marginals

    def answer(self, prompt: tuple[int, ...]) -> int:
        return self.alphabet_size + prompt[:-1].count(prompt[-1])


@lru_cache(maxsize=64)
def _law_of_the_mode(symbols: int, n: int) -> Floats:
    """(symbols,) probability that each symbol is the lowest most common one of n uniform symbols.

    Counts of uniform symbols are independent Poisson numbers, given their sum. Let p be the series of the Poisson
    probabilities. For symbol s, sum over m: p_m times coefficient n - m of (p below m)^s (p up to m)^(symbols - 1 -
    s). The probability is this sum, divided by the total for all symbols.
    """
    from scipy.stats import poisson  # noqa: PLC0415

    p = poisson.pmf(np.arange(n + 1), n / symbols)
    law = np.zeros(symbols)
    for m in range(-(-n // symbols), n + 1):
        below, up_to = (np.where(np.arange(n + 1) < most, p, 0.0) for most in (m, m + 1))
        lower, upper = _powers(below, symbols), _powers(up_to, symbols)
        for s in range(symbols):
            law[s] += p[m] * float(lower[s][: n - m + 1] @ upper[symbols - 1 - s][: n - m + 1][::-1])
    return np.asarray(law / law.sum())


def _powers(series: Floats, count: int) -> list[Floats]:
    """Powers 0 .. count - 1 of a power series, truncated at its order."""
    powers = [np.eye(1, len(series))[0]]
    for _ in range(count - 1):
        powers.append(np.convolve(powers[-1], series)[: len(series)])
    return powers
