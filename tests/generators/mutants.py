"""Broken tasks: what a certificate must catch, for every registered task.

An edit takes a sound task's batch and breaks one property of some sequences, which stream indices decide.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsity_lab.generators import Batch, Draw, Mixture, Step, Stream, Task, Truth
from sparsity_lab.generators.certify.certificate import CHECKS
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.settings import kinds

Edit = Callable[[Task, Stream, int, int, int], Batch]

TASKS: dict[str, type[Task]] = {
    name: cls
    for name, cls in kinds("task").items()
    if cls.__module__.startswith("sparsity_lab.")  # type: ignore[misc]
}
EXAMPLES = [example for cls in TASKS.values() for example in cls.examples()]


def mutant(task: Task, sample: Edit | None = None, **methods: Callable[..., object]) -> Task:
    """The task with some methods broken; ``sample(task, stream, start, count, length)`` may call the sound one."""
    broken: dict[str, Any] = dict(methods)
    if sample:
        broken["edit"] = staticmethod(sample)
        broken["sample"] = lambda self, stream, start, count, length: sample(task, stream, start, count, length)
    cls = type("Mutant", (type(task),), broken)
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}  # type: ignore[arg-type]
    return cls(**fields)  # type: ignore[no-any-return]


def every(n: int, start: int, count: int) -> Tensor:
    """True for stream indices divisible by n."""
    return (torch.arange(start, start + count) % n) == 0


def rebuilt(tokens: Tensor, targets: Tensor, sources: Tensor | None, ids: Tensor | None = None) -> Batch:
    return Batch(tokens, targets, ids, sources)


def draw(task: Task, sequences: int = 6000, steps: int = 0) -> DrawnSequences:
    return DrawnSequences.draw(task, 0, sequences, task.certified_lengths[0], steps=steps)


sound_sample = functools.cache(draw)


def catches(check: str, task: Task) -> bool:
    """Whether a check rejects the task at its shortest certified length; each p-value against 1e-9."""
    (function,) = [c for c in CHECKS if c.__name__ == check]
    # What is rare needs more sequences, and so do sums of which few terms are large.
    sequences = 20_000 if check in ("noise", "declared_levels") else 6000
    sample = draw(task, sequences, steps=200 if check == "learned" else 0)
    return any(finding.p_value < 1e-9 for finding in function(sample))


def applies(check: str, task: Task) -> bool:
    """Whether a check finds anything to test in a sound task."""
    (function,) = [c for c in CHECKS if c.__name__ == check]
    return any(True for _ in function(draw(task, steps=1) if check == "learned" else sound_sample(task)))


def edited(change: Callable[..., None]) -> Edit:
    """An edit from ``change(task, rows, tokens, targets, sources, ids)``, which writes to copies; ``rows`` says
    whose stream index is even."""

    def edit(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = task.sample(stream, start, count, length)
        tokens, targets = batch.tokens.clone(), batch.targets.clone()
        sources = None if batch.sources is None else batch.sources.clone()
        ids = None if batch.position_ids is None else batch.position_ids.clone()
        change(task, every(2, start, count), tokens, targets, sources, ids)
        return rebuilt(tokens, targets, sources, ids)

    return edit


def last_target(targets: Tensor) -> tuple[Tensor, Tensor]:
    """(row, position) of the last scored target of each sequence that has any."""
    scored = targets >= 0
    rows = scored.any(dim=1).nonzero()[:, 0]
    return rows, scored.shape[1] - 1 - scored.flip(1).int().argmax(dim=1)[rows]


@edited
def wrong_targets(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    """All targets of some sequences are another token."""
    scored = (targets >= 0) & rows[:, None]
    targets[scored] = (targets[scored] + 1) % task.vocabulary.size


@edited
def fewer_targets(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    row, position = last_target(targets)
    targets[row[rows[row]], position[rows[row]]] = -100


@edited
def forgotten_source(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    """The last scored target of some sequences lacks its last source."""
    row, position = last_target(targets)
    row, position = row[rows[row]], position[rows[row]]
    size = (sources[row, position] >= 0).sum(dim=1)
    row, position, size = row[size > 0], position[size > 0], size[size > 0]
    sources[row, position, size - 1] = -1


def repeated_source(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Each target has its last source twice."""
    batch = task.sample(stream, start, count, length)
    assert batch.sources is not None
    top = batch.sources.amax(dim=2, keepdim=True)
    size = (batch.sources >= 0).sum(dim=2, keepdim=True)
    sources = torch.cat([batch.sources, torch.full_like(top, -1)], dim=2).scatter(2, size, top)
    return rebuilt(batch.tokens, batch.targets, sources, batch.position_ids)


