"""The claims and their rules. Which kernels there are is read off the evidence, so that results outlive the registry
they were made with."""

import math

import polars as pl

from sparsity_lab.analysis import by_replicate, paired
from sparsity_lab.studies import MATTERS, Claim, Evidence, MostSeeds, Outcomes, difference_claim, means_listed

from .arms import FAR, TRAINED
from .measure import LONG

__all__ = ["CLAIMS", "LENGTH_SCALED", "by_run"]

LENGTH_SCALED = ("CosineSoftmax", "EntropyInvariantSoftmax", "LSSA", "LSSAR", "LogNSoftmax", "SSMax")
FAST = ("Linear", "SlidingWindow")
FASTER = 1.1
"""How many times as many tokens a second count as faster."""


def by_run(evidence: Evidence) -> pl.DataFrame:
    """One row for each run: ``arm``, ``seed``, ``learned``, ``reach``, ``censored``, the normalized accuracies
    ``at_trained`` and ``at_far``, and of the long step ``speed`` and ``memory``."""
    value = pl.col("normalized_accuracy")
    runs = evidence.rows.group_by("arm", "seed", maintain_order=True).agg(
        pl.col("learned", "reach", "censored").first(),
        at_trained=value.filter(pl.col("length") == TRAINED).first(),
        at_far=value.filter(pl.col("length") == FAR).first(),
    )
    costs = evidence.measured.filter(pl.col("length") == LONG).select("arm", "seed", "speed", "memory")
    return runs.join(costs, on=["arm", "seed"], how="left", maintain_order="left")


def learned(evidence: Evidence) -> Outcomes:
    """The share of the kernels that learned."""
    runs = by_run(evidence)
    shares = by_replicate(runs.group_by("seed").agg(pl.col("learned").mean()).sort("seed"), "learned")
    never = runs.group_by("arm", maintain_order=True).agg(pl.col("learned").any()).filter(~pl.col("learned"))["arm"]
    detail = f"Never learned: {', '.join(never)}." if len(never) else "Each was learned with at least one seed."
    return Outcomes(shares, "of the kernels", detail)


def spread(evidence: Evidence) -> Outcomes:
    """How far the reaches of kernels that learned lie apart."""
    found, words = {}, []
    runs = by_run(evidence).filter(pl.col("learned"))
    for (seed,), part in sorted(runs.partition_by("seed", as_dict=True).items()):
        ranked = part.sort("reach", "arm")
        if ranked.height > 1:
            first, last = ranked.row(0, named=True), ranked.row(-1, named=True)
            found[seed] = math.log2(last["reach"] / first["reach"])
            at_least = "at least " * last["censored"]
            words.append(f"{first['reach']} ({first['arm']}) to {at_least}{last['reach']} ({last['arm']})")
    return Outcomes(found, "doublings", f"By seed: {'; '.join(words)}." if words else "")


def speeds(evidence: Evidence) -> Outcomes:
    """How many times as fast as softmax the slower of the fast kernels trains at the long length."""
    at = evidence.measured.filter(pl.col("length") == LONG).sort("seed")
    found = {kind: by_replicate(at.filter(pl.col("arm") == kind), "speed") for kind in FAST}
    detail = f"Means: {means_listed(found)}."
    return Outcomes(paired(lambda *one: min(one), *found.values()), "times as fast", detail)


CLAIMS = (
    difference_claim(
        "length scaling",
        f"Kernels that scale scores with length hold better at {FAR} than softmax.",
        LENGTH_SCALED,
        ["Softmax"] * len(LENGTH_SCALED),
        lengths=(TRAINED, FAR),
        source="this lab, after the purpose of scaling scores with log n (arXiv 2501.13428)",
        criterion=MostSeeds(at_least=MATTERS),
    ),
    Claim(
        name="faster",
        statement=f"At {LONG} tokens decoders with linear attention and with a window of 64 both train faster than "
        "one with fused softmax.",
        source="this lab",
        outcome=f"Tokens a second of a training step of one sequence of {LONG} tokens over softmax's, the median of "
        f"five pairs that take turns, of the slower of {' and '.join(FAST)}.",
        numbers=speeds,
        criterion=MostSeeds(at_least=FASTER),
        arms=FAST,
    ),
    Claim(
        name="most learn",
        statement="At least three quarters of the kernels learn the task, all in the same number of steps.",
        source="this lab",
        outcome="Share of the kernels whose run learned: has a normalized accuracy of at least 0.9 at all trained "
        "lengths.",
        numbers=learned,
        criterion=MostSeeds(at_least=0.75),
    ),
    Claim(
        name="reach differs",
        statement="Kernels that learn equally well on short sequences differ in reach by at least four times.",
        source="this lab",
        outcome="Doublings from the shortest to the longest reach among the kernels that learned; a reach at the end "
        "of the grid counts as that.",
        numbers=spread,
        criterion=MostSeeds(at_least=2.0),
    ),
)
