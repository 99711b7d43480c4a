"""The task contract: what a generator returns and declares.

Shapes: B batch, T sequence positions, C kinds of position ID, K sources of a target, V vocabulary, M slots. *Slot* j
is the j-th scored target of each sequence that has one. Targets of one sequence depend on each other, but those of
one slot do not. So laws are declared and tested by slot.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.dataset import Lengths, TaskDataset
from sparsity_lab.generators.stream import Floats, Ints, Stream, whole
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError
from sparsity_lab.settings.markup import Markup, table


class NotComputable(Exception):
    """The task's exact Bayes predictor cannot be computed. The message says why.

    >>> batch = SparseMarkov().sample(Stream(seed=0), 0, 1, 24)
    >>> SparseMarkov().log_posterior(batch).shape
    torch.Size([24, 8])
    """


class Step(NamedTuple):
    """One scored target, as computed by an observer who knows the task and sees only the tokens.

    >>> Step(position=9, sources=(2, 5), answer=1).sources
    (2, 5)

    Attributes:
        position: position at which the target is scored.
        sources: positions that enter the rule, ascending.
        answer: the noiseless target; None if the task declares a distribution instead of a rule.
    """

    position: int
    sources: tuple[int, ...] = ()
    answer: int | None = None


class Draw(NamedTuple):
    """Random choices behind sequences, read from their tokens (see ``Task.draws``).

    >>> Draw(np.array([[0, 3], [2, 1]])).values.shape
    (2, 2)

    Attributes:
        values: (B, D) integers from 0, or -1 where the choice was not made. If D = T, column t belongs to position t.
        together: True if the columns of one sequence depend on each other, like the places of a set; otherwise they
            are independent.
        law: (size,) probabilities of the values, if they are not declared elsewhere.
    """

    values: Int64[np.ndarray, "B D"]
    together: bool = False
    law: Float[np.ndarray, " size"] | None = None


@runtime_checkable
class PositionLaw(Protocol):
    """The declared law of a set of positions of ``tokens``: of a target's sources, or of the scored positions.

    >>> isinstance(Planted(k=2).truth(8).position_law, PositionLaw)
    True
    """

    def order_pmf(self) -> Floats:
        """(K, T): probability that the j-th smallest member is at position t. Rows sum to the share of sequences
        whose set has at least j + 1 members."""
        ...

    def pmf(self, sources: Ints) -> Floats:
        """(N, K) ascending sets, padded with -1 at the end, to (N,) probabilities."""
        ...

    def support_size(self) -> int:
        """Number of sets with positive probability."""
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class Truth:
    """The declarations of a task about its sequences at one length. A field that does not apply is None. All others
    are certified.

    Accuracies, and losses in nats, are averaged first over the scored targets of a sequence, then over sequences, as
    in the evaluation.

    Attributes:
        k: number of sources of a scored target (the largest, if it varies).
        num_targets: number of scored targets of a sequence, or the probabilities of 0, 1, 2, .. if it varies.
        chance_accuracy, chance_loss: of the best predictor that knows the slot but sees no tokens: the probability of
            the most common label, and the entropy of the label.
        bayes_accuracy, bayes_loss: of the exact optimum, which knows the task and sees the tokens up to the target.
        bayes_loss_by_slot: (M,), the same loss for each slot.
        position_law: law of the source set, or one law for each slot.
        target_law: law of the set of scored positions.
        label_noise: probability that a target differs from the rule's answer.
        labels: the L tokens that can be targets, ascending.
        label_distribution: probability of each token as the target, (V,) for all slots or (M, V).
        build_joint: a function that makes ``token_label_joint``, which is large, on first use; for tasks with one
            target. Use a method of the task or ``functools.partial`` of it, not a lambda, so that it can be pickled.
        build_marginals: a function that makes ``token_marginals`` if there is no joint.
        label_free_subsets: True if every proper subset of a target's source tokens is independent of it, as for
            parity.
        label_free_bystanders: True if a target is independent of each single token before it, or at it, that is not a
            source.
        value_distribution: (V,), law of each source token; for tasks with one target.
        independent_values: for tasks with one target. True if source tokens are independent of each other and of
            their positions, and all other tokens except marks are independent of each other and of the sources.
        independent_background: True if tokens with the role ``"background"`` are independent of each other and of
            their positions.
        shown_answers: False if a scored target is not the next token.
        largest_position_id: the largest coupled position ID, 0 if there are none.
    """

    k: int | None = None
    num_targets: int | Floats | None = 1
    chance_accuracy: float | None = None
    chance_loss: float | None = None
    bayes_accuracy: float | None = None
    bayes_loss: float | None = None
    bayes_loss_by_slot: Floats | None = None
    position_law: PositionLaw | tuple[PositionLaw, ...] | None = None
    target_law: PositionLaw | None = None
    label_noise: float = 0.0
    labels: tuple[int, ...] | None = None
    label_distribution: Floats | None = None
    build_joint: Callable[[], Floats] | None = None
    build_marginals: Callable[[], Floats] | None = None
    label_free_subsets: bool | None = None
    label_free_bystanders: bool | None = None
    value_distribution: Floats | None = None
    independent_values: bool | None = None
    independent_background: bool | None = None
    shown_answers: bool = True
    largest_position_id: int = 0

    @classmethod
    def of_labels(cls, law: Float[np.ndarray, "M V"], **more: Any) -> "Truth":
        """A truth with the labels and chance levels that follow from the law of each slot's target, and other
        fields."""
        from scipy.special import entr  # noqa: PLC0415

        return cls(
            chance_accuracy=float(law.max(axis=1).mean()),
            chance_loss=float(entr(law).sum(axis=1).mean()),
            labels=tuple(np.flatnonzero(law.any(axis=0)).tolist()),
            label_distribution=law,
            **more,
        )

    @classmethod
    def of_uniform_labels(cls, number: int, vocab_size: int, **more: Any) -> "Truth":
        """As ``of_labels``, for targets that are uniform on the first tokens. By default the tokens before determine
        them."""
        law = np.where(np.arange(vocab_size) < number, 1 / number, 0.0)
        levels: dict[str, Any] = {"chance_accuracy": 1 / number, "chance_loss": float(np.log(number))}
        levels |= {"bayes_accuracy": 1.0, "bayes_loss": 0.0, "labels": tuple(range(number))}
        return cls(**levels | {"label_distribution": law} | more)

    @cached_property
    def token_label_joint(self) -> Floats | None:
        """(T, V, L), joint probability of the token at each position and the target. It holds all information of
        single positions on the label. The certificate tests all of it, so that no position is a shortcut."""
        return self.build_joint() if self.build_joint else None

    @cached_property
    def token_marginals(self) -> Floats | None:
        """(T, V), probability of each token at each position; a row of NaN if it is not declared."""
        if self.build_marginals:
            return self.build_marginals()
        return None if self.token_label_joint is None else np.asarray(self.token_label_joint.sum(axis=2))

    def declared(self) -> dict[str, str]:
        """The declared fields as text, by name: numbers unchanged, arrays and laws by kind and size."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        made = {"build_joint": "token_label_joint", "build_marginals": "token_marginals"}
        return {made.get(name, name): _in_words(value) for name, value in values.items() if value is not None}

    def __repr__(self) -> str:
        return "Truth(" + ", ".join(f"{name}={words}" for name, words in self.declared().items()) + ")"

    def _repr_html_(self) -> Markup:
        return table(["declared", ""], [(name.replace("_", " "), words) for name, words in self.declared().items()])

    def law_of_slot(self, slot: int) -> PositionLaw | None:
        """Law of the source set of the targets of one slot."""
        return self.position_law[slot] if isinstance(self.position_law, tuple) else self.position_law

    def labels_of_slot(self, slot: int) -> Floats | None:
        """(V,), probability of each token as the target of one slot."""
        declared = self.label_distribution
        return declared if declared is None or declared.ndim == 1 else np.asarray(declared[slot])


