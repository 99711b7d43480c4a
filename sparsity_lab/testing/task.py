"""What every task must do."""

import pickle
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsity_lab.generators import IGNORE, Batch, Mixture, NotComputable, Stream, Task, certify
from sparsity_lab.settings import SettingError
from sparsity_lab.testing.failing import differs, made, must_raise, require
from sparsity_lab.testing.setting import check_setting

__all__ = ["check_task"]

_ROLES = {"planted", "background", "data", "cue", "query", "special", "unused"}
_CHECKED = "Begin `sample` and `truth` with `length = self.checked_length(length)`."
_FROM_THE_STREAM = "Take all randomness from `stream.words(...)`, whose row i belongs to sequence start + i."
_PICKLED = (
    "Give a method of the task, or `functools.partial` of it, and no lambda or inner function: "
    "a DataLoader with workers would wait for ever."
)


def check_task(task: Task, *, sequences: int = 2000, lengths: tuple[int, ...] | None = None) -> None:
    """Check a task: the contract of its batches, and a certificate of what it declares.

    Shapes, types and ranges; that a sequence is a function of task, seed, name, length and index alone; that lengths
    are whole numbers and others are refused; that batches and truths can be pickled; that an optimum that can be
    computed is declared; and ``certify`` at small effort, which sees gross faults: run it by itself as well.

    Args:
        sequences: of the certificate, at each length; at least 1000.
        lengths: of the certificate; the first two of ``certified_lengths`` if None.

    Raises:
        AssertionError: something does not hold; the message says what, and what to do.

    Example:
        >>> from sparsity_lab.generators import Planted
        >>> check_task(Planted(k=2))
    """
    check_setting(task)
    _check_vocabulary(task)
    remedy = "Give the lengths at which `certify` shall look, all of them possible."
    require(bool(task.certified_lengths), task, "it has no certified_lengths", remedy)
    for length in task.certified_lengths:
        made(partial(task.check_length, length), task, f"it refuses its own length {length}", remedy)
    for length in task.certified_lengths[:2]:
        _check_form(task, length)
    length = task.certified_lengths[0]
    _check_lengths(task, length)
    _check_purity(task, length)
    _check_pickles(task, length)
    _check_optimum(task, length)
    certificate = certify(task, sequences=sequences, lengths=lengths or task.certified_lengths[:2])
    failed = "; ".join(
        f"{finding.check} at length {length}: {finding.subject} (p = {finding.p_value:.1e})"
        for length, finding in certificate.findings
        if finding.p_value < certificate.threshold
    )
    remedy = "`sample`, `truth` and `solve` do not say the same: see `certify(task).frame()`."
    require(certificate.passed, task, f"its certificate fails {failed}", remedy)


def _check_vocabulary(task: Task) -> None:
    vocabulary = task.vocabulary
    sizes = f"its vocabulary has {len(vocabulary.names)} names and {len(vocabulary.roles)} roles"
    require(len(vocabulary.names) == len(vocabulary.roles), task, sizes, "Give one of each for every token.")
    twice = sorted({name for name in vocabulary.names if vocabulary.names.count(name) > 1}) if _repeats(task) else []
    require(not twice, task, f"two tokens have the same name: {twice[:3]}", "Names are how people tell tokens apart.")
    unknown = sorted(set(vocabulary.roles) - _ROLES)
    require(not unknown, task, f"its vocabulary has the roles {unknown}", f"Roles are {', '.join(sorted(_ROLES))}.")


def _repeats(task: Task) -> bool:
    return len(set(task.vocabulary.names)) < task.vocabulary.size


def _check_form(task: Task, length: int) -> None:
    """Shapes, types and ranges of a batch."""
    subject = f"{task} at length {length}"
    T, V = task.sequence_length(length), task.vocabulary.size
    for count in (0, 3):
        batch = made(partial(task.sample, Stream(), 0, count, length), subject, f"no batch of {count}", _CHECKED)
        _check_tensor(subject, "tokens", batch.tokens, (count, T), 0, V - 1)
        _check_tensor(subject, "targets", batch.targets, (count, T), IGNORE, V - 1)
        between = ((batch.targets < 0) & (batch.targets != IGNORE)).any()
        require(not between, subject, "targets has negative numbers but IGNORE", "Targets are tokens, or IGNORE.")
        if batch.position_ids is not None:
            largest = task.largest_position_id(length)
            _check_tensor(subject, "position_ids", batch.position_ids, (count, task.num_kinds, T), 0, largest)
        if batch.sources is not None:
            _check_tensor(subject, "sources", batch.sources, (count, T, batch.sources.shape[2]), -1, T - 1)
            elsewhere = batch.sources[~batch.scored]
            remedy = "Sources are -1 at positions that are not scored."
            require(bool((elsewhere == -1).all()), subject, "sources are given where nothing is scored", remedy)
        named = "the batch has another vocabulary than the task"
        require(batch.vocabulary == task.vocabulary, subject, named, "Pass `vocabulary=self.vocabulary` to `Batch`.")


