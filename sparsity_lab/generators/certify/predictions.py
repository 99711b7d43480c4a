"""What the exact predictor says of all targets of many sequences."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.batch import Batch
from sparsity_lab.generators.task import Task

__all__ = ["Predictions"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """Of M targets, in the order of the sequences.

    Attributes:
        answer: (M,) the likeliest label, the first of equals.
        confidence: (M,) its probability.
        entropy: (M,) of the predicted distribution.
        surprise: (M,) -log of the target's probability.
        chosen: (M,) whether the target is the likeliest label.
        excess: the largest deviation of a total probability from one.
    """

    answer: Ints
    confidence: Floats
    entropy: Floats
    surprise: Floats
    chosen: NDArray[np.bool_]
    excess: float

    @classmethod
    def of(cls, task: Task, batches: Iterable[Batch]) -> "Predictions":
        """A batch at a time, since a prediction has V numbers for each target.

        Raises:
            NotComputable, ValueError: as ``Task.log_posterior``.
        """
        parts: list[tuple[NDArray[np.generic], ...]] = []
        excess = 0.0
        for batch in batches:
            log_posterior = task.log_posterior(batch).numpy()
            targets = batch.targets[batch.scored].numpy()
            posterior = np.exp(log_posterior)
            excess = max(excess, float(np.abs(posterior.sum(axis=1) - 1).max(initial=0)))
            # Where the probability is 0, so is its part of the entropy.
            entropy = -(posterior * np.maximum(log_posterior, -1e300)).sum(axis=1)
            surprise = -log_posterior[np.arange(len(targets)), targets]
            answer = posterior.argmax(axis=1)
            parts.append((answer, posterior.max(axis=1, initial=0), entropy, surprise, answer == targets))
        answer, confidence, entropy, surprise, chosen = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(answer, confidence, entropy, surprise, chosen, excess)
