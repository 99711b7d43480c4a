"""Formal languages: ``Membership`` asks whether a word is in a language. ``FormalLanguage`` predicts the next symbol.

Words of a length are uniform, in the language or outside. Both layouts are this lab's.
"""

from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.languages import Dyck, Language, Runs, Tomita, check_words, log2_sizes, word_laws
from sparsity_lab.generators.query_layout import rows_of_chunks
from sparsity_lab.generators.response_layout import OneAnswer, prompt_vocabulary
from sparsity_lab.generators.stream import Ints, Stream, open_unit, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.settings import register


@register
class Membership(OneAnswer):
    """Whether a word belongs to a language: ``BOS x_1 .. x_n = r EOS``. The length is n.

    Half of the words are in the language, and uniform over its words of length n. The other half are uniform over all
    other strings of length n.

    IDs: s for all x, s + 1 for ``=``, s for r. All x are sources of r. The source of EOS is ``=``.

    >>> print(sequence_text(Membership(language=Tomita(number=1)).sample(Stream(seed=0), 0, 1, 5).view(0)))
    BOS/EOS [1] [1] [1] [1] [0] [=] <no> <BOS/EOS>
            1   1   1   1   1   2   1

    Attributes:
        language: Tomita, Dyck or Runs.
    """

    language: Language = Tomita()

    @classmethod
    def examples(cls) -> "tuple[Membership, ...]":
        return cls(), cls(language=Tomita(number=5)), cls(language=Dyck(kinds=2, depth=2))

    def check_length(self, length: int) -> None:
        super().check_length(length)
        check_words(self, self.language, length, (0, 1), "a length with words inside and outside the language")

    def has_length(self, length: int) -> bool:
        """Whether there are words of this length both in the language and outside."""
        return all(np.isfinite(size) for size in log2_sizes(self.language, length))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        def next_from(length: int) -> int:
            return next(n for n in range(length, length + 200) if self.has_length(n))

        return next_from(4), next_from(24)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary([*self.language.symbols, "no", "yes"])

    @property
    def _no(self) -> int:
        return len(self.language.symbols)

    def prompt_length(self, length: int) -> int:
        return length

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        inside = (stream.words("labels", length, start, len(out), 1)[:, 0] >> np.uint64(63)).view(np.int64)
        unit = open_unit(stream.words("words", length, start, len(out), length))
        word_laws(self.language, length).draw(unit, inside, out)

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
        inside = self._final(prompts)
        word = word_laws(self.language, length).coins(prompts, inside, log2_sizes(self.language, length))
        return {"values": Draw(inside[:, None]), "word": Draw(word)}

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return self._no + self._final(prompts)[:, None]

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        marginals = np.zeros((length, self.vocabulary.size))
        marginals[:, : self._no] = word_laws(self.language, length).marginals.mean(axis=1)
        return marginals

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        return np.array([[0.0] * self._no + [0.5, 0.5, 0.0, 0.0]])

    def answer(self, prompt: tuple[int, ...]) -> int:
        return self._no + self.language.contains(tuple(self.language.symbols[token] for token in prompt))


