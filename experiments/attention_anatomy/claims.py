"""The claims and their rules."""

from dataclasses import replace
from functools import partial
from statistics import fmean

import polars as pl

from sparsity_lab.analysis import by_replicate, paired_differences
from sparsity_lab.studies import Claim, Decision, Evidence, advantages, decided, means_listed, rank_correlations

from .arms import FAR, LENGTH_SCALED, TRAINED

__all__ = ["CLAIMS", "FEWEST", "by_run"]

FEWEST = 5  # kernels that must have learned for a rank correlation over kernels


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


def decide_ranks(column: str, sign: int, evidence: Evidence) -> Decision:
    """The rank correlation over kernels of a column of ``moves`` with the accuracy there, one for each seed."""
    known = moves(evidence).drop_nulls([column, "normalized_accuracy"])
    correlations = partial(rank_correlations, column=column, other="normalized_accuracy", fewest=FEWEST)
    found = correlations(known)
    # Seeds say nothing of other kernels; how much hangs on one of these does.
    without = {arm: correlations(known.filter(pl.col("arm") != arm)) for arm in known["arm"].unique().sort()}
    left = {arm: fmean(values.values()) for arm, values in without.items() if values}
    by_seed = ", ".join(f"{one:.2f}" for one in found.values())
    detail = f"By seed: {by_seed}." if found else f"No seed with {FEWEST} kernels."
    if left:
        arm = min(left, key=lambda name: sign * left[name])
        detail += f" The interval speaks of other seeds, not of other kernels: without {arm} it is {left[arm]:.2f}."
    decision = decided(found, "rank correlation", detail, below=0.0 if sign < 0 else None)
    low, high = decision.interval.low, decision.interval.high
    if low is None or high is None:
        return decision
    return replace(decision, interval=replace(decision.interval, low=max(-1.0, low), high=min(1.0, high)))


def decide_scaled(evidence: Evidence) -> Decision:
    """How much more softmax's entropy moves up than the mean of the length-scaled kernels' that learned."""
    found, names = advantages(moves(evidence), "entropy_move", "softmax", LENGTH_SCALED)
    less = {seed: -more for seed, more in found.items()}
    return decided(less, "nats", f"Compared with {', '.join(names)}." if names else "")


def decide_pair(arm: str, minus: str, column: str, unit: str, evidence: Evidence) -> Decision:
    """The difference of two arms at the longest trained length, over the seeds that both learned."""
    at = by_run(evidence).filter((pl.col("factor") == 1.0) & (pl.col("length") == TRAINED) & pl.col("learned"))
    if not {arm, minus} <= set(at["arm"]):
        return decided({}, unit, "One of the two never learned.")
    values = {name: by_replicate(at.filter(pl.col("arm") == name), column) for name in (arm, minus)}
    return decided(paired_differences(*values.values()), unit, f"Means: {means_listed(values)}.")


BY_SEED = "over seeds (Student's 95 % interval)"
CLAIMS = (
    Claim(
        name="entropy and accuracy",
        statement=f"Among these kernels, the less the entropy moves from length {TRAINED} to {FAR}, the better the "
        f"kernel holds at {FAR}.",
        source="this lab, after the idea of entropy invariance",
        rule=f"Over the kernels that learned (at least {FEWEST}), the rank correlation of |H({FAR}) - H({TRAINED})| "
        f"of the answer's row with the normalized accuracy at {FAR}, one for each seed; the mean {BY_SEED}. Held if "
        "the interval lies below 0, did not hold if it lies above or at 0.",
        decide=partial(decide_ranks, "entropy_moved", -1),
    ),
    Claim(
        name="mass and accuracy",
        statement="Among these, the more of its attention a kernel still has on the planted tokens at length "
        f"{FAR}, the better it holds there.",
        source="this lab",
        rule=f"Over the kernels that learned (at least {FEWEST}), the rank correlation of the mass at "
        f"{FAR} with the normalized accuracy at {FAR}, one for each seed; the mean {BY_SEED}. Held if the interval "
        "lies above 0, did not hold if it lies below or at 0.",
        decide=partial(decide_ranks, "mass", 1),
    ),
    Claim(
        name="mass kept and accuracy",
        statement="Among these, the larger the share of its mass on the planted tokens that a kernel keeps from "
        f"length {TRAINED} to {FAR}, the better it holds there.",
        source="this lab",
        rule=f"As for the mass, with the mass at {FAR} over that at {TRAINED} in its place.",
        decide=partial(decide_ranks, "mass_kept", 1),
    ),
    Claim(
        name="length scaling",
        statement=f"From length {TRAINED} to {FAR}, softmax's entropy grows more than that of kernels that scale "
        "scores with length.",
        source="this lab, after what scaling scores with log n is made for (arXiv 2501.13428)",
        rule=f"H({FAR}) - H({TRAINED}) of softmax minus the mean of the same over "
        f"{', '.join(LENGTH_SCALED)} (those that learned), paired by seed; the mean {BY_SEED}. Held if the interval "
        "lies above 0, did not hold if below or at 0.",
        decide=decide_scaled,
    ),
    Claim(
        name="linear attention is flat",
        statement="Linear attention (elu) is less spiky than softmax.",
        source="this lab, after the premise of norm-aware linear attention (arXiv 2506.21137)",
        rule=f"H of linear attention (elu) minus that of softmax at length {TRAINED}, paired over the seeds "
        f"that both learned; the mean {BY_SEED}. Held if the interval lies above 0, did not hold if below or at 0.",
        decide=partial(decide_pair, "linear, elu", "softmax", "entropy", "nats"),
    ),
    Claim(
        name="norm awareness",
        statement="At the norms learned, the entropy of norm-aware linear attention falls with the query norm, more "
        "than that of linear attention (elu).",
        source="this lab, after what norm-aware linear attention is made for (arXiv 2506.21137)",
        rule=f"dH / d ln r of the elu kernel minus that of the norm-aware one at length {TRAINED}, paired over "
        f"the seeds that both learned; the mean {BY_SEED}. Held if the interval lies above 0, did not hold if below "
        "or at 0.",
        decide=partial(decide_pair, "linear, elu", "linear, norm-aware", "query_slope", "nats per unit of ln r"),
    ),
)
