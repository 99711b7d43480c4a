"""``MissingDuplicate``: a string twice, with one symbol blank. The other copy shows the missing symbol.

This follows Deletang et al. (arXiv 2207.02098). The layout, the alphabet and the position IDs are this lab's.
"""

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.position_laws import ListedSets
from sparsity_lab.generators.response_layout import ResponseTask, prompt_vocabulary
from sparsity_lab.generators.stream import Ints, Stream, bounded, whole
from sparsity_lab.generators.task import Draw
from sparsity_lab.generators.uniform_prompt import drawn_tokens
from sparsity_lab.settings import register


@register
class MissingDuplicate(ResponseTask):
    """The missing symbol: ``BOS x_1 .. x_n x_1 .. x_n = r EOS``, where one of the 2n symbols is a blank ``_`` and r
    is the symbol it hides. The length is n.

    The place of the blank is uniform. IDs: s + 1 .. s + n for either copy, s for ``=`` and r. The sources of r are
    the blank and its twin in the other copy, n tokens away. The source of EOS is ``=``.

    >>> print(sequence_text(MissingDuplicate().sample(Stream(seed=0), 0, 1, 3).view(0)))
    BOS/EOS 0 [_] 0 0 [0] 0 [=] <0> <BOS/EOS>
            2 3   4 2 3   4 1   1

    Attributes:
        alphabet_size: number of symbols, drawn uniformly.
    """

    alphabet_size: int = 2

    def check(self) -> None:
        whole("alphabet_size", self.alphabet_size, 2)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary([*map(str, range(self.alphabet_size)), "_"], *["data"] * self.alphabet_size, "cue")

    def prompt_length(self, length: int) -> int:
        return 2 * length

    def response_length(self, length: int) -> int:
        return 1

    def largest_position_id(self, length: int) -> int:
        self.check_length(length)
        return length + 1

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        count = len(out)
        out[:, :length] = drawn_tokens(stream, length, start, count, length, self.alphabet_size)
        out[:, length:] = out[:, :length]
        place = bounded(stream.words("positions", length, start, count, 1), 2 * length)
        np.put_along_axis(out, place, self.alphabet_size, axis=1)

    def _places(self, prompts: Ints) -> Ints:
        """(B, 2) the blank and its twin, from 0."""
        blank = (prompts == self.alphabet_size).argmax(axis=1)
        return np.stack([blank, (blank + prompts.shape[1] // 2) % prompts.shape[1]], axis=1)

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        inside = (prompts >= 0) & (prompts <= self.alphabet_size)
        one = (prompts == self.alphabet_size).sum(axis=1) == 1
        equal = (prompts[:, :length] == prompts[:, length:]).sum(axis=1) == length - 1
        return bool(inside.all() and one.all() and equal.all())

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.take_along_axis(prompts, self._places(prompts)[:, 1:], axis=1)

    def find_position_ids(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... C T"]:
        copy = range(2, length + 2)
        return np.array([[0, *copy, *copy, 1, 1, 0]])

    def find_sources(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... slots K"]:
        sources = np.full((len(tokens), 2, 2), -1)
        sources[:, 0] = np.sort(self._places(tokens[:, 1 : 2 * length + 1]), axis=1) + 1
        sources[:, 1, 0] = 2 * length + 1
        return sources

    def source_laws(self, length: int) -> tuple[ListedSets, ...]:
        T, first = self.sequence_length(length), np.arange(1, length + 1)
        twins = np.stack([first, first + length], axis=1)
        return ListedSets(twins, T), ListedSets(np.array([[2 * length + 1]]), T)

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, length = self.prompts_of(tokens)
        symbols = np.minimum(prompts[:, :length], prompts[:, length:])
        return {"values": Draw(np.concatenate([symbols, self._places(prompts)[:, :1]], axis=1))}

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        missing = 1 / (2 * length)
        symbols = [(1 - missing) / self.alphabet_size] * self.alphabet_size
        return np.tile([*symbols, missing, 0.0, 0.0], (2 * length, 1))

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return np.array([[1 / self.alphabet_size] * self.alphabet_size + [0.0] * 3])

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        n, blank = (equals - 1) // 2, tokens.index(self.vocabulary.token("_"))
        twin = blank + n if blank <= n else blank - n
        return [([blank, twin], tokens[twin]), ([equals], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        copy = [1 + t for t in range(1, equals // 2 + 1)]
        return [[0, *copy, *copy, 1, 1, 0]]