@register
class FormalLanguage(Task):
    """``BOS x_1 .. x_(n-1)`` with the next symbol scored at every position: words of a language, uniform over those
    of length n. The length is n, which equals T.

    The optimum weighs each next symbol by the number of words that continue with it. It depends on all symbols
    before, so sources are not listed.

    >>> FormalLanguage(language=Dyck(kinds=1, depth=1)).vocabulary.names
    ('(', ')', 'BOS')

    Attributes:
        language: Tomita, Dyck or Runs.
    """

    language: Language = Dyck(kinds=2, depth=3)

    @classmethod
    def examples(cls) -> "tuple[FormalLanguage, ...]":
        return cls(), cls(language=Runs())

    def check_length(self, length: int) -> None:
        super().check_length(length)
        check_words(self, self.language, length, (1,), "a length with words in the language")

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        def next_from(length: int) -> int:
            return next(n for n in range(length, length + 200) if np.isfinite(log2_sizes(self.language, n)[1]))

        return next_from(6), next_from(24)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        symbols = self.language.symbols
        return Vocabulary(names=(*symbols, "BOS"), roles=("data",) * len(symbols) + ("special",))

    @property
    def _bos(self) -> int:
        return len(self.language.symbols)

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, start, count = self.checked_length(length), whole("start", start, 0), whole("count", count, 0)
        words = np.empty((count, length), dtype=np.int64)
        laws = word_laws(self.language, length)
        for rows, first in rows_of_chunks(start, count, length):
            chunk = words[rows]
            unit = open_unit(stream.words("words", length, first, len(chunk), length))
            laws.draw(unit, np.ones(len(chunk), dtype=np.int64), chunk)
        tokens = np.concatenate([np.full((count, 1), self._bos), words[:, :-1]], axis=1)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(words), vocabulary=self.vocabulary)

    @cached_property
    def _transitions(self) -> list[list[int]]:
        rows: list[list[int]] = self.language.automaton.transitions.tolist()
        return rows

    def _chances(self, length: int) -> Float[np.ndarray, "n S A"]:
        """Probability of each next symbol in each state, after each number of symbols."""
        cumulative = word_laws(self.language, length).cumulative[:, 1]
        return np.diff(np.pad(cumulative, ((0, 0), (0, 0), (1, 1)), constant_values=(0.0, 1.0)), axis=2)

    def truth(self, length: int) -> Truth:
        from scipy.special import entr  # noqa: PLC0415

        length = self.checked_length(length)
        laws, chances = word_laws(self.language, length), self._chances(length)
        labels = np.pad(laws.marginals[:, 1], ((0, 0), (0, 1)))
        states = np.eye(1, laws.transitions.shape[0])[0]
        loss, accuracy = np.empty(length), np.empty(length)
        for t, chance in enumerate(chances):
            loss[t], accuracy[t] = states @ entr(chance).sum(axis=1), states @ chance.max(axis=1)
            states = np.bincount(laws.transitions.reshape(-1), (states[:, None] * chance).reshape(-1), len(states))
        return Truth.of_labels(
            labels,
            num_targets=length,
            bayes_accuracy=float(accuracy.mean()),
            bayes_loss=float(loss.mean()),
            bayes_loss_by_slot=loss,
            build_marginals=partial(self._marginals, labels),
        )

    def _marginals(self, labels: Float[np.ndarray, "n V"]) -> Float[np.ndarray, "n V"]:
        return np.concatenate([np.eye(self.vocabulary.size)[[self._bos]], labels[:-1]])

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        length, words = tokens.shape[1], tokens[:, 1:]
        inside = np.ones(len(tokens), dtype=np.int64)
        word = word_laws(self.language, length).coins(words, inside, log2_sizes(self.language, length))
        return {"values": Draw(word)}

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        transitions, open_states, state = self._transitions, _open_states(self.language, len(tokens)), 0
        for t, symbol in enumerate(tokens):
            if (symbol == self._bos) != (t == 0):
                raise ValueError(f"expected BOS at the beginning alone, got {tokens}")
            state = state if t == 0 else transitions[state][symbol]
            if state not in open_states[len(tokens) - t]:
                raise ValueError(f"expected the beginning of a word, got {tokens}")
        return tuple(Step(t) for t in range(len(tokens)))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        count, length = tokens.shape
        chances, transitions = self._chances(length), self.language.automaton.transitions
        wrong = f"these tokens are not sequences of {self}"
        if (tokens[:, 0] != self._bos).any() or (tokens[:, 1:] >= self._bos).any() or (tokens < 0).any():
            raise ValueError(wrong)
        posterior = np.zeros((count, length, self.vocabulary.size))
        state, index = np.zeros(count, dtype=np.int64), np.arange(count)
        for t in range(length):
            posterior[:, t, :-1] = chances[t, state]
            if t + 1 < length:
                symbol = tokens[:, t + 1]
                if not posterior[index, t, symbol].all():
                    raise ValueError(wrong)
                state = transitions[state, symbol]
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(posterior))[batch.scored]


@lru_cache(maxsize=16)
def _open_states(language: Language, length: int) -> list[set[int]]:
    """The states from which a word can still be completed, by the number of symbols left."""
    automaton = language.automaton
    found = [set(np.flatnonzero(automaton.accepting).tolist())]
    for _ in range(length):
        found.append({s for s, row in enumerate(automaton.transitions.tolist()) if found[-1] & set(row)})
    return found
