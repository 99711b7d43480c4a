"""The task contract: what a generator returns, and what it declares about it.

Shapes: B batch, T sequence positions, C kinds of position ID, K sources of a target, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.stream import Stream
from sparsity_lab.settings import Setting, SettingError

__all__ = ["IGNORE", "Batch", "NotComputable", "PositionLaw", "Task", "Truth", "Vocabulary"]

IGNORE = -100
"""Target value where nothing is scored; the same as ``torch.nn.functional.cross_entropy``'s default."""


class NotComputable(Exception):
    """A task has no exact Bayes predictor that can be computed; the message says why."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a task.

    Attributes:
        names: printable name of each token; its index is the token.
        roles: role of each token, one of ``"planted"``, ``"background"``, ``"data"`` (one alphabet for both),
            ``"cue"``, ``"query"``, ``"special"``, ``"unused"``.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """V, the number of tokens."""
        return len(self.names)

    def token(self, name: str) -> int:
        """The token with this name; ``SettingError`` lists the names if there is none."""
        if name not in self.names:
            raise SettingError("token", "a token of this vocabulary", name, self.names)
        return self.names.index(name)


class Batch:
    """A batch of sequences.

    Attributes:
        tokens: (B, T) int64.
        targets: (B, T) int64, the next token where scored, ``IGNORE`` elsewhere.
        position_ids: (B, C, T) int64 coupled position IDs, 0 = none; None if the task has no coupling.
    """

    def __init__(
        self,
        tokens: Int64[Tensor, "B T"],
        targets: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None = None,
        build_sources: Callable[[], Int64[Tensor, "B T K"]] | None = None,
    ) -> None:
        self.tokens = tokens
        self.targets = targets
        self.position_ids = position_ids
        self._build_sources = build_sources

    @cached_property
    def sources(self) -> Int64[Tensor, "B T K"] | None:
        """(B, T, K) int64: positions in ``tokens`` that enter the rule for a scored target, ascending, padded with
        -1; -1 everywhere else. Built on first use. None for tasks without a rule, such as text."""
        return self._build_sources() if self._build_sources else None

    @property
    def scored(self) -> Tensor:
        """(B, T) bool: where a target is scored."""
        return self.targets != IGNORE

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __repr__(self) -> str:
        ids = "none" if self.position_ids is None else tuple(self.position_ids.shape)
        return f"Batch(tokens={tuple(self.tokens.shape)}, scored={int(self.scored.sum())}, position_ids={ids})"


@runtime_checkable
class PositionLaw(Protocol):
    """The declared law of a target's source set, in positions of ``tokens``."""

    def order_pmf(self) -> NDArray[np.float64]:
        """(K, T): probability that the j-th smallest source is at position t. Rows sum to the share of sequences
        that have at least j + 1 sources."""
        ...

    def pmf(self, sources: NDArray[np.int64]) -> NDArray[np.float64]:
        """(N, K) ascending source sets, padded with -1 at the end, to (N,) probabilities."""
        ...

    def support_size(self) -> int:
        """Number of sets with positive probability."""
        ...


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a task declares about its sequences at one length. What does not apply is None; all else is certified.

    Losses are in nats per scored target.

    Attributes:
        k: number of sources of a scored target (the largest, if it varies).
        chance_accuracy, chance_loss: of the best predictor that sees no token: the commonest label's probability
            and the entropy of the label.
        bayes_accuracy, bayes_loss: of the exact optimum that knows the task and sees the sequence.
        position_law: law of the source set.
        label_noise: probability that a target is not what the rule says.
        labels: the L tokens that can be targets.
        label_distribution: (V,), probability of each token as the target.
        build_joint: makes ``token_label_joint``, which is large.
        label_free_subsets: True if every proper subset of the planted tokens is independent of the label
            (parity and its like).
        value_distribution: (V,), law of each source token.
        independent_values: True if source tokens are independent of each other and of where they stand, and all
            other tokens but marks are independent of each other and of the sources.
        largest_position_id: the largest coupled position ID, 0 if there are none.
    """

    k: int | None = None
    chance_accuracy: float | None = None
    chance_loss: float | None = None
    bayes_accuracy: float | None = None
    bayes_loss: float | None = None
    position_law: PositionLaw | None = None
    label_noise: float = 0.0
    labels: tuple[int, ...] | None = None
    label_distribution: NDArray[np.float64] | None = None
    build_joint: Callable[[], NDArray[np.float64]] | None = None
    label_free_subsets: bool | None = None
    value_distribution: NDArray[np.float64] | None = None
    independent_values: bool | None = None
    largest_position_id: int = 0

    @cached_property
    def token_label_joint(self) -> NDArray[np.float64] | None:
        """(T, V, L), joint probability of the token at each position and the target: all that any one position can
        tell of the label. Tested whole by the certificate, so that no position is a shortcut."""
        return self.build_joint() if self.build_joint else None

    @cached_property
    def token_marginals(self) -> NDArray[np.float64] | None:
        """(T, V), probability of each token at each position."""
        return None if self.token_label_joint is None else np.asarray(self.token_label_joint.sum(axis=2))


class Task(Setting, family="task"):
    """A generator of sequences with declared truth.

    A new task is one file: a class with this base, the methods below and ``@register``. It is then in the command
    line, the sweeps, the documentation and the shared tests.
    """

    extra_positions: ClassVar[int]
    """T minus the length, a constant of the task."""

    @classmethod
    @abstractmethod
    def examples(cls) -> "tuple[Task, ...]":
        """Instances that together show every option; the shared tests and ``certify --all`` run over them."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The tokens, with names and roles."""

    @property
    @abstractmethod
    def certified_lengths(self) -> tuple[int, ...]:
        """Lengths at which ``certify`` checks this task."""

    @abstractmethod
    def check_length(self, length: int) -> None:
        """Raise ``SettingError`` if sequences of this length cannot be made."""

    @abstractmethod
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        """Sequences ``start .. start + count - 1`` of the stream at this length.

        Raises:
            SettingError: the length is too small or too large for the task.
        """

    @abstractmethod
    def truth(self, length: int) -> Truth:
        """What is declared about sequences of this length."""

    @abstractmethod
    def observed_sources(self, tokens: Int64[Tensor, "B T"]) -> list[list[int]]:
        """The sources as an observer who knows the task finds them from the tokens alone, one list a sequence; for
        the certificate. Written apart from ``sample``, simple rather than fast."""

    @abstractmethod
    def answer(self, source_tokens: tuple[int, ...]) -> int:
        """The noiseless target of one scored position from its source tokens alone; for the certificate. Written
        apart from ``sample``, simple rather than fast."""

    def define_position_ids(self, sources: tuple[int, ...], sequence_length: int) -> list[list[int]] | None:
        """The coupled IDs, one list for each kind, of a sequence with these sources; for the certificate. None for
        a task without coupling."""
        return None

    @abstractmethod
    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        """Log-probabilities of the exact Bayes predictor, which knows the task and sees the tokens up to each
        scored position; float64, rows in the order of ``batch.scored.nonzero()``.

        Raises:
            NotComputable: the predictor has no closed form for this task; the message says why.
            ValueError: the tokens are not sequences of this task.
        """

    def sequence_length(self, length: int) -> int:
        """T of a sequence of this length."""
        return length + self.extra_positions

    def largest_position_id(self, length: int) -> int:
        """The largest coupled position ID at this length, 0 without coupling."""
        return self.truth(length).largest_position_id
