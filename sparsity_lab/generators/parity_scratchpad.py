"""``ParityScratchpad`` and ``ParityAnswer``: parity of all bits, in steps or at once; and ``EvenPairs``.

With running parities, each target depends on two tokens at any length: sparse for each token, dense in total. The
answer alone depends on all n bits, and is the negative control. IDs are those of the position-coupling code (arXiv
2405.20671), with start s. All three tasks draw the same bits from the same stream.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.response_layout import OneAnswer, RunningResponse
from sparsity_lab.generators.uniform_prompt import UniformPrompt
from sparsity_lab.settings import SettingError, register


class _BitString(UniformPrompt):
    """Base of the parity tasks: a prompt of n uniform bits, answered with bits."""

    label_free_subsets = True
    label_free_bystanders = True

    @property
    def num_inputs(self) -> int:
        return 2

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return np.tile([0.5, 0.5, 0.0, 0.0], (self.response_length(length), 1))


@register
class ParityScratchpad(RunningResponse, _BitString):
    """The parity of all bits, with every running parity: ``BOS x_1 .. x_n = r_1 .. r_n EOS`` with
    r_j = x_1 + .. + x_j mod 2. The length is n.

    IDs: s + 1 .. s + n for the bits, s for ``=``, s + 1 .. s + n for the prefix parities. The sources of r_j are x_j
    and r_(j-1), or only x_1 for r_1. That of EOS is ``=``, which is at the position after x_n.

    >>> print(sequence_text(ParityScratchpad().sample(Stream(seed=0), 0, 1, 4).view(0)))
    BOS/EOS [1] [0] [0] [1] [=] <1> <1> <1> <0> <BOS/EOS>
            2   3   4   5   1   2   3   4   5

    Attributes:
        reverse: whether to begin with the last bit, r_j = x_n + .. + x_(n+1-j) mod 2. IDs are then s .. s + n - 1 for
            the bits, s + n for ``=``, and s + n - 1 down to s for the parities. The sources of r_j are x_(n+1-j) and
            r_(j-1). The source of EOS is BOS, which is at the position before x_1.
    """

    reverse: bool = False

    @classmethod
    def examples(cls) -> "tuple[ParityScratchpad, ...]":
        return cls(), cls(reverse=True)

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.asarray(np.bitwise_xor.accumulate(prompts[:, ::-1] if self.reverse else prompts, axis=1))

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        if not self.reverse:
            return super().ids_from(start, length)
        return [[0, *range(start, start + length + 1), *range(start + length - 1, start - 1, -1), 0]]

    def slot_sources(self, length: int) -> list[list[int]]:
        if not self.reverse:
            return super().slot_sources(length)
        return [[length], *([length - j, length + 1 + j] for j in range(1, length)), [0]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        steps: list[tuple[list[int], int]] = []
        for done in range(1, equals):
            place = equals - done if self.reverse else done
            summed = tokens[place:equals] if self.reverse else tokens[1 : place + 1]
            steps.append(([place, equals + done - 1] if done > 1 else [place], summed.count(1) % 2))
        return [*steps, ([0 if self.reverse else equals], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        if not self.reverse:
            return super().define_position_ids(tokens)
        equals = tokens.index(self.equals)
        return [[min(t, 2 * equals - t) for t in range(len(tokens))]]


@register
class ParityAnswer(OneAnswer, _BitString):
    """The parity of all bits: ``BOS x_1 .. x_n = r EOS`` with r = x_1 + .. + x_n mod 2. The length is n.

    IDs: s for all bits, s + 1 for ``=``, s for the answer. All bits are sources of the answer, k = n. The source of
    EOS is ``=``, after which there are no more bits.

    >>> print(sequence_text(ParityAnswer().sample(Stream(seed=0), 0, 1, 4).view(0)))
    BOS/EOS [1] [0] [0] [1] [=] <0> <BOS/EOS>
            1   1   1   1   2   1
    """

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.asarray(prompts.sum(axis=1, keepdims=True) & 1)

    def answer(self, prompt: tuple[int, ...]) -> int:
        return prompt.count(1) % 2


@register
class EvenPairs(OneAnswer, _BitString):
    """Whether the number of pairs ``01`` and ``10`` is odd: ``BOS x_1 .. x_n = r EOS``. The length is n.

    Each such pair is a change, so r = x_1 + x_n mod 2. The answer depends only on the two ends, at any distance. This
    follows Deletang et al. (arXiv 2207.02098). IDs: s for all bits, s + 1 for ``=``, s for the answer. The sources of
    r are x_1 and x_n. The source of EOS is ``=``.

    >>> print(sequence_text(EvenPairs().sample(Stream(seed=0), 0, 1, 4).view(0)))
    BOS/EOS [1] 0 0 [1] [=] <0> <BOS/EOS>
            1   1 1 1   2   1
    """

    def check_length(self, length: int) -> None:
        if length < 2:
            raise SettingError("length", f"at least 2 for {self}, which has pairs", length)

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return np.asarray(prompts[:, :1] ^ prompts[:, -1:])

    def slot_sources(self, length: int) -> list[list[int]]:
        return [[1, length], [length + 1]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        return [([1, equals - 1], self.answer(tokens[1:equals])), ([equals], self.end)]

    def answer(self, prompt: tuple[int, ...]) -> int:
        return sum(a != b for a, b in pairwise(prompt)) % 2