@edited
def shifted_ids(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    ids[rows] = ids[rows].roll(1, dims=2)


@edited
def target_of_one_source(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """Targets follow the first source's token alone."""
    labels = torch.tensor(task.truth(task.certified_lengths[0]).labels)
    first = tokens.gather(1, sources[:, :, 0].clamp(min=0))
    changed = (targets >= 0) & (sources[:, :, 0] >= 0) & rows[:, None]
    targets[changed] = labels[first[changed] % len(labels)]


@edited
def target_of_a_bystander(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """The parity of the label follows the token at position 1 where that is no source; at 2 where 1 always is one."""
    labels = torch.tensor(task.truth(task.certified_lengths[0]).labels)
    index = torch.searchsorted(labels, targets.clamp(min=0))
    for t in (1, 2):
        told = labels[((index & ~1) | (tokens[:, t : t + 1] & 1)).clamp(max=len(labels) - 1)]
        changed = (targets >= 0) & (sources != t).all(dim=2) & (told != targets)
        if changed.any():
            targets[changed] = told[changed]
            return


@edited
def target_of_the_index(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """The parity of the label is that of the sequence's place in the stream."""
    labels = torch.tensor(task.truth(task.certified_lengths[0]).labels)
    changed = targets >= 0
    index = torch.searchsorted(labels, targets.clamp(min=0))
    told = ((index & ~1) | rows[:, None].long()).clamp(max=len(labels) - 1)
    targets[changed] = labels[told][changed]


@edited
def target_of_an_early_token(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """From position 1 on, the parity of some labels is that of the token there."""
    labels = torch.tensor(task.truth(task.certified_lengths[0]).labels)
    changed = (targets >= 0) & rows[:, None] & (torch.arange(targets.shape[1]) >= 1)
    index = torch.searchsorted(labels, targets.clamp(min=0))
    told = ((index & ~1) | (tokens[:, 1:2] & 1)).clamp(max=len(labels) - 1)
    targets[changed] = labels[told][changed]


@edited
def source_of_the_others(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """The last of several source tokens is the sum of the others."""
    full = (sources[:, -1] >= 0).all(dim=1)
    values = tokens[full].gather(1, sources[full, -1])
    values[:, -1] = values[:, :-1].sum(dim=1) % (int(values.max()) + 1)
    tokens[full] = tokens[full].scatter(1, sources[full, -1], values)


@edited
def neighbor_of_its_neighbor(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """The token after a target's last source is the one after it."""
    free = torch.tensor([role in ("background", "data") for role in task.vocabulary.roles])
    last = sources[:, -1].amax(dim=1)
    index = (last + 2 < tokens.shape[1] - 1).nonzero()[:, 0]
    index = index[free[tokens[index, last[index] + 1]] & free[tokens[index, last[index] + 2]]]
    tokens[index, last[index] + 1] = tokens[index, last[index] + 2]


@edited
def echoing_background(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    free = torch.tensor([role in ("background", "data") for role in task.vocabulary.roles])
    is_source = (sources[:, -1, :, None] == torch.arange(tokens.shape[1])).any(dim=1)
    usable = free[tokens] & ~is_source
    changed = rows & usable[:, 6] & usable[:, 7]
    tokens[changed, 7] = tokens[changed, 6]


@edited
def noise_by_answer(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    """Even answers are never replaced by noise."""
    for row, sequence in enumerate(tokens.tolist()):
        for step in task.solve(tuple(sequence)) or ():
            if step.answer is not None and step.answer % 2 == 0:
                targets[row, step.position] = step.answer


@edited
def noise_of_a_bystander(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """Where the token at position 1 is even there is no noise."""
    for row, sequence in enumerate(tokens.tolist()):
        for step in task.solve(tuple(sequence)) or ():
            if step.answer is not None and sequence[1] % 2 == 0:
                targets[row, step.position] = step.answer


def batch_dependent(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The classic mistake: a generator that starts anew with every batch."""
    return task.sample(stream, 0, count, length)


def ignores_its_stream(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    return task.sample(Stream(seed=0, name="evaluation"), start, count, length)


def repeats_sequences(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Sequences 2i and 2i + 1 are the same."""
    index = torch.arange(start, start + count) // 2
    batch = task.sample(stream, int(index[0]), int(index[-1] - index[0]) + 1, length)
    rows = index - index[0]
    ids = None if batch.position_ids is None else batch.position_ids[rows]
    return rebuilt(batch.tokens[rows], batch.targets[rows], batch.sources[rows] if batch.has_sources else None, ids)


def every_seventh_is_alike(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    batch, one = task.sample(stream, start, count, length), task.sample(stream, 3, 1, length)
    rows = every(7, start + 4, count)
    tokens, targets = batch.tokens.clone(), batch.targets.clone()
    tokens[rows], targets[rows] = one.tokens, one.targets
    return rebuilt(tokens, targets, batch.sources, batch.position_ids)


def starts_anew(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """A stream that knows 2^32 sequences."""
    return task.sample(stream, start % 2**32, count, length)


def other_shares(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    assert isinstance(task, Mixture)
    shares = np.arange(1, 1 + len(task.tasks))
    return task.replace(shares=tuple(shares / shares.sum())).sample(stream, start, count, length)


class OtherLaw:
    """A law with its positions moved by one, or with its sets too likely."""

    def __init__(self, law: Any, move: int, factor: float) -> None:
        self.law, self.move, self.factor = law, move, factor

    def order_pmf(self) -> Any:
        return np.roll(self.law.order_pmf(), self.move, axis=1)

    def pmf(self, sources: Any) -> Any:
        return self.factor * self.law.pmf(sources)

    def support_size(self) -> int:
        return self.law.support_size()  # type: ignore[no-any-return]


def declaring(change: Callable[[Truth], dict[str, Any]]) -> Callable[[Task], Task]:
    """The task with something else in its truth."""

    def broken(task: Task) -> Task:
        def truth(self: Task, length: int) -> Truth:
            sound = task.truth(length)
            return dataclasses.replace(sound, **change(sound))

        return mutant(task, truth=truth)

    return broken


def _moved(probabilities: Any) -> Any:
    """A tenth of the probability moves from each entry to the next, and some to the first."""
    moved = 0.9 * probabilities + 0.1 * np.roll(probabilities, 1, axis=-1)
    moved[..., 0] += 0.1
    return moved / moved.sum(axis=-1, keepdims=True)


def _laws(laws: Any, move: int, factor: float) -> Any:
    if isinstance(laws, tuple):
        return tuple(OtherLaw(law, move, factor) for law in laws)
    return OtherLaw(laws, move, factor)


def overconfident(task: Task) -> Task:
    """A predictor that holds a tenth back, where the task is certain, or nothing where it is not."""

    def log_posterior(self: Task, batch: Batch) -> Tensor:
        exact = task.log_posterior(batch).exp()
        sharp = exact**2 / (exact**2).sum(dim=1, keepdim=True)
        flat = 0.9 * exact + 0.1 / exact.shape[1]
        return torch.where(exact.amax(dim=1, keepdim=True) < 0.999, sharp, flat).log()

    return mutant(task, log_posterior=log_posterior)


def knowing_too_little(task: Task) -> Task:
    """Each target lacks one of its sources, the first whose token is the answer or else the last, in the batch and
    in the tokens' reading."""

    def fewer(tokens: tuple[int, ...], step: Step) -> tuple[int, ...]:
        of_the_answer = [t for t in step.sources if tokens[t] == step.answer]
        dropped = (of_the_answer or step.sources[-1:])[:1]
        return tuple(t for t in step.sources if t not in dropped)

    def solve(self: Task, tokens: tuple[int, ...]) -> tuple[Step, ...] | None:
        steps = task.solve(tokens)
        return steps and tuple(step._replace(sources=fewer(tokens, step)) for step in steps)

    def sample(self: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
        batch = task.sample(stream, start, count, length)
        assert batch.sources is not None
        sources = torch.full_like(batch.sources, -1)
        for row, tokens in enumerate(batch.tokens.tolist()):
            for step in solve(self, tuple(tokens)) or ():
                sources[row, step.position, : len(step.sources)] = torch.tensor(step.sources, dtype=torch.int64)
        return rebuilt(batch.tokens, batch.targets, sources, batch.position_ids)

    return mutant(task, sample=sample, solve=solve)


def preferring_odd_tokens(task: Task) -> Task:
    """A likelihood that is e times as large for each odd token."""

    def log_likelihood(self: Task, batch: Batch) -> Tensor:
        return task.log_likelihood(batch) + (batch.tokens % 2).sum(dim=1)

    return mutant(task, log_likelihood=log_likelihood)


def reading_the_targets(task: Task) -> Task:
    """A predictor that says what the batch says."""

    def log_posterior(self: Task, batch: Batch) -> Tensor:
        exact = task.log_posterior(batch)
        told = torch.full_like(exact, -torch.inf)
        return told.scatter(1, batch.targets[batch.scored][:, None], 0.0)

    return mutant(task, log_posterior=log_posterior)


def sampling(edit: Edit, needs: str | None = None) -> Callable[[Task], Task | None]:
    """The task with edited batches; None if it lacks what the edit ``needs``."""

    def broken(task: Task) -> Task | None:
        sample = sound_sample(task)
        has = {
            None: True,
            "sources": sample.has_sources,
            "position_ids": sample.position_ids is not None,
            "declared": sample.has_sources and not sample.draws,
        }[needs]
        return mutant(task, edit) if has else None

    return broken


Drawn = dict[str, Draw]


def drawing(change: Callable[[Drawn], Drawn]) -> Callable[[Task], Task | None]:
    """The task with other draws; None if it names none itself."""

    def broken(task: Task) -> Task | None:
        def draws(self: Task, tokens: Any, name: str) -> Drawn:
            return change(task.draws(tokens, name))

        return mutant(task, draws=draws) if sound_sample(task).draws else None

    return broken


def unreadable(drawn: Drawn) -> Drawn:
    raise ValueError("no sequences of the task")


def drawn_twice(drawn: Drawn) -> Drawn:
    """One draw stands for another as well."""
    return drawn | {"again": next(iter(drawn.values()))._replace(together=True)}


def last_has_the_parity(drawn: Drawn) -> Drawn:
    """The last value is even if the sum of the others is."""
    values = drawn["values"].values.copy()
    values[:, -1] = (values[:, -1] & ~1) | values[:, :-1].sum(axis=1) & 1
    return drawn | {"values": Draw(values)}


def echoing(drawn: Drawn) -> Drawn:
    """Every other background token is the one before it. Where marks stand between them, every other pair is the pair
    before it, so that it is seen across a source."""
    values = drawn["background"].values.copy()
    lag = 1 if ((values[:, 1:] >= 0) & (values[:, :-1] >= 0)).any() else 4
    for late in range(values.shape[1]):
        if late // lag % 2:
            both = (values[:, late] >= 0) & (values[:, late - lag] >= 0)
            values[both, late] = values[both, late - lag]
    return drawn | {"background": Draw(values)}


MUTANTS: dict[str, tuple[Callable[[Task], Task | None], ...]] = {
    "token_marginals": (declaring(lambda t: {"build_marginals": lambda: _moved(t.token_marginals)}),),
    "target_counts": (sampling(fewer_targets),),
    "target_places": (declaring(lambda t: {"target_law": _laws(t.target_law, 1, 1.0)}),),
    "next_token": (sampling(wrong_targets),),
    "label_balance": (declaring(lambda t: {"label_distribution": _moved(t.label_distribution)}),),
    "source_counts": (
        sampling(repeated_source, needs="sources"),
        declaring(lambda t: {"k": 1 if t.k is None else t.k + 1}),
    ),
    "source_places": (declaring(lambda t: {"position_law": _laws(t.position_law, 1, 1.0)}),),
    "source_sets": (declaring(lambda t: {"position_law": _laws(t.position_law, 0, 1.1)}),),
    "rule": (sampling(wrong_targets),),
    "determined": (knowing_too_little,),
    "position_shortcut": (
        declaring(
            lambda t: {"build_joint": lambda: t.token_label_joint * np.linspace(1.2, 0.8, len(t.labels or ()))}
        ),
    ),
    "subset_shortcut": (sampling(target_of_one_source),),
    "second_answer": (sampling(fewer_targets), sampling(forgotten_source, needs="sources")),
    "bayes": (overconfident, reading_the_targets, declaring(lambda t: {"bayes_loss": (t.bayes_loss or 0) + 0.1})),
    "declared_levels": (declaring(lambda t: {"chance_accuracy": (t.chance_accuracy or 0) + 0.05}),),
    "likelihood": (preferring_odd_tokens,),
    "position_ids": (
        sampling(shifted_ids, needs="position_ids"),
        declaring(lambda t: {"largest_position_id": t.largest_position_id + 1}),
    ),
    "components": (sampling(other_shares),),
    "drawn_law": (drawing(unreadable),),
    "products": (drawing(drawn_twice), sampling(echoing_background, needs="declared")),
    "values": (drawing(last_has_the_parity), sampling(source_of_the_others, needs="declared")),
    "targets": (sampling(target_of_the_index),),
    "bystanders": (
        lambda task: mutant(task, noise_of_a_bystander if sound_sample(task).noise.size else target_of_a_bystander),
    ),
    "near_sources": (drawing(echoing), sampling(neighbor_of_its_neighbor, needs="declared")),
    "noise": (sampling(noise_by_answer),),
    "redrawn": (sampling(target_of_an_early_token),),
    "learned": (
        lambda task: (sampling(target_of_the_index) if sound_sample(task).truth.labels else drawing(drawn_twice))(
            task
        ),
    ),
    "slices": (sampling(batch_dependent),),
    "streams": (sampling(ignores_its_stream), sampling(starts_anew)),
    "periods": (sampling(every_seventh_is_alike),),
    "repeats": (sampling(repeats_sequences),),
}
"""Of each check, mutants that it must catch, of every task to which the check applies."""


def mutants_of(check: str, task: Task) -> list[Task]:
    """Those of one task, but for what would break something that the task does not have."""
    broken = [make(task) for make in MUTANTS[check]]
    return [task for task in broken if task is not None]