def ranks_of_distinct(values: Int64[np.ndarray, "B n"]) -> Int64[np.ndarray, "B n"]:
    """For rows of n distinct numbers, the rank of each number among those that are not taken by earlier ones. The
    ranks are independent, and uniform on 0 .. K - 1 - j, if the rows are uniform arrangements of n out of 0 .. K - 1.

    >>> ranks_of_distinct(np.array([[2, 0, 1]])).tolist()
    [[2, 0, 0]]
    """
    taken = (values[:, None, :] < values[:, :, None]) & np.tri(values.shape[1], k=-1, dtype=bool)
    return np.asarray(values - taken.sum(axis=2))


def _in_words(value: object) -> str:
    """A declared value as text: arrays and long tuples by their first entries or shape, laws by their kind."""
    match value:
        case np.ndarray(ndim=1) | tuple() if len(value) > 8 or isinstance(value, np.ndarray):
            shown = ", ".join(f"{one:.4g}" if isinstance(one, float) else _in_words(one) for one in value[:8])
            return f"[{shown}, … {len(value)} in all]" if len(value) > 8 else f"[{shown}]"
        case np.ndarray():
            return f"array of shape {value.shape}"
        case tuple():
            return f"({', '.join(_in_words(one) for one in value)})"
        case float():
            return f"{value:.6g}"
        case bool() | int():
            return str(value)
        case _:
            return "declared" if callable(value) else type(value).__name__


