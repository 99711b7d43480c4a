"""The exact predictor's output for all targets of many sequences."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.batch import Batch
from sparsity_lab.generators.stream import Floats, Ints
from sparsity_lab.generators.task import Task


@dataclass(frozen=True)
class Predictions:
    """Predictions of M targets, in the order of the sequences.

    Attributes:
        answer: (M,) the likeliest label, the first one in a tie.
        confidence: (M,) its probability.
        entropy: (M,) of the predicted distribution.
        surprise: (M,) -log of the target's probability.
        chosen: (M,) whether the target is the likeliest label.
        redrawn: (M,) a label drawn from the predicted distribution.
        excess: the largest deviation of a sum of probabilities from one.
    """

    answer: Ints
    confidence: Floats
    entropy: Floats
    surprise: Floats
    chosen: NDArray[np.bool_]
    redrawn: Ints
    excess: float

    @classmethod
    def of(cls, task: Task, batches: Iterable[Batch], rng: np.random.Generator) -> "Predictions":
        """Predict one batch at a time, because each target needs V numbers.

        Raises:
            NotComputable, ValueError: as ``Task.log_posterior``.
        """
        parts: list[tuple[NDArray[np.generic], ...]] = []
        excess = 0.0
        for batch in batches:
            log_posterior = task.log_posterior(batch).numpy()
            targets = batch.targets[batch.scored].numpy()
            # Impossible labels are left out. If the rule is certain, these are nearly all.
            row, label = np.nonzero(log_posterior > -np.inf)
            log_p = log_posterior[row, label]
            p = np.exp(log_p)
            excess = max(excess, float(np.abs(_sums(row, p, targets) - 1).max(initial=0)))
            index, answer = np.arange(len(targets)), log_posterior.argmax(axis=1)
            confidence, surprise = np.exp(log_posterior[index, answer]), -log_posterior[index, targets]
            redrawn = answer
            if len(label):
                total = np.cumsum(p)
                after = total[np.searchsorted(row, index, side="right") - 1]
                place = np.searchsorted(total, after - rng.random(len(index)) * _sums(row, p, targets))
                redrawn = label[place.clip(0, len(label) - 1)]
            parts.append((answer, confidence, -_sums(row, p * log_p, targets), surprise, answer == targets, redrawn))
        answer, confidence, entropy, surprise, chosen, redrawn = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        return cls(answer, confidence, entropy, surprise, chosen, redrawn, excess)


def _sums(row: Ints, values: Floats, targets: Ints) -> Floats:
    """(M,) the sum of each target's values."""
    return np.bincount(row, weights=values, minlength=len(targets)).astype(np.float64)
