"""Checks of the declared levels: chance, and the exact Bayes predictor.

Targets of one sequence depend on each other. So tests use the means of each sequence, or the targets of one slot.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import xlogy

from sparsity_lab.generators.batch import Batch
from sparsity_lab.generators.certify.findings import Finding, certain, mean, proportion
from sparsity_lab.generators.certify.predictions import Predictions
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.generators.stream import Floats, Ints
from sparsity_lab.generators.task import Task

_MOST_REREAD = 40  # sequences


def bayes(sample: DrawnSequences) -> Iterator[Finding]:
    """The exact predictor reads only the tokens, is normalized and calibrated, and has the declared levels."""
    seen = sample.predictions
    if isinstance(seen, ValueError):
        yield certain("bayes", "sequences that the predictor can read", False)
    if not isinstance(seen, Predictions):
        return
    yield from _what_it_reads(sample)
    truth = sample.truth
    N, rows, slots = len(sample.tokens), sample.rows, sample.slot_of_target
    yield certain("bayes", "normalized", seen.excess < 1e-9, seen.excess)
    impossible = float(np.isinf(seen.surprise).sum())
    yield certain("bayes", "targets that it thinks possible", impossible == 0, impossible, N)
    # If the predictor is right, its accuracy and loss are the means of its own confidence and entropy.
    yield from mean("bayes", "declared accuracy", _by_sequence(seen.confidence, rows), truth.bayes_accuracy)
    yield from mean("bayes", "declared loss", _by_sequence(seen.entropy, rows), truth.bayes_loss)
    if truth.bayes_loss_by_slot is not None:
        for j, declared in enumerate(truth.bayes_loss_by_slot.tolist()):
            yield from mean("bayes", f"declared loss of target {j + 1}", seen.entropy[slots == j], declared)
    # It is right if the likeliest label occurs as often as predicted. With ties, any of them may be chosen.
    if seen.confidence.min(initial=1.0) > 1 - 1e-12:
        wrong = float((~seen.chosen).sum())
        yield certain("bayes", "calibration", wrong == 0, wrong, N)
        return
    for slot in sample.slots:
        here = slots == slot.index
        yield from _calibration(f"{slot.name}calibration", seen.confidence[here], seen.chosen[here])
    if impossible == 0:
        difference = _by_sequence(seen.surprise - seen.entropy, rows)
        if np.ptp(difference) > 1e-9:  # else only nearly certain labels occurred
            yield from mean("bayes", "calibration of the loss", difference, 0.0)


def _what_it_reads(sample: DrawnSequences) -> Iterator[Finding]:
    """Its answer does not depend on the batch's targets, and it refuses sequences that the observer cannot read."""
    task, T = sample.task, sample.tokens.shape[1]
    batch = next(sample.batches(_MOST_REREAD))
    exchanged = copy.copy(batch)
    exchanged.targets = batch.targets.clone()
    exchanged.targets[batch.scored] = batch.targets[batch.scored].roll(1)
    same = torch.equal(task.log_posterior(batch), task.log_posterior(exchanged))
    yield certain("bayes", "the same whatever the targets", same)
    rng = sample.generator()
    refused = accepted = 0
    for row, place in enumerate(rng.integers(T, size=len(batch)).tolist()):
        one = slice(row, row + 1)
        tokens = batch.tokens[one].clone()
        tokens[0, place] = (tokens[0, place] + int(rng.integers(1, task.vocabulary.size))) % task.vocabulary.size
        try:
            task.solve(tuple(tokens[0].tolist()))
        except (ValueError, LookupError):  # no sequence of the task
            refused += 1
            accepted += _accepts(task, Batch(tokens, batch.targets[one]))
    if refused:
        yield certain("bayes", "accepts what is no sequence of the task", accepted == 0, accepted)


def _accepts(task: Task, batch: Batch) -> bool:
    try:
        task.log_posterior(batch)
    except ValueError:
        return False
    return True


def _calibration(subject: str, confidence: Floats, chosen: NDArray[np.bool_]) -> Iterator[Finding]:
    """The expected number of independent predictions comes true."""
    if len(chosen) == 0:
        return
    if np.ptp(confidence) < 1e-9:
        of = "share of targets that are the likeliest label"
        yield proportion("bayes", subject, int(chosen.sum()), len(chosen), min(1.0, float(confidence[0])), of)
    else:
        scale = max(1.0, float(np.sqrt((confidence * (1 - confidence)).sum())))
        z = float(chosen.sum() - confidence.sum()) / scale
        of = "share of targets that are the likeliest label"
        p_value = float(2 * stats.norm.sf(abs(z)))
        yield Finding("bayes", subject, float(chosen.mean()), p_value, of, scale / len(chosen))


def _by_sequence(values: Floats | NDArray[np.bool_], rows: Ints) -> Floats:
    """Means over the targets of each sequence that has any."""
    counts = np.bincount(rows)
    sums = np.bincount(rows, weights=values)
    return np.asarray(sums[counts > 0] / counts[counts > 0])


def declared_levels(sample: DrawnSequences) -> Iterator[Finding]:
    """Chance follows from the label distributions, and the optimum is no worse than chance."""
    truth = sample.truth
    if truth.bayes_accuracy is not None and truth.chance_accuracy is not None:
        ordered = truth.bayes_accuracy >= truth.chance_accuracy - 1e-9
        yield certain("declared_levels", "accuracy of the optimum no worse than chance", ordered)
    if truth.bayes_loss is not None and truth.chance_loss is not None:
        ordered = truth.bayes_loss <= truth.chance_loss + 1e-9
        yield certain("declared_levels", "loss of the optimum no worse than chance", ordered)
    if truth.label_distribution is None or truth.chance_accuracy is None or truth.chance_loss is None:
        return
    labels = np.atleast_2d(truth.label_distribution)
    if isinstance(truth.num_targets, int):
        accuracy, loss = labels.max(axis=1).mean(), -xlogy(labels, labels).sum(axis=1).mean()
        yield certain("declared_levels", "chance accuracy", bool(abs(accuracy - truth.chance_accuracy) < 1e-9))
        yield certain("declared_levels", "chance loss", bool(abs(loss - truth.chance_loss) < 1e-9))
        return
    # The number of targets varies, so the mean over a sequence's targets has no simple form. It is measured.
    slots = np.minimum(sample.slot_of_target, len(labels) - 1)
    right = sample.targets == labels.argmax(axis=1)[slots]
    with np.errstate(divide="ignore"):
        surprise = -np.log(labels[slots, sample.targets])
    yield from mean("declared_levels", "chance accuracy", _by_sequence(right, sample.rows), truth.chance_accuracy)
    if np.isfinite(surprise).all():
        yield from mean("declared_levels", "chance loss", _by_sequence(surprise, sample.rows), truth.chance_loss)
