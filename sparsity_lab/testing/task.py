"""What every task must do."""

import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsity_lab.generators import (
    IGNORE,
    Batch,
    InContextMarkov,
    Mixture,
    NotComputable,
    Stream,
    Task,
    Truth,
    certify,
)
from sparsity_lab.generators.certify import FALSE_ALARM_RATE
from sparsity_lab.generators.certify.findings import chi_square
from sparsity_lab.generators.certify.streams import has_length
from sparsity_lab.settings import SettingError
from sparsity_lab.testing.failing import differs, made, must_raise, require, without_global_randomness
from sparsity_lab.testing.setting import check_setting

_ROLES = {"planted", "background", "data", "cue", "query", "special", "unused"}
_CHECKED = "Begin `sample` and `truth` with `length = self.checked_length(length)`."
_FROM_THE_STREAM = "Take all randomness from `stream.words(...)`, whose row i belongs to sequence start + i."
_OF_ITS_OWN = "Make new tensors in every call, and change none later."
_TOKENS_ALONE = "It knows the task and sees the tokens up to the target, of that sequence alone."
_PICKLED = (
    "Give a method of the task, or `functools.partial` of it, and no lambda or inner function: "
    "a DataLoader with workers would wait for ever."
)
_FAR = (100, 256, 1000, 1024, 2**16, 2**31, 2**32)
_MANY = 10_000


