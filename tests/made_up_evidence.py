"""Evidence made up by hand, on which rules are shown to say each verdict."""

from collections.abc import Callable
from functools import cache

import polars as pl

from sparsity_lab.studies import Claim, Evidence, Study

Value = Callable[[str, str, int, int], float]
"""Normalized accuracy from arm, condition, length and seed."""
Learned = Callable[[str, str, int], bool]
"""Whether a seed learned, from arm, condition and seed."""

JITTER = (0.0, 0.02, -0.02, 0.01)
"""By seed, over and over: too small to decide anything, and not zero, so that there is an interval."""
TORN = (0.4, -0.4, 0.1, -0.1)
"""By seed: a difference that no interval of so few seeds decides."""


def made_up(study: Study, value: Value, learned: Learned = lambda arm, condition, seed: True) -> Evidence:
    """Rows of the study's small size, with these values."""
    cells = _cells(study)
    own = cells.select("arm", "condition", "length", "seed").rows()
    return Evidence(
        cells.with_columns(
            normalized_accuracy=pl.Series([value(*one) for one in own], dtype=pl.Float64),
            learned=pl.Series([learned(arm, condition, seed) for arm, condition, _, seed in own]),
        )
    )


@cache
def _cells(study: Study) -> pl.DataFrame:
    """What is evaluated in the small size."""
    return pl.DataFrame(
        {
            "arm": arm,
            "seed": run.data_seed,
            "run": run.id,
            "condition": condition,
            "length": length,
            "trained": length <= run.training.curriculum.range()[1],
        }
        for arm, runs in study.arms("small").items()
        for run in runs
        for condition in run.conditions
        for length in run.evaluation.lengths
    )


def claim_of(study: Study, name: str) -> Claim:
    """The claim of this name."""
    return next(claim for claim in study.claims if claim.name == name)


def apart(arm: str, length: int, by: tuple[float, ...]) -> Value:
    """All is right up to the trained lengths; beyond, at ``length``, everything is at 0.5, and ``arm`` is above by
    what its seed says."""

    def value(name: str, condition: str, at: int, seed: int) -> float:
        if at <= 24:
            return 1.0
        return 0.5 + (by[seed % len(by)] if name == arm and at == length else 0.0)

    return value


def shifted(by: float) -> tuple[float, ...]:
    """A difference of about ``by`` in every seed."""
    return tuple(by + one for one in JITTER)
