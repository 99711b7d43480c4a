"""``Planted``: k-sparse planted correlations with controllable locality.

This is the distribution of Golowich et al. (arXiv 2502.16792), as re-created by this lab. At length l, a locality law
draws a set S of positions. The k values there come from the planted alphabet, and all other tokens from the
background. The label is a fixed rule of the planted values. Only the law of S depends on l.
"""

from functools import cached_property, lru_cache, partial
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.locality import Anchored, Geometric, Law, PowerLaw, Recent, Uniform, Window
from sparsity_lab.generators.query_layout import (
    EXTRA_POSITIONS,
    background_tokens,
    noisy_labels,
    noisy_log_posterior,
    query_batch,
    rows_of_chunks,
)
from sparsity_lab.generators.rules import First, Lookup, Majority, Parity, Rule, SumMod
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, whole
from sparsity_lab.generators.task import NotComputable, Step, Task, Truth
from sparsity_lab.settings import SettingError, register

_MOST_ENTRIES = 2**28
"""The most entries of a law's table: two GiB."""


@register
class Planted(Task):
    """A rule of k planted tokens among l: last-token prediction on ``BOS x_1 .. x_l =``.

    Attributes:
        k: number of planted tokens.
        locality: law of their places.
        rule: the label as a function of the planted values, in order of place.
        marking: how the model can identify them. ``"token"``: they have their own alphabet. ``"position"``: all
            tokens share one alphabet, and the set is drawn once. At every length it has the same distances from the
            query, or the same positions from the start. ``"cue"``: all tokens share one alphabet, and a cue token
            precedes each planted one.
        vocab_size: V, including special tokens.
        planted_vocab: q, size of the planted alphabet, tokens 0 .. q - 1.
        noise: probability that the label is replaced by a uniform other label.
        position_seed: seed of the set for ``marking="position"``.
        reference_length: length at which that set is drawn.
        coupled: give position IDs: j for the j-th planted token, k + 1 for the query, 0 for all other tokens. This
            also reveals the set, so compare with a control that has shuffled IDs.
    """

    extra_positions: ClassVar[int] = EXTRA_POSITIONS

    k: int = 3
    locality: Law = Uniform()
    rule: Rule = Parity()
    marking: Literal["token", "position", "cue"] = "token"
    vocab_size: int = 16
    planted_vocab: int = 2
    noise: float = 0.0
    position_seed: int = 0
    reference_length: int = 32
    coupled: bool = False

    @classmethod
    def examples(cls) -> "tuple[Planted, ...]":
        return (
            cls(),
            cls(k=1, vocab_size=64),
            cls(k=2, locality=Recent(width=6), rule=SumMod(m=3), planted_vocab=3, noise=0.2),
            cls(locality=PowerLaw(alpha=1.5), rule=Majority(), noise=0.1),
            cls(k=4, locality=Geometric(scale=4.0), rule=Lookup(seed=1), planted_vocab=3, coupled=True),
            cls(locality=Anchored(width=6), rule=First(), planted_vocab=4),
            cls(locality=Window(width=5), noise=0.5),
            cls(marking="position", locality=Recent(width=8), rule=Majority()),
            cls(marking="position", locality=Anchored(width=8), rule=Parity(), noise=0.05, coupled=True),
            cls(marking="position", locality=Uniform(), rule=SumMod(m=5), planted_vocab=5),
            cls(marking="cue", k=2),
            cls(marking="cue", k=3, locality=Window(width=6), rule=Majority(), noise=0.1, coupled=True),
        )

    def check(self) -> None:
        whole("k", self.k, 1)
        whole("planted_vocab", self.planted_vocab, 2)
        self.rule.check_use(self.k, self.planted_vocab)
        needed = self.planted_vocab + (2 if self.marking == "position" else 3)
        needed = max(needed, self.num_labels + (3 if self.marking == "cue" else 2))
        if self.vocab_size < needed:
            what = "planted alphabet, labels, background, cue, BOS and ="
            raise SettingError("vocab_size", f"a vocabulary of at least {needed} ({what})", self.vocab_size)
        limit = 1 - 1 / self.num_labels
        if not 0 <= self.noise <= limit + 1e-12:
            raise SettingError("noise", f"a number from 0 to 1 - 1/{self.num_labels} = {limit:.4g}", self.noise)
        whole("reference_length", self.reference_length, 1)
        if self.marking == "position":
            if self.locality.anchor is None:
                raise SettingError(
                    "locality", "a law that fixes positions, as marking='position' requires", self.locality.kind
                )
            self._check_bound()
            self._check_tables("reference_length", self.reference_length)
            if self.reference_length < self.k:
                raise SettingError("reference_length", f"at least k={self.k} positions", self.reference_length)
        else:
            self._check_bound()

    def check_length(self, length: int) -> None:
        super().check_length(length)
        self._check_tables("length", length)

    @cached_property
    def shortest_length(self) -> int:
        if self.marking == "position":
            return int(self._fixed_set.max())
        return self.k * (2 if self.marking == "cue" else 1)

    def _check_tables(self, path: str, places: int) -> None:
        entries = (self.k + 1) * (places + 1)
        if entries > _MOST_ENTRIES:
            table = (
                f"the tables have (k + 1) (positions + 1) = {entries:,} entries for k={self.k} and {places} positions"
            )
            raise SettingError(path, f"{table}; at most {_MOST_ENTRIES:,} are allowed")

    def _check_bound(self) -> None:
        bound = self.locality.bound()
        if bound and bound[1] < self.k:
            raise SettingError(f"locality.{bound[0]}", f"enough room for k={self.k}", bound[1])

    @property
    def num_labels(self) -> int:
        """Number of labels; label y is token y."""
        return self.rule.num_labels(self.planted_vocab)

    @property
    def bos(self) -> int:
        """The first token of every sequence."""
        return self.vocab_size - 1

    @property
    def query(self) -> int:
        """The token ``=``, at which the target is scored."""
        return self.vocab_size - 2

    @property
    def cue(self) -> int:
        """The token before each planted one, for ``marking="cue"``."""
        return self.vocab_size - 3

    @cached_property
    def vocabulary(self) -> Vocabulary:
        q, V = self.planted_vocab, self.vocab_size
        last_data = V - 3 if self.marking == "cue" else V - 2
        names = [str(value) for value in range(q)] + [_letter(i) for i in range(last_data - q)]
        others = "background" if self.marking == "token" else "unused"
        roles = ["planted" if self.marking == "token" else "data"] * q + [others] * (last_data - q)
        if self.marking == "cue":
            names, roles = [*names, "!"], [*roles, "cue"]
        return Vocabulary(names=(*names, "=", "BOS"), roles=(*roles, "query", "special"))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        shortest = self.shortest_length
        return max(12, shortest), max(33, shortest + 5), max(240, shortest + 50)

    @cached_property
    def _background(self) -> tuple[int, int]:
        """First token and size of the background alphabet."""
        if self.marking == "token":
            return self.planted_vocab, self.vocab_size - 2 - self.planted_vocab
        return 0, self.planted_vocab

    @cached_property
    def _fixed_set(self) -> Ints:
        """The set for ``marking="position"``: ascending places from the start, or descending distances from the
        query."""
        words = Stream(seed=self.position_seed, name="planted set").words(
            "positions", self.reference_length, 0, 1, self.k
        )
        places = self.locality.draw(words, self.reference_length)[0]
        return places if self.locality.anchor == "start" else np.asarray(self.reference_length + 1 - places)

    def _fixed_places(self, length: int) -> Ints:
        return self._fixed_set if self.locality.anchor == "start" else np.asarray(length + 1 - self._fixed_set)

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count = whole("count", count, 0)
        T = length + EXTRA_POSITIONS
        tokens = np.empty((count, T), dtype=np.int64)
        labels = np.empty(count, dtype=np.int64)
        low, size = self._background
        for rows, first in rows_of_chunks(start, count, length):
            chunk = tokens[rows]
            background_tokens(stream, first, chunk, low, size, self.bos, self.query)
            places = self._places(stream, first, len(chunk), length)
            values = bounded(stream.words("planted", length, first, len(chunk), self.k), self.planted_vocab)
            flat = places + (np.arange(len(chunk)) * T)[:, None]
            tokens.reshape(-1)[rows.start * T + flat] = values
            if self.marking == "cue":
                tokens.reshape(-1)[rows.start * T + flat - 1] = self.cue
            exact = self.rule.apply(values, self.planted_vocab)
            labels[rows] = noisy_labels(stream, first, length, exact, self.num_labels, self.noise)
        coupled = self.k if self.coupled else 0
        return query_batch(
            self.vocabulary, tokens, labels, partial(self._places, stream, start, count, length), coupled
        )

    def _places(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count, k) ascending positions of the planted tokens."""
        if self.marking == "position":
            return np.broadcast_to(self._fixed_places(length), (count, self.k))
        words = stream.words("positions", length, start, count, self.k)
        if self.marking == "token":
            return self.locality.draw(words, length)
        # Slot s_j of l - k holds a cue and a token. Each of the j - 1 slots before it takes two positions.
        return self.locality.draw(words, length - self.k) + np.arange(1, self.k + 1)

    def truth(self, length: int) -> Truth:
        from scipy.special import xlogy  # noqa: PLC0415

        length = self.checked_length(length)
        exact = self.rule.joint(self.k, self.planted_vocab)[0].sum(axis=0)
        labels = self._blur(exact)
        distribution = np.zeros(self.vocab_size)
        distribution[: self.num_labels] = labels
        others = self.num_labels - 1
        return Truth(
            k=self.k,
            chance_accuracy=float(labels.max()),
            chance_loss=float(-xlogy(labels, labels).sum()),
            bayes_accuracy=1 - self.noise,
            bayes_loss=float(0.0 - xlogy(1 - self.noise, 1 - self.noise) - xlogy(self.noise, self.noise / others)),
            position_law=PlantedPositions(task=self, length=length),
            label_noise=self.noise,
            labels=tuple(range(self.num_labels)),
            label_distribution=distribution,
            build_joint=partial(self._token_label_joint, length, labels),
            value_distribution=self._value_distribution(),
            label_free_subsets=self.rule.label_free_subsets(self.k, self.planted_vocab),
            independent_values=True,
            largest_position_id=self.k + 1 if self.coupled else 0,
        )

    def _value_distribution(self) -> Floats:
        values = np.zeros(self.vocab_size)
        values[: self.planted_vocab] = 1 / self.planted_vocab
        return values

    def _blur(self, labels: Floats) -> Floats:
        """The label distribution (last axis) after noise."""
        total = labels.sum(axis=-1, keepdims=True)
        return np.asarray((1 - self.noise) * labels + self.noise * (total - labels) / (self.num_labels - 1))

    def _token_label_joint(self, length: int, labels: Floats) -> Floats:
        V, q = self.vocab_size, self.planted_vocab
        joint = np.zeros((length + EXTRA_POSITIONS, V, self.num_labels))
        planted = self._order_pmf(length)  # (k, T)
        with_label = self._blur(self.rule.joint(self.k, q))  # (k, q, labels)
        joint[:, :q] += np.einsum("jt,jzy->tzy", planted, with_label)
        filled = planted.sum(axis=0)
        if self.marking == "cue":
            cues = np.append(filled[1:], 0.0)
            joint[:, self.cue] += cues[:, None] * labels
            filled = filled + cues
        low, size = self._background
        joint[1:-1, low : low + size] += (1 - filled[1:-1])[:, None, None] / size * labels
        joint[0, self.bos] = joint[-1, self.query] = labels
        return joint

    def _order_pmf(self, length: int) -> Floats:
        """(k, T): probability that the j-th planted token stands at position t."""
        pmf = np.zeros((self.k, length + EXTRA_POSITIONS))
        if self.marking == "position":
            pmf[np.arange(self.k), self._fixed_places(length)] = 1.0
        elif self.marking == "token":
            pmf[:, 1 : length + 1] = self.locality.order_pmf(self.k, length)
        else:
            slots = self.locality.order_pmf(self.k, length - self.k)
            for j in range(self.k):
                pmf[j, j + 2 : j + 2 + slots.shape[1]] = slots[j]
        return pmf

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        sources = self._observed_places(tokens)
        answer = self.rule.define(tuple(tokens[t] for t in sources), self.planted_vocab)
        return (Step(len(tokens) - 1, sources, answer),)

    def _observed_places(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if self.marking == "position":
            return tuple(self._fixed_places(len(tokens) - EXTRA_POSITIONS).tolist())
        if self.marking == "token":
            return tuple(t for t, token in enumerate(tokens) if token < self.planted_vocab)
        return tuple(t + 1 for t, token in enumerate(tokens) if token == self.cue)

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]] | None:
        if not self.coupled:
            return None
        ids = [0] * len(tokens)
        for j, place in enumerate(self._observed_places(tokens)):
            ids[place] = j + 1
        ids[-1] = self.k + 1
        return [ids]

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        count, T = tokens.shape
        if self.marking == "position":
            values = tokens[:, self._fixed_places(T - EXTRA_POSITIONS)]
            if values.max(initial=0) >= self.planted_vocab:
                raise ValueError(f"not sequences of {self}: unexpected tokens at the planted positions")
        else:
            marks = tokens < self.planted_vocab if self.marking == "token" else tokens == self.cue
            marked = marks[:, 1:-1] if self.marking == "token" else marks[:, :-2]
            if not ((marked.sum(axis=1) == self.k) & (marks.sum(axis=1) == self.k)).all():
                raise ValueError(f"not sequences of {self}: each needs {self.k} marked tokens")
            values = tokens[:, 1:-1][marked].reshape(count, self.k)
            if values.max(initial=0) >= self.planted_vocab:
                raise ValueError(f"not sequences of {self}: a mark must precede a planted token")
        labels = self.rule.apply(values, self.planted_vocab)
        return noisy_log_posterior(labels, self.num_labels, self.noise, self.vocab_size)

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " B"]:
        tokens, k = batch.tokens.numpy(), self.k
        count, length = tokens.shape[0], tokens.shape[1] - EXTRA_POSITIONS
        if self.marking == "position" and self.coupled:
            raise NotComputable("the coupled position IDs reveal more than the tokens")
        low, size = self._background
        likelihood = np.full(count, -np.inf)
        framed = (tokens[:, 0] == self.bos) & (tokens[:, -1] == self.query)
        if self.marking == "position":
            likely = framed & (tokens[:, 1:-1] < self.planted_vocab).all(axis=1)
            likelihood[likely] = -length * np.log(self.planted_vocab)
            return torch.from_numpy(likelihood)
        marked = tokens < self.planted_vocab if self.marking == "token" else tokens == self.cue
        others = length - k * (2 if self.marking == "cue" else 1)
        # Tokens other than marks come from the background, or, after a cue, from the same alphabet.
        plain = (tokens >= low) & (tokens < low + size)
        fitting = framed & (marked[:, 1:-1].sum(axis=1) == k) & (plain[:, 1:-1].sum(axis=1) == length - k)
        places = marked[fitting].nonzero()[1].reshape(-1, k) + (self.marking == "cue")
        with np.errstate(divide="ignore"):
            likelihood[fitting] = np.log(PlantedPositions(task=self, length=length).pmf(places))
        return torch.from_numpy(likelihood - k * np.log(self.planted_vocab) - others * np.log(size))


class PlantedPositions:
    """The declared law of the source set, in positions of the sequence (see ``PositionLaw``)."""

    def __init__(self, *, task: Planted, length: int) -> None:
        self._task = task
        self._length = length

    def order_pmf(self) -> Floats:
        return _cached_order_pmf(self._task, self._length)

    def pmf(self, sources: Ints) -> Floats:
        task, length = self._task, self._length
        if task.marking == "position":
            return np.asarray((sources == task._fixed_places(length)).all(axis=1), dtype=np.float64)
        if task.marking == "token":
            return np.asarray(np.exp(task.locality.log_pmf(sources, length)))
        slots = sources - np.arange(1, task.k + 1)
        inside = (slots[:, 0] >= 1) & (slots[:, -1] <= length - task.k)
        possible = inside & (np.diff(slots, axis=1) > 0).all(axis=1)
        legal = np.where(possible[:, None], slots, np.arange(1, task.k + 1))
        return np.where(possible, np.exp(task.locality.log_pmf(legal, length - task.k)), 0.0)

    def support_size(self) -> int:
        task = self._task
        if task.marking == "position":
            return 1
        return task.locality.support_size(task.k, self._length - (task.k if task.marking == "cue" else 0))


@lru_cache(maxsize=256)
def _cached_order_pmf(task: Planted, length: int) -> Floats:
    return task._order_pmf(length)


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"w{index}"
