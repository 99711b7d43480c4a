"""``SparseParityScratchpad``: running parity of the planted bits, with position IDs that depend on the input.

The position of the next planted bit depends on the tokens. So coupled IDs are not a function of position, and a model
must predict them to extrapolate (predictive position coupling, Golowich et al., arXiv 2502.16792). The token layout
and the IDs are this lab's.
"""

from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.locality import Uniform
from sparsity_lab.generators.position_laws import ListedSets
from sparsity_lab.generators.response_layout import ResponseTask, prompt_vocabulary
from sparsity_lab.generators.stream import Ints, Stream, bounded
from sparsity_lab.generators.task import Draw
from sparsity_lab.generators.uniform_prompt import drawn_tokens
from sparsity_lab.settings import SettingError, register

_EQUALS, _END = 4, 5
_UNIFORM = Uniform()


@register
class SparseParityScratchpad(ResponseTask):
    """The running parities of planted bits: ``BOS x_1 .. x_l = r_1 .. r_m EOS``, where r_j is the parity of the
    first j of m. The length is l.

    Tokens 0 and 1 are planted bits, and 2 and 3 are distractor bits. The planted places s_1 < .. < s_m are a uniform
    set. The sources of r_j are the j-th planted bit and r_(j-1), or only the bit for r_1. The source of EOS is ``=``,
    where the search for another planted bit ends. IDs: x_i has i + 1.

    >>> task = SparseParityScratchpad(k=2)
    >>> print(sequence_text(task.sample(Stream(seed=0), 0, 1, 4).view(0)))
    BOS/EOS [1] o o [1] [=] <1> <0> <BOS/EOS>
            2   3 4 5   2   5   6

    Attributes:
        density: share of planted bits, m = density * l, rounded, at least 1. When l grows, m grows and the gaps
            between planted bits keep their law.
        k: number of planted bits at every length, instead of a density. Then the gaps grow with l. None: by density.
        look_ahead: give each token the ID of the bit that the next token needs. ``=`` has s_1 + 1, r_j has s_(j+1) +
            1, and r_m has l + 2, because no bit is left. Otherwise r_j has the ID of the bit that it adds, s_j + 1,
            and ``=`` has 1.
        end_ids: give BOS the ID after the last bit, l + 2. Then a search for the next planted bit succeeds at the end
            too. Otherwise the model has to notice that no bit is left.
    """

    label_free_subsets: ClassVar[bool | None] = True
    label_free_bystanders: ClassVar[bool | None] = True

    density: float = 0.25
    k: int | None = None
    look_ahead: bool = True
    end_ids: bool = False

    @classmethod
    def examples(cls) -> "tuple[SparseParityScratchpad, ...]":
        return cls(density=0.5), cls(k=3, look_ahead=False), cls(end_ids=True)

    def check(self) -> None:
        if not 0 < self.density <= 1:
            raise SettingError("density", "a number above 0 and at most 1", self.density)
        if self.k is not None and self.k < 1:
            raise SettingError("k", "a whole number of at least 1, or None", self.k)

    def check_length(self, length: int) -> None:
        if length < (self.k or 1):
            raise SettingError("length", f"at least {f'k={self.k}' if self.k else 1} for {self}", length)

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return max(8, self.k or 1), max(60, (self.k or 1) + 30)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary(["0", "1", "o", "i"], "planted", "planted", "background", "background")

    def num_planted(self, length: int) -> int:
        """m, the number of planted bits at this length."""
        return self.k or max(1, int(self.density * length + 0.5))

    def prompt_length(self, length: int) -> int:
        return length

    def response_length(self, length: int) -> int:
        return self.num_planted(length)

    def largest_position_id(self, length: int) -> int:
        self.check_length(length)
        return length + (2 if self.look_ahead or self.end_ids else 1)

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        count, m = len(out), self.num_planted(length)
        words = stream.words("positions", length, start, count, m)
        index = _UNIFORM.draw(words, length) - 1
        out[:] = drawn_tokens(stream, length, start, count, length, 2) + 2
        bits = bounded(stream.words("planted", length, start, count, m), 2)
        np.put_along_axis(out, index, bits, axis=1)

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        bits = (prompts >= 0) & (prompts < _EQUALS)
        return bool(bits.all() and ((prompts < 2).sum(axis=1) == self.num_planted(length)).all())

    def _places(self, prompts: Ints, length: int) -> Ints:
        """(B, m) planted places, from 1."""
        return np.nonzero(prompts < 2)[1].reshape(len(prompts), self.num_planted(length)) + 1

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        bits = np.take_along_axis(prompts, self._places(prompts, length) - 1, axis=1)
        return np.bitwise_xor.accumulate(bits, axis=1)

    def find_position_ids(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... C T"]:
        ids = np.zeros((len(tokens), 1, tokens.shape[1]), dtype=np.int64)
        ids[:, 0, 1 : length + 1] = np.arange(2, length + 2)
        ids[:, 0, 0] = length + 2 if self.end_ids else 0
        places = self._places(tokens[:, 1 : length + 1], length)
        if self.look_ahead:
            ids[:, 0, length + 1 : -2] = places + 1
            ids[:, 0, -2] = length + 2
        else:
            ids[:, 0, length + 1] = 1
            ids[:, 0, length + 2 : -1] = places + 1
        return ids

    def find_sources(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... slots K"]:
        m = self.num_planted(length)
        sources = np.full((len(tokens), m + 1, 2), -1, dtype=np.int64)
        sources[:, :m, 0] = self._places(tokens[:, 1 : length + 1], length)
        sources[:, 1:m, 1] = np.arange(length + 2, length + m + 1)
        sources[:, m, 0] = length + 1
        return sources

    def source_laws(self, length: int) -> tuple[ListedSets, ...]:
        m, T, places = self.num_planted(length), self.sequence_length(length), np.arange(1, length + 1)
        laws = []
        for j, pmf in enumerate(_UNIFORM.order_pmf(m, length)):
            here = slice(j, length - m + 1 + j)
            sets = [places[here]] if j == 0 else [places[here], np.full(length - m + 1, length + 1 + j)]
            laws.append(ListedSets(np.stack(sets, axis=1), T, pmf[here]))
        return (*laws, ListedSets(np.array([[length + 1]]), T))

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, length = self.prompts_of(tokens)
        places = self._places(prompts, length)
        plain = np.where((tokens == 2) | (tokens == 3), tokens - 2, -1)
        values = np.take_along_axis(prompts, places - 1, axis=1)
        return {"values": Draw(values), "background": Draw(plain), "places": Draw(places, together=True)}

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        planted = self.num_planted(length) / length
        return np.tile(np.array([planted, planted, 1 - planted, 1 - planted, 0, 0]) / 2, (length, 1))

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return np.tile([0.5, 0.5, 0.0, 0.0, 0.0, 0.0], (self.num_planted(length), 1))

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        steps: list[tuple[list[int], int]] = []
        parity = 0
        for place in range(1, equals):
            if tokens[place] in (0, 1):
                parity = (parity + tokens[place]) % 2
                previous = [equals + len(steps)] if steps else []
                steps.append(([place, *previous], parity))
        return [*steps, ([equals], _END)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(_EQUALS)
        planted = [place + 1 for place in range(1, equals) if tokens[place] in (0, 1)]
        of_response = [*planted, equals + 1] if self.look_ahead else [1, *planted]
        of_start = equals + 1 if self.end_ids else 0
        return [[of_start, *(place + 1 for place in range(1, equals)), *of_response, 0]]
