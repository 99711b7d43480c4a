"""Shared parts of tasks with the layout ``BOS prompt = response EOS``, which answer with several tokens.

BOS and EOS are one token, as in the position-coupling work (arXiv 2405.20671). The response is a function of the
prompt. Its tokens and EOS are scored, each at the position before it: the first at ``=``, EOS at the last token of
the response. The source of EOS is the symbol that ends the part of the prompt that the response is made of.

Shapes: B batch, T sequence positions, P prompt tokens, R response tokens, C kinds of position ID, K sources.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import IGNORE, Batch, Vocabulary
from sparsity_lab.generators.position_laws import ListedSets
from sparsity_lab.generators.query_layout import rows_of_chunks
from sparsity_lab.generators.stream import Floats, Stream, whole
from sparsity_lab.generators.task import Step, Task, Truth

END = "BOS/EOS"
"""Name of the token at either end of a sequence."""


def prompt_vocabulary(names: Iterable[str], *roles: str) -> Vocabulary:
    """The tokens of prompt and response, then ``=`` and the token at the ends. The default role is ``"data"``."""
    names = tuple(names)
    roles += ("data",) * (len(names) - len(roles))
    return Vocabulary(names=(*names, "=", END), roles=(*roles, "query", "special"))


class ResponseTask(Task):
    """Base of the tasks with the layout ``BOS prompt = response EOS``.

    A subclass draws prompts and computes responses. Sources and position IDs follow from the tokens.

    >>> isinstance(Addition(), ResponseTask)
    True
    """

    label_free_subsets: ClassVar[bool | None] = None
    label_free_bystanders: ClassVar[bool | None] = None

    @abstractmethod
    def prompt_length(self, length: int) -> int:
        """P, the number of tokens between BOS and ``=``."""

    @abstractmethod
    def response_length(self, length: int) -> int:
        """R, the number of tokens between ``=`` and EOS."""

    @abstractmethod
    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        """Fill ``out`` with the prompts of sequences ``start .. start + B - 1``."""

    @abstractmethod
    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        """The responses to the given prompts."""

    @abstractmethod
    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        """Whether all of these prompts can be drawn at this length."""

    @abstractmethod
    def find_position_ids(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... C T"]:
        """The coupled position IDs with start 1, as at evaluation."""

    @abstractmethod
    def find_sources(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... slots K"]:
        """The sources of each of the R + 1 targets, ascending, padded with -1."""

    @abstractmethod
    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        """Probability of each token at each place of the prompt."""

    @abstractmethod
    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"] | None:
        """Probability of each token at each place of the response; None where it has no closed form."""

    @abstractmethod
    def source_laws(self, length: int) -> "tuple[ListedSets, ...]":
        """Law of the source set of each of the R + 1 targets."""

    @abstractmethod
    def largest_position_id(self, length: int) -> int:
        """The largest coupled position ID at this length, with start 1."""

    @abstractmethod
    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        """Sources and answer of each of the R + 1 targets of one sequence with ``=`` at ``equals``, as ``solve``."""

    @cached_property
    def equals(self) -> int:
        """The token ``=``, at which the first target is scored."""
        return self.vocabulary.token("=")

    @cached_property
    def end(self) -> int:
        """The token that is BOS and EOS."""
        return self.vocabulary.token(END)

    def sequence_length(self, length: int) -> int:
        return self.prompt_length(length) + self.response_length(length) + 3

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return 3, 24

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, start, count = self.checked_length(length), whole("start", start, 0), whole("count", count, 0)
        P, T = self.prompt_length(length), self.sequence_length(length)
        tokens = np.empty((count, T), dtype=np.int64)
        targets = np.full((count, T), IGNORE, dtype=np.int64)
        position_ids = np.empty((count, self.num_kinds, T), dtype=np.int64)
        equals, end = self.equals, self.end
        for rows, first in rows_of_chunks(start, count, T):
            chunk = tokens[rows]
            chunk[:, 0] = chunk[:, -1] = end
            self.draw_prompts(stream, first, chunk[:, 1 : P + 1], length)
            chunk[:, P + 1] = equals
            chunk[:, P + 2 : -1] = self.respond(chunk[:, 1 : P + 1], length)
            targets[rows, P + 1 : -1] = chunk[:, P + 2 :]
            position_ids[rows] = self.find_position_ids(chunk, length)
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(position_ids),
            partial(self._sources, stream, start, count, length),
            vocabulary=self.vocabulary,
        )

    def _sources(self, stream: Stream, start: int, count: int, length: int) -> Int64[Tensor, "B T K"]:
        # Draw the tokens again. If the batch kept a copy, they would be sent between processes twice.
        tokens = self.sample(stream, start, count, length).tokens.numpy()
        sources = self.find_sources(tokens, length)
        spread = np.full((*tokens.shape, sources.shape[-1]), -1, dtype=np.int64)
        spread[:, self.prompt_length(length) + 1 : -1] = sources
        return torch.from_numpy(spread)

    def truth(self, length: int) -> Truth:
        return self.truth_with(
            length, label_free_subsets=self.label_free_subsets, label_free_bystanders=self.label_free_bystanders
        )

    def truth_with(
        self, length: int, *, label_free_subsets: bool | None, label_free_bystanders: bool | None
    ) -> Truth:
        """The truth of a task that declares these by its fields."""
        length = self.checked_length(length)
        laws = self.source_laws(length)
        response = self.response_marginals(length)
        ends = self._always(self.end)
        make = Truth if response is None else partial(Truth.of_labels, np.concatenate([response, ends]))
        return make(
            k=max(law.sets.shape[1] for law in laws),
            num_targets=len(laws),
            bayes_accuracy=1.0,
            bayes_loss=0.0,
            bayes_loss_by_slot=np.zeros(len(laws)),
            position_law=laws,
            label_free_subsets=label_free_subsets,
            label_free_bystanders=label_free_bystanders,
            largest_position_id=self.largest_position_id(length),
            build_marginals=partial(self._token_marginals, response, length),
        )

    def _token_marginals(self, response: Floats | None, length: int) -> Floats:
        unknown = np.full((self.response_length(length), self.vocabulary.size), np.nan)
        parts = [
            self._always(self.end),
            self.prompt_marginals(length),
            self._always(self.equals),
            unknown if response is None else response,
            self._always(self.end),
        ]
        return np.concatenate(parts)

    def _always(self, token: int) -> Floats:
        """(1, V): all probability on one token."""
        return np.eye(self.vocabulary.size)[[token]]

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        equals = tokens.index(self.equals)
        if tokens[0] != self.end or tokens[-1] != self.end:
            raise ValueError(f"expected BOS and EOS at the ends, got {tokens[0]} and {tokens[-1]}")
        worked_out = self.work_out(tokens, equals)
        return tuple(
            Step(equals + j, tuple(sorted(sources)), answer) for j, (sources, answer) in enumerate(worked_out)
        )

    def prompts_of(self, tokens: Int64[np.ndarray, "B T"]) -> tuple[Int64[np.ndarray, "B P"], int]:
        """The prompts of these sequences, and their length."""
        T = tokens.shape[1]
        length = bisect_left(range(T), T, 1, key=self.sequence_length)
        return tokens[:, 1 : self.prompt_length(length) + 1], length

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        count, T = tokens.shape
        prompts, length = self.prompts_of(tokens)
        P = prompts.shape[1]
        if not (
            self.sequence_length(length) == T
            and (tokens[:, [0, P + 1, T - 1]] == [self.end, self.equals, self.end]).all()
            and self.are_prompts(prompts, length)
            and np.array_equal(tokens[:, P + 2 : -1], self.respond(prompts, length))
        ):
            raise ValueError(f"these tokens are not sequences of {self}")
        log_posterior = torch.full((count, T - P - 2, self.vocabulary.size), -torch.inf, dtype=torch.float64)
        log_posterior.scatter_(2, batch.tokens[:, P + 2 :, None], 0.0)
        return log_posterior.flatten(0, 1)


class FixedFormat(ResponseTask):
    """A task whose IDs and sources are the same in all sequences of a length."""

    def coupled_ids(self, length: int, start: int = 1) -> Int64[np.ndarray, "C T"]:
        """The coupled position IDs of every sequence. EOS has 0, and so has BOS unless the task gives it another ID.

        Args:
            start: s in the published rules, the same for all kinds. Sequences have start 1, as in evaluation.

        Raises:
            SettingError: the length does not exist, or the start is below 1.
        """
        self.check_length(length)
        return np.array(self.ids_from(whole("start", start, 1), length), dtype=np.int64)

    @abstractmethod
    def ids_from(self, start: int, length: int) -> list[list[int]]:
        """C lists of T position IDs, by the published rule."""

    @abstractmethod
    def slot_sources(self, length: int) -> list[list[int]]:
        """The sources of each of the R + 1 targets of every sequence."""

    def find_position_ids(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... C T"]:
        return self.coupled_ids(length)

    def find_sources(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... slots K"]:
        slots = [sorted(sources) for sources in self.slot_sources(length)]
        K = max(map(len, slots))
        return np.array([sources + [-1] * (K - len(sources)) for sources in slots], dtype=np.int64)

    def source_laws(self, length: int) -> "tuple[ListedSets, ...]":
        T = self.sequence_length(length)
        return tuple(ListedSets(np.array([sorted(sources)]), T) for sources in self.slot_sources(length))

    def largest_position_id(self, length: int) -> int:
        return int(self.coupled_ids(length).max())


class RunningResponse(FixedFormat):
    """``BOS x_1 .. x_n = r_1 .. r_n EOS``, where r_j depends on x_j and r_(j-1), and r_1 only on x_1.

    IDs: s + 1 .. s + n for the x, s for ``=``, s + 1 .. s + n for the r. The source of EOS is ``=``, which is at the
    position after x_n.
    """

    def response_length(self, length: int) -> int:
        return length

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = range(start + 1, start + length + 1)
        return [[0, *places, start, *places, 0]]

    def slot_sources(self, length: int) -> list[list[int]]:
        return [[1], *([1 + j, length + 1 + j] for j in range(1, length)), [length + 1]]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        ids, next_id = [], 0
        for token in tokens:
            next_id = 1 if token == self.equals else next_id + 1
            ids.append(0 if token == self.end else next_id)
        return [ids]


class EachOfAll(FixedFormat):
    """``BOS x_1 .. x_n = r_1 .. r_n EOS``, where each r depends on all x.

    IDs: s for all x and ``=``, s + j for r_j. All x are sources of each r. The source of EOS is ``=``.
    """

    def prompt_length(self, length: int) -> int:
        return length

    def response_length(self, length: int) -> int:
        return length

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        return [[0, *[start] * (length + 1), *range(start + 1, start + length + 1), 0]]

    def slot_sources(self, length: int) -> list[list[int]]:
        return [list(range(1, length + 1))] * length + [[length + 1]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        return [*((list(range(1, equals)), one) for one in self.answers(tokens[1:equals])), ([equals], self.end)]

    @abstractmethod
    def answers(self, prompt: tuple[int, ...]) -> Sequence[int]:
        """The response to one prompt, by definition. Written independently of ``respond``, for the certificate."""

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        return [[0, *(max(1, t - equals + 1) for t in range(1, len(tokens) - 1)), 0]]


class OneAnswer(FixedFormat):
    """``BOS prompt = r EOS``, where r depends on all tokens of the prompt.

    IDs: s for the prompt, s + 1 for ``=``, s for r. The sources of r are the whole prompt; that of EOS is ``=``.
    """

    def response_length(self, length: int) -> int:
        return 1

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        return [[0, *[start] * self.prompt_length(length), start + 1, start, 0]]

    def slot_sources(self, length: int) -> list[list[int]]:
        equals = self.prompt_length(length) + 1
        return [list(range(1, equals)), [equals]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        return [(list(range(1, equals)), self.answer(tokens[1:equals])), ([equals], self.end)]

    @abstractmethod
    def answer(self, prompt: tuple[int, ...]) -> int:
        """The answer to one prompt, by definition. Written independently of ``respond``, for the certificate."""

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        return [[{self.equals: 2, self.end: 0}.get(token, 1) for token in tokens]]
