"""Evidence made up by hand, on which rules are shown to say each verdict."""

from collections.abc import Callable, Mapping
from functools import cache

import polars as pl

from sparsity_lab.studies import Claim, Decision, Evidence, Study, judge

Value = Callable[[str, str, int, int], float]
"""Normalized accuracy from arm, condition, length and seed."""
Learned = Callable[[str, str, int], bool]
"""Whether a seed learned, from arm, condition and seed."""

SEEDS = 24
"""So many decide whatever is clear."""
JITTER = (0.0, 0.02, -0.02, 0.01)
"""By seed, over and over: too small to matter, and not zero, so that there is a spread."""
TORN = (0.4, -0.4, 0.1, -0.1)
"""By seed, over and over: a difference that no number of seeds decides."""
CLEAR = 0.45


def shifted(by: float) -> tuple[float, ...]:
    """A difference of about ``by`` in every seed."""
    return tuple(by + one for one in JITTER)


VERDICTS = [
    (shifted(CLEAR), "held"),
    (shifted(-CLEAR), "did not hold"),
    (JITTER, "smaller than matters"),
    (TORN, "not decided"),
]
"""Differences by seed, and what the criterion of differences says of them."""
MOST_SEEDS = [(shifted(CLEAR), "held"), (shifted(-CLEAR), "did not hold"), (TORN, "not decided")]
"""The same for a difference that must matter in most seeds."""


def made_up(
    study: Study, value: Value, learned: Learned = lambda arm, condition, seed: True, seeds: int = SEEDS
) -> Evidence:
    """Rows of the study's small size, with these values."""
    cells = _cells(study, seeds)
    own = cells.select("arm", "condition", "length", "seed").rows()
    return Evidence(
        cells.with_columns(
            normalized_accuracy=pl.Series([value(*one) for one in own], dtype=pl.Float64),
            learned=pl.Series([learned(arm, condition, seed) for arm, condition, _, seed in own]),
        )
    )


@cache
def _cells(study: Study, seeds: int) -> pl.DataFrame:
    """What is evaluated in the small size, of so many seeds, counted from 0."""
    runs = {arm: one.run(one.first) for arm, one in study.arms("small").items()}
    return pl.DataFrame(
        {
            "arm": arm,
            "seed": seed,
            "run": f"{arm}, {seed}",
            "condition": condition,
            "length": length,
            "trained": length <= run.training.curriculum.range()[1],
        }
        for arm, run in runs.items()
        for seed in range(seeds)
        for condition in run.conditions
        for length in run.evaluation.lengths
    )


def claim_of(study: Study, name: str) -> Claim:
    """The claim of this name."""
    return next(claim for claim in study.claims if claim.name == name)


def decided(study: Study, name: str, evidence: Evidence) -> Decision:
    """The decision on the claim of this name alone."""
    return judge([claim_of(study, name)], (), evidence)[name]


def by_seed(numbers: tuple[float, ...]) -> Mapping[int, float]:
    """The number of each seed, over and over."""
    return {seed: numbers[seed % len(numbers)] for seed in range(SEEDS)}


def apart(arm: str, length: int, by: tuple[float, ...], trained: int = 24) -> Value:
    """All is right up to the trained lengths; beyond, at ``length``, everything is at 0.5, and ``arm`` is above by
    what its seed says."""

    def value(name: str, condition: str, at: int, seed: int) -> float:
        if at <= trained:
            return 1.0
        return 0.5 + (by[seed % len(by)] if name == arm and at == length else 0.0)

    return value