def check_task(task: Task, *, sequences: int = 2000, lengths: tuple[int, ...] | None = None) -> None:
    """Check a task: the contract of its batches, and a certificate of what it declares.

    The checks:

    - Shapes, types and ranges are right, also at the smallest length.
    - A sequence depends only on task, seed, name, length and index, in large batches and far into the stream.
    - Batches own their memory. Batches and truths can be pickled.
    - Lengths are whole numbers, and other lengths are refused.
    - The declarations are the same each time.
    - A computable optimum is declared, and sees no token after the target.
    - The probability of tokens is that of sequences.
    - ``certify`` passes at small effort, which finds gross faults. Run it separately as well.

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
    made(lambda: json.dumps(task.record), task, "its `record` cannot be written as JSON", "Give plain data.")
    remedy = "Give the lengths at which `certify` shall look, all of them possible."
    require(bool(task.certified_lengths), task, "it has no certified_lengths", remedy)
    for length in task.certified_lengths:
        made(partial(task.check_length, length), task, f"it refuses its own length {length}", remedy)
    length = task.certified_lengths[0]
    smallest = next(size for size in range(length + 1) if has_length(task, size))
    for size in (smallest, *task.certified_lengths):
        _check_form(task, size)
    _check_purity(task, length)
    _check_lengths(task, length, smallest)
    _check_large_batches(task, smallest)
    _check_ownership(task, length)
    _check_pickles(task, length)
    _check_declared(task, length)
    _check_optimum(task, length)
    _check_predictor(task, smallest)
    _check_predictor(task, length)
    _check_likelihood(task, smallest)
    certificate = certify(task, sequences=sequences, lengths=lengths or task.certified_lengths[:2], effort="quick")
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


def _check_lengths(task: Task, length: int, smallest: int) -> None:
    """Whole numbers of any kind are lengths; nothing else is, nor what is below the smallest."""
    calls: dict[str, Callable[..., object]] = {"sample": partial(task.sample, Stream(), 0, 3), "truth": task.truth}
    plain = task.sample(Stream(), 0, 3, length).tokens
    for kind in (np.uint8, np.int64):
        same: Any = kind(length)
        what = f"a length of type {kind.__name__}"
        got = made(partial(task.sample, Stream(), 0, 3, same), task, f"`sample` fails with {what}", _CHECKED)
        require(not differs(got.tokens, plain), task, f"{what} changes the sequences", _CHECKED)
        made(partial(task.truth, same), task, f"`truth` fails with {what}", _CHECKED)
    for name, call in calls.items():
        for wrong in (float(length), None, str(length), -1, smallest - 1):
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
    without_global_randomness(
        lambda: tuple(_parts(task.sample(Stream(seed=3), 0, 50, length)).values()), task, "sampling"
    )
    whole = task.sample(Stream(seed=3), 0, 3000, length)
    _ = whole.sources
    for start, count in [(0, 1), (17, 5), (2900, 100), (2999, 0)]:
        part, rows = task.sample(Stream(seed=3), start, count, length), slice(start, start + count)
        what = f"of sequences {start} .. {start + count - 1} depend on the batch they are drawn in"
        _require_same(task, part, whole, rows, what, _FROM_THE_STREAM)
    others = {f"{far} sequences on": (Stream(seed=3), far) for far in _FAR}
    others |= {"of another seed": (Stream(seed=4), 0), "of another name": (Stream(seed=3, name="another"), 0)}
    for what, (stream, start) in others.items():
        tokens = task.sample(stream, start, 100, length).tokens
        same = not differs(tokens, whole.tokens[:100])
        require(not same, task, f"a stream {what} gives the same sequences", _FROM_THE_STREAM)


def _check_large_batches(task: Task, length: int) -> None:
    """The last sequences of a large batch are what they are alone."""
    rows = slice(_MANY - 50, _MANY)
    last, whole = task.sample(Stream(), rows.start, 50, length), task.sample(Stream(), 0, _MANY, length)
    for name in ("tokens", "targets"):
        what = f"{name} of the last of {_MANY} sequences depend on the batch they are drawn in"
        require(not differs(getattr(whole, name)[rows], getattr(last, name)), task, what, _FROM_THE_STREAM)


def _check_ownership(task: Task, length: int) -> None:
    """Neither a later call nor one who writes into a batch changes another batch."""
    first = task.sample(Stream(), 0, 5, length)
    before = {name: None if part is None else part.clone() for name, part in _parts(first).items()}
    fresh = task.sample(Stream(), 0, 5, length)
    task.sample(Stream(), 100, 5, length)
    for name, part in _parts(fresh).items():
        same = not differs(part, before[name])
        require(same, task, f"{name} of a batch change when another is drawn", _OF_ITS_OWN)
    for written in (first.tokens, first.targets, first.position_ids):
        if written is not None:
            written.zero_()
    for name, part in _parts(task.sample(Stream(), 0, 5, length)).items():
        found = f"{name} change when one writes into a batch that was drawn before"
        require(not differs(part, before[name]), task, found, _OF_ITS_OWN)


def _check_pickles(task: Task, length: int) -> None:
    batch = task.sample(Stream(), 0, 5, length)
    other = made(lambda: pickle.loads(pickle.dumps(batch)), task, "its batches cannot be pickled", _PICKLED)
    _require_same(task, other, batch, slice(None), "of a batch change in a pickle", _PICKLED)
    truth = task.truth(length)
    sent = made(lambda: pickle.loads(pickle.dumps(truth)), task, "what it declares cannot be pickled", _PICKLED)
    for name, value in _declared(truth).items():
        same = not differs(value, getattr(sent, name))
        require(same, task, f"{name} of what it declares changes in a pickle", _PICKLED)


def _declared(truth: Truth) -> dict[str, object]:
    """All that is declared, by name."""
    lazy = {"build_joint": "token_label_joint", "build_marginals": "token_marginals"}
    names = [lazy.get(field.name, field.name) for field in fields(truth)]
    return {name: getattr(truth, name) for name in names}


def _check_declared(task: Task, length: int) -> None:
    """The same each time, and numbers that can be."""
    without_global_randomness(lambda: tuple(_declared(task.truth(length)).values()), task, "`truth`")
    truth = task.truth(length)
    for name in ("chance_accuracy", "bayes_accuracy", "label_noise"):
        value = getattr(truth, name)
        possible = value is None or 0 <= value <= 1
        require(possible, task, f"its {name} is {value}", "It is a probability.")
    for name in ("chance_loss", "bayes_loss"):
        value = getattr(truth, name)
        possible = value is None or 0 <= value < np.inf
        require(possible, task, f"its {name} is {value}", "It is a mean of -log probabilities, in nats.")
    both = (truth.chance_accuracy is None) == (truth.chance_loss is None)
    require(both, task, "one of chance_accuracy and chance_loss is declared without the other", "Declare both.")


def _check_optimum(task: Task, length: int) -> None:
    """The optimum is declared where it can be computed. Mixtures whose component the tokens do not tell and chains in
    context, are exempt: their levels have no known closed form."""
    truth = task.truth(length)
    try:
        task.log_posterior(task.sample(Stream(), 0, 2, length))
    except NotComputable as reason:
        require(bool(str(reason)), task, "it does not say why its optimum is not computable", "Give the reason.")
        declared = truth.bayes_accuracy is not None or truth.bayes_loss is not None
        found = "an optimum is declared, and log_posterior says that it is not computable"
        require(not declared, task, found, "Leave bayes_accuracy and bayes_loss out of `truth`.")
        return
    both = (truth.bayes_accuracy is None) == (truth.bayes_loss is None)
    require(both, task, "one of bayes_accuracy and bayes_loss is declared without the other", "Declare both.")
    declared = truth.bayes_accuracy is not None or isinstance(task, Mixture | InContextMarkov)
    found = "log_posterior computes the optimum, and `truth` does not declare it"
    require(declared, task, found, "Declare bayes_accuracy and bayes_loss.")


def _check_predictor(task: Task, length: int) -> None:
    """The exact predictor gives the same to equal beginnings, whatever comes later and whatever else is there; and
    leaves the batch as it is."""
    batch = task.sample(Stream(), 0, 1000, length)
    before = tuple(part if part is None else part.clone() for part in _parts(batch).values())
    try:
        logs = task.log_posterior(batch)
    except NotComputable:
        return
    require(not differs(tuple(_parts(batch).values()), before), task, "log_posterior changes the batch", _OF_ITS_OWN)
    form = f"log_posterior has shape {tuple(logs.shape)} and {logs.dtype}"
    shape = (int(batch.scored.sum()), task.vocabulary.size)
    require(tuple(logs.shape) == shape and logs.dtype == torch.float64, task, form, f"Give {shape} in float64.")
    first = int(batch.scored[:20].sum())
    alone = task.log_posterior(task.sample(Stream(), 20, 30, length))
    found = "log_posterior of a sequence depends on the others"
    require(_near(alone, logs[first : first + len(alone)]), task, found, _TOKENS_ALONE)
    seen: dict[tuple[int, bytes], int] = {}
    tokens = batch.tokens.numpy()
    pairs = [
        (i, seen.setdefault((at, tokens[row, : at + 1].tobytes()), i))
        for i, (row, at) in enumerate(batch.scored.nonzero().tolist())
    ]
    rows, same = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    found = f"at length {length}, log_posterior differs where all tokens up to the target are the same"
    require(_near(logs[rows], logs[same]), task, found, _TOKENS_ALONE)


def _near(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first.exp(), second.exp(), rtol=0.0, atol=1e-9)


def _check_likelihood(task: Task, length: int) -> None:
    """Sequences come as often as their declared probability says (chi-square)."""
    batch = task.sample(Stream(seed=5), 0, _MANY, length)
    try:
        logs = task.log_likelihood(batch)
    except NotComputable:
        return
    form = f"log_likelihood has shape {tuple(logs.shape)} and {logs.dtype}"
    require(tuple(logs.shape) == (_MANY,) and logs.dtype == torch.float64, task, form, f"Give ({_MANY},) in float64.")
    rows, first = np.unique(batch.tokens.numpy(), axis=0, return_index=True)
    cells = {row.tobytes(): cell for cell, row in enumerate(rows)}
    # Counted on other sequences than those that say what to count.
    others = task.sample(Stream(seed=6), 0, _MANY, length).tokens.numpy()
    counts = np.bincount([cells.get(row.tobytes(), len(cells)) for row in others], minlength=len(cells) + 1)
    probabilities = np.append(logs.exp().numpy()[first], 0.0)
    rest = 1 - float(probabilities.sum())
    remedy = "It is the log-probability of all tokens of a sequence."
    require(rest > -1e-9, task, f"log_likelihood gives sequences a total probability of {1 - rest:.6g}", remedy)
    probabilities[-1] = max(rest, 0.0)
    for finding in chi_square("likelihood", "sequences", counts, probabilities * _MANY):
        found = f"sequences do not come as often as log_likelihood says (p = {finding.p_value:.1e})"
        require(finding.p_value >= FALSE_ALARM_RATE, task, found, remedy)
