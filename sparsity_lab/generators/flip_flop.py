"""``FlipFlop``: remember the last bit that was written, past any number of bits to be ignored.

The smallest state that a model has to keep (Liu et al., arXiv 2306.00946). Here one bit is read, at the end.
"""

from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.position_laws import OneBlock
from sparsity_lab.generators.query_layout import noisy_log_posterior, query_batch, rows_of_chunks
from sparsity_lab.generators.stream import Ints, Stream, open_unit, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.generators.uniform_prompt import drawn_tokens
from sparsity_lab.settings import SettingError, register

_WRITE, _IGNORE, _READ, _BOS = 2, 3, 4, 5


@register
class FlipFlop(Task):
    """The bit that was written last: ``BOS i_1 b_1 .. i_l b_l read``, the bit after the last ``write``; the length
    is l.

    Each instruction i is ``write`` or ``ignore``, the first one ``write``. Bits are fair. The sources are the last
    ``write`` and its bit. T = 2 l + 2.

    >>> task = FlipFlop(write_share=0.5)
    >>> print(sequence_text(task.sample(Stream(seed=0), 0, 1, 3).view(0)))
    BOS write 0 write 0 [write] [0] read → 0

    Attributes:
        write_share: probability of ``write`` at each instruction after the first. The bit is about 1 / write_share
            instructions away.
    """

    write_share: float = 0.1
    certified_lengths = (6, 16, 100)

    @classmethod
    def examples(cls) -> "tuple[FlipFlop, ...]":
        return cls(), cls(write_share=0.5)

    def check(self) -> None:
        if not 0 < self.write_share < 1:
            raise SettingError("write_share", "a number between 0 and 1", self.write_share)

    def sequence_length(self, length: int) -> int:
        return 2 * length + 2

    @cached_property
    def vocabulary(self) -> Vocabulary:
        roles = ("data", "data", "cue", "cue", "query", "special")
        return Vocabulary(names=("0", "1", "write", "ignore", "read", "BOS"), roles=roles)

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, start, count = self.checked_length(length), whole("start", start, 0), whole("count", count, 0)
        tokens = np.empty((count, self.sequence_length(length)), dtype=np.int64)
        for rows, first in rows_of_chunks(start, count, 2 * length):
            chunk = tokens[rows]
            chunk[:, 0], chunk[:, -1] = _BOS, _READ
            writes = open_unit(stream.words("instructions", length, first, len(chunk), length)) < self.write_share
            writes[:, 0] = True
            chunk[:, 1:-1:2] = np.where(writes, _WRITE, _IGNORE)
            chunk[:, 2:-1:2] = drawn_tokens(stream, length, first, len(chunk), length, 2)
        last = _last_write(tokens)
        bits = np.take_along_axis(tokens, last + 1, axis=1)[:, 0]
        return query_batch(self.vocabulary, tokens, bits, partial(self._sources, stream, start, count, length))

    def _sources(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        # Draw the tokens again. If the batch kept a copy, they would be sent between processes twice.
        last = _last_write(self.sample(stream, start, count, length).tokens.numpy())
        return np.concatenate([last, last + 1], axis=1)

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        first = np.zeros(self.sequence_length(length))
        ignored = (1 - self.write_share) ** np.arange(length)[::-1]
        first[1:-1:2] = ignored * np.append(1.0, np.full(length - 1, self.write_share))
        return Truth.of_uniform_labels(
            2,
            self.vocabulary.size,
            k=2,
            position_law=OneBlock(first, width=2),
            build_marginals=partial(self._marginals, length),
            label_free_bystanders=True,
        )

    def _marginals(self, length: int) -> Float[np.ndarray, "T V"]:
        marginals = np.zeros((self.sequence_length(length), 6))
        marginals[0, _BOS] = marginals[-1, _READ] = 1.0
        marginals[1:-1:2, _WRITE], marginals[1:-1:2, _IGNORE] = self.write_share, 1 - self.write_share
        marginals[1, [_WRITE, _IGNORE]] = 1.0, 0.0
        marginals[2:-1:2, :2] = 0.5
        return marginals

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        last = _last_write(tokens) + 1
        bits = np.where(tokens < 2, tokens, -1)
        others = bits.copy()
        np.put_along_axis(others, last, -1, axis=1)
        return {
            "values": Draw(np.take_along_axis(bits, last, axis=1)),
            "background": Draw(others),
            "instructions": Draw(tokens[:, 3:-1:2] - _WRITE),
        }

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        last = max(t for t, token in enumerate(tokens) if token == _WRITE)
        return (Step(len(tokens) - 1, (last, last + 1), tokens[last + 1]),)

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        instructions, bits = tokens[:, 1:-1:2], tokens[:, 2:-1:2]
        if not (
            tokens.shape[1] % 2 == 0
            and (tokens[:, [0, 1, -1]] == [_BOS, _WRITE, _READ]).all()
            and ((instructions == _WRITE) | (instructions == _IGNORE)).all()
            and ((bits == 0) | (bits == 1)).all()
        ):
            raise ValueError(f"these tokens are not sequences of {self}")
        answers = np.take_along_axis(tokens, _last_write(tokens) + 1, axis=1)[:, 0]
        return noisy_log_posterior(answers, 2, 0.0, self.vocabulary.size)


def _last_write(tokens: Ints) -> Ints:
    """(B, 1) position of the last ``write``."""
    return np.asarray(tokens.shape[1] - 1 - (tokens[:, ::-1] == _WRITE).argmax(axis=1))[:, None]