def _check_tensor(subject: str, name: str, tensor: Tensor, shape: tuple[int, ...], low: int, high: int) -> None:
    form = f"{name} has shape {tuple(tensor.shape)} and {tensor.dtype}"
    wanted = f"It is an int64 tensor of shape {shape}, with T = sequence_length(length)."
    require(tuple(tensor.shape) == shape and tensor.dtype == torch.int64, subject, form, wanted)
    if tensor.numel():
        inside = low <= int(tensor.min()) and int(tensor.max()) <= high
        found = f"{name} runs from {int(tensor.min())} to {int(tensor.max())}"
        require(inside, subject, found, f"It lies within {low} .. {high}.")


def _check_lengths(task: Task, length: int) -> None:
    """Whole numbers of any kind are lengths; nothing else is."""
    calls: dict[str, Callable[..., object]] = {"sample": partial(task.sample, Stream(), 0, 3), "truth": task.truth}
    plain = task.sample(Stream(), 0, 3, length).tokens
    for kind in (np.uint8, np.int64):
        same: Any = kind(length)
        what = f"a length of type {kind.__name__}"
        got = made(partial(task.sample, Stream(), 0, 3, same), task, f"`sample` fails with {what}", _CHECKED)
        require(not differs(got.tokens, plain), task, f"{what} changes the sequences", _CHECKED)
        made(partial(task.truth, same), task, f"`truth` fails with {what}", _CHECKED)
    for name, call in calls.items():
        for wrong in (float(length), None, str(length), -1):
            what = f"`{name}` with the length {wrong!r}"
            must_raise(partial(call, wrong), SettingError, task, what, _CHECKED)


def _parts(batch: Batch, rows: slice = slice(None)) -> dict[str, Tensor | None]:
    parts = {name: getattr(batch, name) for name in ("tokens", "targets", "position_ids", "sources")}
    return {name: None if part is None else part[rows] for name, part in parts.items()}


def _require_same(subject: object, got: Batch, expected: Batch, rows: slice, what: str, remedy: str) -> None:
    other = _parts(expected, rows)
    for name, part in _parts(got).items():
        require(not differs(part, other[name]), subject, f"{name} {what}", remedy)


def _check_purity(task: Task, length: int) -> None:
    """A sequence is a function of task, seed, name, length and index alone."""
    states = _global_states()
    whole = task.sample(Stream(seed=3), 0, 3000, length)
    _ = whole.sources
    for start, count in [(0, 1), (17, 5), (2900, 100), (2999, 0)]:
        part, rows = task.sample(Stream(seed=3), start, count, length), slice(start, start + count)
        what = f"of sequences {start} .. {start + count - 1} depend on the batch they are drawn in"
        _require_same(task, part, whole, rows, what, _FROM_THE_STREAM)
    require(
        states == _global_states(),
        task,
        "sampling moves the global generator of torch or numpy",
        _FROM_THE_STREAM,
    )
    for what, other in {"seed": Stream(seed=4), "name": Stream(seed=3, name="another")}.items():
        same = not differs(task.sample(other, 0, 200, length).tokens, whole.tokens[:200])
        require(not same, task, f"a stream of another {what} gives the same sequences", _FROM_THE_STREAM)


def _global_states() -> tuple[object, ...]:
    _, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), tuple(rest)


def _check_pickles(task: Task, length: int) -> None:
    batch = task.sample(Stream(), 0, 5, length)
    other = made(lambda: pickle.loads(pickle.dumps(batch)), task, "its batches cannot be pickled", _PICKLED)
    _require_same(task, other, batch, slice(None), "of a batch change in a pickle", _PICKLED)
    truth = task.truth(length)
    sent = made(lambda: pickle.loads(pickle.dumps(truth)), task, "what it declares cannot be pickled", _PICKLED)
    lazy = {"build_joint", "build_marginals"}
    for name in [field.name for field in fields(truth) if field.name not in lazy] + [
        "token_label_joint",
        "token_marginals",
    ]:
        same = not differs(getattr(truth, name), getattr(sent, name))
        require(same, task, f"{name} of what it declares changes in a pickle", _PICKLED)


def _check_optimum(task: Task, length: int) -> None:
    """The optimum is declared where it can be computed, but for mixtures whose component the tokens do not tell: no
    closed form is known of those."""
    truth = task.truth(length)
    try:
        task.log_posterior(task.sample(Stream(), 0, 2, length))
    except NotComputable:
        declared = truth.bayes_accuracy is not None or truth.bayes_loss is not None
        found = "an optimum is declared, and log_posterior says that it is not computable"
        require(not declared, task, found, "Leave bayes_accuracy and bayes_loss out of `truth`.")
        return
    both = (truth.bayes_accuracy is None) == (truth.bayes_loss is None)
    require(both, task, "one of bayes_accuracy and bayes_loss is declared without the other", "Declare both.")
    declared = truth.bayes_accuracy is not None or isinstance(task, Mixture)
    found = "log_posterior computes the optimum, and `truth` does not declare it"
    require(declared, task, found, "Declare bayes_accuracy and bayes_loss.")
