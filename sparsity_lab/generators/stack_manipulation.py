"""``StackManipulation``: a stack after pushes and pops, top first.

This follows Deletang et al. (arXiv 2207.02098). The layout and the position IDs are this lab's.
"""

from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.response_layout import EachOfAll, prompt_vocabulary
from sparsity_lab.generators.stream import Floats, Stream, bounded
from sparsity_lab.generators.task import Draw
from sparsity_lab.settings import SettingError, register

_POP, _EMPTY = 2, 5
_LONGEST = 1000  # the law of the height takes quadratic time


@register
class StackManipulation(EachOfAll):
    """A stack and a list of operations on it: ``BOS x_1 .. x_n = r_1 .. r_n EOS``. The length is n.

    The first m tokens are the bits of a stack, bottom first, with m uniform on 1 .. n - 1. The others are ``pop``,
    ``push0`` and ``push1``, each equally likely. A pop of an empty stack does nothing. r_1 is the bit on top of the
    final stack, r_2 the one below it, and so on. Below the bottom, r is ``.``.

    IDs: s for all x and ``=``, s + j for r_j. All x are sources of each r. The source of EOS is ``=``.

    >>> print(sequence_text(StackManipulation().sample(Stream(seed=0), 0, 1, 4).view(0)))
    BOS/EOS [0] [1] [1] [pop] [=] <1> <0> <.> <.> <BOS/EOS>
            1   1   1   1     1   2   3   4   5
    """

    def check_length(self, length: int) -> None:
        if not 2 <= length <= _LONGEST:
            raise SettingError("length", f"from 2 to {_LONGEST} for {self}", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary(["0", "1", "pop", "push0", "push1", "."])

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        words = stream.words("background", length, start, len(out), length)
        size = 1 + bounded(stream.words("positions", length, start, len(out), 1), length - 1)
        out[:] = np.where(np.arange(length) < size, bounded(words, 2), _POP + bounded(words, 3))

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        bits = prompts < _POP
        in_order = bits[:, 0] & ~bits[:, -1] & (bits[:, 1:] <= bits[:, :-1]).all(axis=1)
        return bool(in_order.all() and ((prompts >= 0) & (prompts < _EMPTY)).all())

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        rows, height = np.arange(len(prompts)), np.zeros(len(prompts), dtype=np.int64)
        # The bits of the initial stack are pushed. Values above the top are ignored.
        stack = np.empty((length + 1, len(prompts)), dtype=np.int64)
        pushed, change = prompts.T % 3, np.where(prompts.T == _POP, -1, 1)
        for bits, up in zip(pushed, change, strict=True):
            stack[height, rows] = bits
            height = np.maximum(height + up, 0)
        depth = height[:, None] - 1 - np.arange(length)
        return np.where(depth >= 0, stack[np.maximum(depth, 0), rows[:, None]], _EMPTY)

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, _ = self.prompts_of(tokens)
        bits = prompts < _POP
        size = bits.sum(axis=1, keepdims=True) - 1
        choices = [np.where(bits, prompts, -1), np.where(bits, -1, prompts - _POP), size]
        return {"values": Draw(np.concatenate(choices, axis=1))}

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        bit = np.linspace(1.0, 0.0, length)[:, None]
        return bit * [1 / 2, 1 / 2, 0, 0, 0, 0, 0, 0] + (1 - bit) * [0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0]

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        # All bits are fair at any height.
        there = _heights(length)[::-1].cumsum()[-2::-1, None]
        return np.asarray(there * [1 / 2, 1 / 2, 0, 0, 0, 0, 0, 0] + (1 - there) * np.eye(8)[_EMPTY])

    def answers(self, prompt: tuple[int, ...]) -> list[int]:
        stack: list[int] = []
        for token in prompt:
            match self.vocabulary.names[token]:
                case "pop":
                    stack = stack[:-1]
                case name:
                    stack = [*stack, int(name[-1])]
        return stack[::-1] + [_EMPTY] * (len(prompt) - len(stack))


@lru_cache(maxsize=64)
def _heights(length: int) -> Floats:
    """(length + 1,) the law of the final height."""
    law = np.zeros(length + 1)
    for t in range(1, length + 1):
        moved = np.zeros_like(law)
        moved[1:] += law[:-1] * 2 / 3
        moved[:-1] += law[1:] / 3
        moved[0] += law[0] / 3
        # Initial stacks of t bits.
        law = moved
        law[t] += (t < length) / (length - 1)
    return law
