"""The claims and their rules."""

from functools import partial
from statistics import fmean

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, by_seed, paired_differences
from sparsity_lab.studies import (
    BoundedMean,
    Claim,
    Evidence,
    MostSeeds,
    Outcomes,
    difference_claim,
    means_listed,
    rank_correlations,
)

from .arms import FAR, KERNELS, LENGTH_SCALED, TRAINED

__all__ = ["CLAIMS", "FEWEST", "RANKED", "by_run"]

FEWEST = 5
"""Kernels that must have learned for a rank correlation over kernels."""
RANKED = tuple(name for name in KERNELS if name != "LSSAR p=15")
"""The kernels of rank correlations. With p=15 nothing was learned in calibration."""
MORE = 0.2
"""A difference of entropies that matters, in nats."""


def by_run(evidence: Evidence) -> pl.DataFrame:
    """The measures of each run, length and factor, averaged over heads: every head's output enters the answer. With
    ``learned``, and ``normalized_accuracy`` where it was evaluated."""
    keys = ["arm", "seed", "run", "length", "factor"]
    means = evidence.measured.group_by(keys, maintain_order=True).agg(pl.exclude("layer", "head").mean())
    accuracy = evidence.rows.select("run", "length", "normalized_accuracy", "learned")
    return means.join(accuracy, on=["run", "length"], how="left", maintain_order="left")


def moves(evidence: Evidence) -> pl.DataFrame:
    """One row for each run that learned, at ``FAR``: its measures there, ``entropy_move`` from the longest trained
    length, its size ``entropy_moved``, and ``mass_kept``, the share of the mass there."""
    plain = by_run(evidence).filter((pl.col("factor") == 1.0) & pl.col("learned"))
    first = plain.filter(pl.col("length") == TRAINED)
    first = first.select("run", pl.col("entropy", "mass").name.suffix("_trained"))
    move = pl.col("entropy") - pl.col("entropy_trained")
    return (
        plain.filter(pl.col("length") == FAR)
        .join(first, on="run", maintain_order="left")
        .with_columns(entropy_move=move, entropy_moved=move.abs(), mass_kept=pl.col("mass") / pl.col("mass_trained"))
    )


def ranks(column: str, evidence: Evidence) -> Outcomes:
    """The rank correlation over kernels of a column of ``moves`` with the accuracy there."""
    known = moves(evidence).filter(pl.col("arm").is_in(RANKED)).drop_nulls([column, "normalized_accuracy"])
    correlations = partial(rank_correlations, column=column, other="normalized_accuracy", fewest=FEWEST)
    found = correlations(known)
    if not found:
        return Outcomes(found, "rank correlation", f"No seed with {FEWEST} kernels.")
    # Seeds say nothing of other kernels; how much hangs on one of these does.
    without = {arm: correlations(known.filter(pl.col("arm") != arm)) for arm in known["arm"].unique().sort()}
    left = {arm: fmean(values.values()) for arm, values in without.items() if values}
    detail = f"By seed: {', '.join(f'{one:.2f}' for one in found.values())}."
    if left:
        mean = fmean(found.values())
        arm = max(left, key=lambda name: abs(left[name] - mean))
        detail += f" This is about other seeds, not about other kernels: without {arm} the mean is {left[arm]:.2f}."
    return Outcomes(found, "rank correlation", detail)


def growth(evidence: Evidence) -> Outcomes:
    """How much more softmax's entropy grows than that of the length-scaled kernels, mean over those that learned."""
    found = moves(evidence)
    by_arm = {
        arm: by_replicate(found.filter(pl.col("arm") == arm), "entropy_move") for arm in ("softmax", *LENGTH_SCALED)
    }
    more = {
        (seed, arm): number
        for arm in LENGTH_SCALED
        for seed, number in paired_differences(by_arm["softmax"], by_arm[arm]).items()
    }
    return Outcomes(by_seed(more), "nats", f"Mean growth: {means_listed(by_arm, missing='never learned')}.")


def flatness(evidence: Evidence) -> Outcomes:
    """The entropy of linear attention minus that of softmax, over the seeds that both learned."""
    at = by_run(evidence).filter((pl.col("factor") == 1.0) & (pl.col("length") == TRAINED))

    def entropies(rows: pl.DataFrame) -> dict[str, Replicates]:
        return {
            name: by_replicate(rows.filter(pl.col("arm") == name), "entropy") for name in ("linear, elu", "softmax")
        }

    learned, every = entropies(at.filter(pl.col("learned"))), entropies(at)
    over_all = means_listed({"Over all seeds, learned or not:": paired_differences(*every.values())})
    detail = f"Means: {means_listed(learned, missing='never learned')}. {over_all}."
    return Outcomes(paired_differences(*learned.values()), "nats", detail)


def _ranks_claim(name: str, statement: str, column: str, words: str, criterion: BoundedMean) -> Claim:
    return Claim(
        name=name,
        statement=f"Among these kernels, those {statement} hold better at {FAR}.",
        source="this lab",
        outcome=f"Over the kernels that learned (at least {FEWEST}), the rank correlation of {words} with the "
        f"normalized accuracy at {FAR}.",
        numbers=partial(ranks, column),
        criterion=criterion,
        arms=RANKED,
    )


SCALING = "this lab, after the purpose of scaling scores with log n (arXiv 2501.13428)"


CLAIMS = (
    _ranks_claim(
        "mass kept",
        f"that keep a larger share of their mass on the planted tokens from length {TRAINED} to {FAR}",
        "mass_kept",
        f"the mass at {FAR} over that at {TRAINED}",
        BoundedMean(above=0.0),
    ),
    Claim(
        name="entropy of length scaling",
        statement=f"From length {TRAINED} to {FAR}, the entropy of softmax grows more than that of kernels whose "
        "scores are scaled with length.",
        source=SCALING,
        outcome=f"H({FAR}) - H({TRAINED}) of the row that answers, of softmax minus that of "
        f"{', '.join(LENGTH_SCALED)}: the mean over those that learned, where softmax did, in nats.",
        numbers=growth,
        criterion=MostSeeds(at_least=MORE),
        arms=("softmax", *LENGTH_SCALED),
    ),
    difference_claim(
        "reach of length scaling",
        f"Kernels whose scores are scaled with length hold better at {FAR} than softmax.",
        LENGTH_SCALED,
        ["softmax"] * len(LENGTH_SCALED),
        lengths=(TRAINED, FAR),
        source=SCALING,
    ),
    Claim(
        name="linear attention is flat",
        statement="Linear attention (elu) is less spiky than softmax.",
        source="this lab, after the premise of norm-aware linear attention (arXiv 2506.21137)",
        outcome=f"H of linear attention (elu) minus that of softmax at length {TRAINED}, where both learned, in "
        "nats.",
        numbers=flatness,
        criterion=MostSeeds(at_least=MORE),
        arms=("linear, elu", "softmax"),
    ),
    _ranks_claim(
        "entropy moved",
        f"whose entropy moves less from length {TRAINED} to {FAR}",
        "entropy_moved",
        f"|H({FAR}) - H({TRAINED})| of the row that answers",
        BoundedMean(below=0.0),
    ),
)
