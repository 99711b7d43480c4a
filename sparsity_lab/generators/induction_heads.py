"""``InductionHeads``: recall the token that followed the query's earlier occurrence.

This is a standard probe of sequence models (Olsson et al., arXiv 2209.11895), with one special trigger as in Gu and
Dao (arXiv 2312.00752). The token layout and the parameters are this lab's.
"""

from functools import cached_property, partial
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.locality import Law, PowerLaw, Uniform
from sparsity_lab.generators.position_laws import OneBlock
from sparsity_lab.generators.query_layout import (
    EXTRA_POSITIONS,
    background_tokens,
    noisy_log_posterior,
    query_batch,
    rows_of_chunks,
)
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.settings import SettingError, register


@register
class InductionHeads(Task):
    """``BOS x_1 .. x_l q``, where q occurs once before. The target is the token that follows this earlier occurrence.

    Attributes:
        data_vocab: number of ordinary tokens, 0 .. data_vocab - 1.
        trigger: ``"special"``: q is one special token, the same in all sequences. ``"any"``: q is an ordinary token,
            drawn for each sequence, and occurs nowhere else.
        locality: law of the trigger's position among x_1 .. x_{l-1}.
    """

    extra_positions: ClassVar[int] = EXTRA_POSITIONS

    data_vocab: int = 16
    trigger: Literal["special", "any"] = "special"
    locality: Law = Uniform()
    certified_lengths = (12, 33, 200)

    @classmethod
    def examples(cls) -> "tuple[InductionHeads, ...]":
        return cls(), cls(data_vocab=6, trigger="any"), cls(trigger="any", locality=PowerLaw(alpha=1.0))

    def check(self) -> None:
        whole("data_vocab", self.data_vocab, 3)

    def check_length(self, length: int) -> None:
        if length < 2:
            raise SettingError("length", "at least 2, for the trigger and the token after it", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        V = self.data_vocab
        role = "cue" if self.trigger == "special" else "unused"
        return Vocabulary(names=(*(f"d{i}" for i in range(V)), "%", "BOS"), roles=(*["data"] * V, role, "special"))

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count, V = whole("count", count, 0), self.data_vocab
        tokens = np.empty((count, length + EXTRA_POSITIONS), dtype=np.int64)
        values = np.empty(count, dtype=np.int64)
        others = V if self.trigger == "special" else V - 1  # tokens that are not the trigger
        for rows, first in rows_of_chunks(start, count, length):
            chunk = tokens[rows]
            background_tokens(stream, first, chunk, 0, others, V + 1, V)
            words = stream.words("planted", length, first, len(chunk), 2)
            values[rows] = bounded(words[:, 0], others)
            if self.trigger == "any":
                triggers = bounded(words[:, 1], V)
                chunk[:, 1:-1] += chunk[:, 1:-1] >= triggers[:, None]
                chunk[:, -1] = triggers
                values[rows] += values[rows] >= triggers
            index, place = np.arange(len(chunk)), self._places(stream, first, len(chunk), length)
            chunk[index, place] = chunk[:, -1]
            chunk[index, place + 1] = values[rows]
        sources = partial(self._trigger_and_answer, stream, start, count, length)
        return query_batch(self.vocabulary, tokens, values, sources)

    def _trigger_and_answer(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, 2) positions of the trigger and of the token after it."""
        return self._places(stream, start, count, length)[:, None] + np.arange(2)

    def _places(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count,) positions of the trigger."""
        return self.locality.draw(stream.words("positions", length, start, count, 1), length - 1)[:, 0]

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        first = np.zeros(length + EXTRA_POSITIONS)
        first[1:length] = self.locality.order_pmf(1, length - 1)[0]
        return Truth.of_uniform_labels(
            self.data_vocab,
            self.vocabulary.size,
            k=2,
            position_law=OneBlock(first, width=2),
            build_joint=partial(self._token_label_joint, first),
            # Otherwise no token is the trigger, and neither is the label.
            label_free_bystanders=self.trigger == "special",
        )

    def _token_label_joint(self, first: Floats) -> Floats:
        V = self.data_vocab
        same = np.eye(V)
        joint = np.zeros((len(first), V + 2, V))
        second = np.append(0.0, first[:-1])
        free = 1 - first - second
        joint[:, :V] += second[:, None, None] * same / V
        if self.trigger == "special":
            of_trigger = np.vstack([np.zeros((V, V)), np.full(V, 1 / V), np.zeros(V)])
            background = np.full((V, V), 1 / V**2)
        else:
            of_trigger = np.vstack([(1 - same) / (V * (V - 1)), np.zeros((2, V))])
            # Given the trigger, token and label are each one of V - 1. If they are equal, V - 1 triggers are
            # possible, else V - 2.
            background = (V - 2 + same) / (V * (V - 1) ** 2)
        joint += first[:, None, None] * of_trigger
        joint[:, :V] += free[:, None, None] * background
        joint[0], joint[-1] = 0.0, of_trigger
        joint[0, V + 1] = 1 / V
        return joint

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        index, triggers = np.arange(len(tokens))[:, None], tokens[:, -1:]
        places = (tokens[:, :-1] == triggers).nonzero()[1].reshape(len(tokens), 1)
        ranks = tokens - (tokens > triggers)  # of an ordinary token among those that are not the trigger
        values = [ranks[index, places + 1], triggers]
        ranks[:, [0, -1]] = ranks[index, places] = ranks[index, places + 1] = -1
        return {
            "values": Draw(np.concatenate(values, axis=1)),
            "background": Draw(ranks),
            "places": Draw(places, together=True),
        }

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        (place,) = [t for t, token in enumerate(tokens[:-1]) if token == tokens[-1]]
        return (Step(len(tokens) - 1, (place, place + 1), tokens[place + 1]),)

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        seen = tokens[:, :-1] == tokens[:, -1:]
        labels = tokens[:, 1:][seen]
        if not (seen.sum(axis=1) == 1).all() or seen[:, -1].any() or (labels >= self.data_vocab).any():
            raise ValueError(f"not sequences of {self}: one trigger must precede the query")
        return noisy_log_posterior(labels, self.data_vocab, 0.0, self.vocabulary.size)