class Task(Setting, family="task"):
    """A generator of sequences with declared truth.

    A new task is one file: a class with this base, the methods below and ``@register``. It then appears in the
    command line, the sweeps, the documentation and the shared tests.
    """

    largest = LARGEST_SIZE

    extra_positions: ClassVar[int] = 0
    """T minus the length, if this is constant; otherwise override ``sequence_length``."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The tokens, with names and roles."""

    @property
    @abstractmethod
    def certified_lengths(self) -> tuple[int, ...]:
        """Lengths at which ``certify`` checks this task."""

    @property
    def shortest_length(self) -> int:
        """The smallest length that has sequences."""
        return 1

    def check_length(self, length: int) -> None:
        """Raise ``SettingError`` if sequences of this length cannot be made."""
        if length < self.shortest_length:
            raise SettingError("length", f"at least {self.shortest_length} for {self}", length)

    def checked_length(self, length: int) -> int:
        """The length as a Python integer, since numpy's integers overflow; ``SettingError`` if it has no
        sequences."""
        length = whole("length", length, None)
        self.check_length(length)
        return length

    @abstractmethod
    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        """Sequences ``start .. start + count - 1`` of the stream at this length.

        Raises:
            SettingError: the length is too small or too large for the task.
        """

    @abstractmethod
    def truth(self, length: int) -> Truth:
        """The declared truth about sequences of this length."""

    @abstractmethod
    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...] | None:
        """The scored targets of one sequence, in order of position, as an observer who knows the task computes them
        from the tokens alone. It serves the certificate, is independent of ``sample``, and is simple rather than
        fast. None if the tokens do not determine them (a mixture whose component is unknown).

        Raises:
            ValueError: the tokens are not a sequence of this task.
        """

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]] | None:
        """The coupled IDs of one sequence, one list for each kind, from its tokens alone. Like ``solve``, it serves
        the certificate. None for a task without coupling."""
        return None

    @abstractmethod
    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        """Log-probabilities of the exact Bayes predictor, which knows the task and sees the tokens up to each
        scored position; float64, rows in the order of ``batch.scored.nonzero()``.

        Raises:
            NotComputable: the predictor has no closed form for this task; the message says why.
            ValueError: the tokens are not sequences of this task.
        """

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        """The random choices behind these sequences, read from their tokens. They are independent of each other. The
        targets depend on those named ``"values"`` and ``"noise"``, and on no others. ``certify`` is most sensitive to
        choices with a small alphabet, such as the rank of a token among the possible ones.

        If this is empty, ``certify`` uses the choices that ``truth`` declares independent.

        Args:
            name: name of the stream, for tasks that draw from other data in training.

        Raises:
            ValueError, LookupError: the tokens are not sequences of this task.
        """
        return {}

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " B"]:
        """Log-probability of each sequence's tokens under this task, -inf for impossible ones; float64. A mixture
        needs it to weigh its components.

        Raises:
            NotComputable: the task does not define it.
        """
        raise NotComputable(f"{self.kind} does not compute the probability of its tokens")

    def dataset(
        self,
        stream: Stream,
        length: int | Lengths,
        batch_size: int,
        *,
        steps: int | None = None,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> TaskDataset:
        """Batches for your own training loop, as an ``IterableDataset`` of ``Batch``.

        A ``DataLoader`` takes it with ``batch_size=None``. Its workers, and processes of ``torch.distributed``, share
        the sequences without repeats. The batches and their order are the same for any number of workers.

        Args:
            length: length of all batches, or a curriculum, which gives each step a length, the same on all processes.
            batch_size: sequences per step and process.
            steps: the step to stop before. None never stops.
            start: the first step, to continue an interrupted loop.
            rank, world_size: of this process among those that share the data. None asks ``torch.distributed`` when
                the batches are made: 0 of 1 without a process group.

        Raises:
            SettingError: the task does not have this length, a number is out of range, or a growing curriculum has no
                number of steps.

        >>> from sparsity_lab.generators import Planted, Stream
        >>> data = Planted(k=2).dataset(Stream(), 16, batch_size=4, steps=3)
        >>> [tuple(batch.tokens.shape) for batch in data]
        [(4, 18), (4, 18), (4, 18)]
        """
        return TaskDataset(
            self, stream, length, batch_size, steps=steps, start=start, rank=rank, world_size=world_size
        )

    @property
    def reads_files(self) -> bool:
        """Whether sequences are read from files that a setting names. Reports never open such files."""
        return False

    @property
    def is_planned(self) -> bool:
        """Whether the fields determine the data completely. False while the hash of a text is empty."""
        return True

    def planned(self, lengths: Sequence[int] = ()) -> Self:
        """This task with fields that identify its external data, such as the hash of a text. The data are opened and
        checked.

        Args:
            lengths: lengths that must be possible.

        Raises:
            SettingError: the data cannot be read, differ from the fields, or are too short.
        """
        return self

    def unplanned(self) -> Self:
        """This task as a user types it, without the fields that ``planned`` sets."""
        return self

    @property
    def record(self) -> dict[str, object]:
        """Facts about external data that the settings do not hold, such as the name and hash of a text."""
        return {}

    def sequence_length(self, length: int) -> int:
        """T of a sequence of this length."""
        return length + self.extra_positions

    @property
    def num_kinds(self) -> int:
        """C, the number of kinds of coupled position ID, if there are IDs."""
        return 1

    def largest_position_id(self, length: int) -> int:
        """The largest coupled position ID at this length, 0 without coupling."""
        return self.truth(length).largest_position_id
