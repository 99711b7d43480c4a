"""``Mixture``: each sequence from one of several tasks."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.generators.batch import IGNORE, Batch, Vocabulary
from sparsity_lab.generators.planted import Planted
from sparsity_lab.generators.stream import Floats, Ints, Stream, open_unit, whole
from sparsity_lab.generators.task import NotComputable, Step, Task, Truth
from sparsity_lab.settings import SettingError, register

_TRIED = 256


@register
class Mixture(Task):
    """Several tasks in one: sequence i of a stream is sequence i of a randomly picked task.

    All tasks must have the same vocabulary and sequence length. Every task draws a whole batch, of which only the
    picked rows are kept. So n tasks cost n times as much as one.

    >>> Mixture(tasks=(Planted(k=1), Planted(k=3)), shares=(0.25, 0.75)).sequence_length(8)
    10

    Attributes:
        tasks: the components.
        shares: their probabilities, which sum to 1; None makes them equal.
    """

    tasks: tuple[Task, ...]
    shares: tuple[float, ...] | None = None

    @classmethod
    def examples(cls) -> "tuple[Mixture, ...]":
        return (
            cls(tasks=(Planted(k=1), Planted(k=3)), shares=(0.25, 0.75)),
            cls(tasks=(Planted(k=1, marking="position"), Planted(k=2, marking="position", noise=0.1))),
        )

    def check(self) -> None:
        if not self.tasks:
            raise SettingError("tasks", "at least one task", self.tasks)
        for i, task in enumerate(self.tasks):
            if task.vocabulary != self.vocabulary:
                raise SettingError(f"tasks[{i}]", f"a task with the vocabulary of {self.tasks[0]}", task)
        if self.shares is not None:
            if len(self.shares) != len(self.tasks):
                raise SettingError("shares", f"{len(self.tasks)} numbers, one for each task", self.shares)
            if min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-9:
                raise SettingError("shares", "positive numbers that sum to 1", self.shares)
        length = self.certified_lengths[0]
        self.check_length(length)
        kinds = {task.num_kinds for task in self.tasks if task.largest_position_id(length)}
        if len(kinds) > 1:
            raise SettingError("tasks", "tasks with the same number of kinds of position ID", sorted(kinds))

    def check_length(self, length: int) -> None:
        for i, task in enumerate(self.tasks):
            task.check_length(length)
            if task.sequence_length(length) != self.sequence_length(length):
                expected = f"a task with {self.sequence_length(length)} positions at length {length}"
                raise SettingError(f"tasks[{i}]", f"{expected}, as {self.tasks[0]}", task)

    def sequence_length(self, length: int) -> int:
        return self.tasks[0].sequence_length(length)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tasks[0].vocabulary

    @property
    def reads_files(self) -> bool:
        return any(task.reads_files for task in self.tasks)

    def planned(self, lengths: Sequence[int] = ()) -> Self:
        return self.replace(tasks=tuple(task.planned(lengths) for task in self.tasks))

    def unplanned(self) -> Self:
        return self.replace(tasks=tuple(task.unplanned() for task in self.tasks))

    @property
    def is_planned(self) -> bool:
        return all(task.is_planned for task in self.tasks)

    @property
    def record(self) -> dict[str, object]:
        return {f"tasks[{i}]": task.record for i, task in enumerate(self.tasks) if task.record}

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return tuple(max(lengths) for lengths in zip(*(task.certified_lengths for task in self.tasks), strict=False))

    @cached_property
    def probabilities(self) -> Floats:
        """(n,) the shares."""
        n = len(self.tasks)
        return np.full(n, 1 / n) if self.shares is None else np.array(self.shares)

    @cached_property
    def _depth(self) -> int:
        """The nesting depth of mixtures below this one. Each level uses another random word to pick. With the same
        word, nested mixtures would always make the same choice."""
        return max((task._depth + 1 for task in self.tasks if isinstance(task, Mixture)), default=0)

    def component(self, stream: Stream, start: int, count: int, length: int) -> Ints:
        """(count,) index of the task that each sequence comes from."""
        purpose = f"component {self._depth}" if self._depth else "component"
        unit = open_unit(stream.words(purpose, length, start, count, 1)[:, 0])
        return np.searchsorted(np.cumsum(self.probabilities)[:-1], unit, side="right")

    def _batches(self, stream: Stream, start: int, count: int, length: int) -> list[Batch]:
        return [task.sample(stream, start, count, length) for task in self.tasks]

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count, T = whole("count", count, 0), self.sequence_length(length)
        which = torch.from_numpy(self.component(stream, start, count, length))
        batches = self._batches(stream, start, count, length)
        tokens = torch.empty((count, T), dtype=torch.int64)
        targets = torch.full((count, T), IGNORE)
        kinds = max((0 if batch.position_ids is None else batch.position_ids.shape[1]) for batch in batches)
        position_ids = torch.zeros((count, kinds, T), dtype=torch.int64) if kinds else None
        for c, batch in enumerate(batches):
            rows = which == c
            tokens[rows], targets[rows] = batch.tokens[rows], batch.targets[rows]
            if position_ids is not None and batch.position_ids is not None:
                position_ids[rows] = batch.position_ids[rows]
        has_sources = any(batch.has_sources for batch in batches)
        sources = partial(self._sources, stream, start, count, length) if has_sources else None
        return Batch(tokens, targets, position_ids, sources, vocabulary=self.vocabulary)

    def _sources(self, stream: Stream, start: int, count: int, length: int) -> Tensor:
        which = torch.from_numpy(self.component(stream, start, count, length))
        found = [batch.sources for batch in self._batches(stream, start, count, length)]
        most = max(0 if own is None else own.shape[2] for own in found)
        spread = torch.full((count, self.sequence_length(length), most), -1)
        for c, own in enumerate(found):
            if own is not None:
                spread[which == c, :, : own.shape[2]] = own[which == c]
        return spread

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        truths = [task.truth(length) for task in self.tasks]
        ks = [truth.k for truth in truths if truth.k is not None]
        labels = None if any(t.labels is None for t in truths) else {y for t in truths for y in t.labels or ()}
        told_apart = self._told_apart(length)
        marginals = [truth.build_marginals or truth.build_joint for truth in truths]
        chance_accuracy, chance_loss, distribution = self._chance(truths)
        return Truth(
            k=max(ks) if ks else None,
            num_targets=self._num_targets(truths),
            chance_accuracy=chance_accuracy,
            chance_loss=chance_loss,
            bayes_accuracy=self._mean([t.bayes_accuracy for t in truths]) if told_apart else None,
            bayes_loss=self._mean([t.bayes_loss for t in truths]) if told_apart else None,
            labels=None if labels is None else tuple(sorted(labels)),
            label_distribution=distribution,
            build_marginals=partial(self._marginals, truths) if all(marginals) else None,
            largest_position_id=max(truth.largest_position_id for truth in truths),
        )

    def largest_position_id(self, length: int) -> int:
        """The largest ID over the tasks. It is computed here because ``truth`` draws sequences, which is slow."""
        return max(task.largest_position_id(length) for task in self.tasks)

    def _mean(self, values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(self.probabilities @ known) if len(known) == len(values) else None

    def _marginals(self, truths: list[Truth]) -> Floats:
        return np.asarray(sum(p * t.token_marginals for p, t in zip(self.probabilities, truths, strict=True)))

    def _num_targets(self, truths: list[Truth]) -> int | Floats | None:
        counts = [truth.num_targets for truth in truths]
        if any(count is None for count in counts):
            return None
        if all(isinstance(count, int) for count in counts) and len(set(map(int, counts))) == 1:  # type: ignore[arg-type]
            return counts[0]
        laws = [np.eye(1, c + 1, c)[0] if isinstance(c, int) else np.asarray(c) for c in counts]
        mixed = np.zeros(max(map(len, laws)))
        for share, law in zip(self.probabilities, laws, strict=True):
            mixed[: len(law)] += share * law
        return mixed

    def _chance(self, truths: list[Truth]) -> tuple[float | None, float | None, Floats | None]:
        """Chance accuracy and loss, and the label distribution by slot. Empty if a task declares none of them, or if
        its number of targets varies."""
        from scipy.special import xlogy  # noqa: PLC0415

        fixed = all(isinstance(t.num_targets, int) and t.label_distribution is not None for t in truths)
        if not fixed:
            return None, None, None
        own = []
        for truth in truths:
            assert isinstance(truth.num_targets, int)
            assert truth.label_distribution is not None
            own.append(np.broadcast_to(truth.label_distribution, (truth.num_targets, self.vocabulary.size)))
        weight = np.zeros(max(map(len, own)))
        mixed = np.zeros((len(weight), self.vocabulary.size))
        for share, labels in zip(self.probabilities, own, strict=True):
            weight[: len(labels)] += share
            mixed[: len(labels)] += share * labels
        mixed /= weight[:, None]
        guess = mixed.argmax(axis=1)
        accuracy = [labels[np.arange(len(labels)), guess[: len(labels)]].mean() for labels in own]
        loss = [-xlogy(labels, mixed[: len(labels)]).sum(axis=1).mean() for labels in own]
        return float(self.probabilities @ accuracy), float(self.probabilities @ loss), mixed

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...] | None:
        """None, because the tokens do not always show the component. Each component is certified separately."""
        return None

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " B"]:
        return torch.logsumexp(self._log_joint(batch), dim=1)

    def _log_joint(self, batch: Batch) -> Float[Tensor, "B n"]:
        """log P(component, tokens)."""
        likelihoods = torch.stack([task.log_likelihood(batch) for task in self.tasks], dim=1)
        return likelihoods + torch.from_numpy(np.log(self.probabilities))

    def _told_apart(self, length: int) -> bool:
        """Whether the tokens identify the task of a sequence, tested on some sequences of each task."""
        try:
            joints = [
                self._log_joint(task.sample(Stream(name="told apart"), 0, _TRIED, length)) for task in self.tasks
            ]
        except NotComputable:
            return False
        return all(bool((torch.isfinite(joint).sum(dim=1) == 1).all()) for joint in joints)

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        """The components' predictions, weighted by the posterior probability of each component given the tokens."""
        if not (batch.scored.sum(dim=1) == 1).all() or not batch.scored[:, -1].all():
            raise NotComputable("targets before the last position need the probability of the prefix under each task")
        joint = self._log_joint(batch)
        total = torch.logsumexp(joint, dim=1)
        if torch.isinf(total).any():
            raise ValueError(f"these tokens are not sequences of {self}")
        posterior = torch.full((len(batch), self.vocabulary.size), -torch.inf, dtype=torch.float64)
        for c, task in enumerate(self.tasks):
            rows = torch.isfinite(joint[:, c])
            if rows.any():
                own = task.log_posterior(Batch(batch.tokens[rows], batch.targets[rows]))
                weight = (joint[rows, c] - total[rows])[:, None]
                posterior[rows] = torch.logaddexp(posterior[rows], own + weight)
        return posterior
