"""Prompts of uniform tokens, independent or all different, for the layout ``BOS prompt = response EOS``."""

from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.response_layout import FixedFormat, prompt_vocabulary
from sparsity_lab.generators.stream import Ints, Stream, bounded, permutations, whole
from sparsity_lab.generators.task import Draw, ranks_of_distinct
from sparsity_lab.settings import SettingError

_MOST_DISTINCT = 4096


class UniformPrompt(FixedFormat):
    """Base of tasks with a prompt of uniform tokens on 0 .. num_inputs - 1: independent, or different if
    ``distinct``.

    A subclass with a field for the number of tokens names it in ``size_field``. It may declare ``distinct`` as a
    field, and the recurring symbols in ``pattern``. By default the vocabulary is these tokens, ``=`` and BOS/EOS.
    """

    size_field: ClassVar[str] = ""
    distinct: bool = False

    @property
    def num_inputs(self) -> int:
        """The number of tokens that can be in a prompt, which come first in the vocabulary."""
        return int(getattr(self, self.size_field))

    def check(self) -> None:
        if self.size_field:
            whole(self.size_field, self.num_inputs, 2)
        if self.distinct and self.num_inputs > _MOST_DISTINCT:
            expected = f"at most {_MOST_DISTINCT}, since all symbols are different"
            raise SettingError(self.size_field, expected, self.num_inputs)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if self.distinct and length > self._longest:
            raise SettingError("length", f"at most {self.size_field} = {self.num_inputs} for {self}", length)

    @property
    def _longest(self) -> int:
        """Of prompts whose symbols are all different."""
        return self.num_inputs

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return (min(3, self.num_inputs), min(24, self.num_inputs)) if self.distinct else (3, 24)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary(map(str, range(self.num_inputs)))

    def prompt_length(self, length: int) -> int:
        return length

    def pattern(self, length: int) -> Int64[np.ndarray, " P"]:
        """If ``distinct``, the index of the symbol at each place of a prompt. By default all are different."""
        return np.arange(self.prompt_length(length))

    def _symbols(self, prompts: Ints, length: int) -> Ints:
        """(B, n) the different symbols of each prompt, in order of first occurrence."""
        return prompts[:, np.unique(self.pattern(length), return_index=True)[1]]

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        count, P = out.shape
        if self.distinct:
            words = stream.words("distinct", length, start, count, self.num_inputs)
            out[:] = permutations(words)[:, self.pattern(length)]
        else:
            out[:] = drawn_tokens(stream, length, start, count, P, self.num_inputs)

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        inside = bool(((prompts >= 0) & (prompts < self.num_inputs)).all())
        if not self.distinct:
            return inside
        symbols = self._symbols(prompts, length)
        different = (np.diff(np.sort(symbols, axis=1), axis=1) != 0).all()
        return bool(inside and different and (symbols[:, self.pattern(length)] == prompts).all())

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, length = self.prompts_of(tokens)
        return {"values": Draw(ranks_of_distinct(self._symbols(prompts, length)) if self.distinct else prompts)}

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        marginals = np.zeros((self.prompt_length(length), self.vocabulary.size))
        marginals[:, : self.num_inputs] = 1 / self.num_inputs
        return marginals


def drawn_tokens(stream: Stream, length: int, start: int, count: int, per_sequence: int, bound: int) -> Ints:
    """(count, per_sequence) tokens uniform on 0 .. bound - 1, from the words that other tasks' backgrounds use."""
    words = stream.words("background", length, start, count, (per_sequence + 1) // 2)
    return bounded(np.ascontiguousarray(words, dtype="<u8").view("<u4"), bound)[:, :per_sequence]
