"""The claims and their rules. Which kernels there are is read off the evidence, so that results outlive the registry
they were made with."""

import math
from functools import partial

import polars as pl

from sparsity_lab.analysis import by_replicate
from sparsity_lab.studies import (
    ABOVE_ZERO,
    Claim,
    Decision,
    Evidence,
    advantages,
    decided,
    held_above,
    means_listed,
    rank_correlations,
)

from .arms import FAR, TRAINED
from .measure import LONG

__all__ = ["CLAIMS", "by_run"]

FEWEST = 5  # kernels that must have learned for a rank correlation over kernels

LENGTH_SCALED = ("CosineSoftmax", "EntropyInvariantSoftmax", "LSSA", "LSSAR", "LogNSoftmax", "SSMax")


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


def decide_learned(evidence: Evidence) -> Decision:
    """What share of the kernels learned."""
    runs = by_run(evidence)
    shares = by_replicate(runs.group_by("seed").agg(pl.col("learned").mean()).sort("seed"), "learned")
    never = runs.group_by("arm", maintain_order=True).agg(pl.col("learned").any()).filter(~pl.col("learned"))["arm"]
    detail = f"Never learned: {', '.join(never)}." if len(never) else "Each was learned with at least one seed."
    return decided(shares, "of the kernels", detail, above=0.75)


def decide_spread(evidence: Evidence) -> Decision:
    """How far the reaches of kernels that learned lie apart."""
    found, words = {}, []
    learned = by_run(evidence).filter(pl.col("learned"))
    for (seed,), part in sorted(learned.partition_by("seed", as_dict=True).items()):
        ranked = part.sort("reach", "arm")
        if ranked.height > 1:
            first, last = ranked.row(0, named=True), ranked.row(-1, named=True)
            found[seed] = math.log2(last["reach"] / first["reach"])
            at_least = "at least " * last["censored"]
            words.append(f"{first['reach']} ({first['arm']}) to {at_least}{last['reach']} ({last['arm']})")
    return decided(found, "doublings", f"By seed: {'; '.join(words)}." if words else "", above=2.0)


def decide_scaled(evidence: Evidence) -> Decision:
    """How much better than softmax the length-scaled kernels that learned hold."""
    learned = by_run(evidence).filter(pl.col("learned"))
    found, names = advantages(learned, "at_far", "Softmax", LENGTH_SCALED)
    return decided(found, "normalized accuracy", f"Of them learned: {', '.join(names)}." if names else "")


def decide_price(evidence: Evidence) -> Decision:
    """The rank correlation over kernels of speed with the accuracy at ``FAR``."""
    learned = by_run(evidence).filter(pl.col("learned")).drop_nulls(["speed", "at_far"])
    found = rank_correlations(learned, "speed", "at_far", FEWEST)
    by_seed = ", ".join(f"{one:.2f}" for one in found.values())
    detail = f"By seed: {by_seed}." if found else f"No seed with {FEWEST} kernels."
    return decided(found, "rank correlation", detail, below=0.0)


def decide_speed(kind: str, evidence: Evidence) -> Decision:
    """Whether a kernel trains faster than softmax at the long length."""
    own = evidence.measured.filter(pl.col("arm") == kind).sort("length", "seed")
    by_length = own.partition_by("length", as_dict=True, maintain_order=True)
    speeds = {f"at {length}": by_replicate(part, "speed") for (length,), part in by_length.items()}
    detail = f"Means: {means_listed(speeds)}." if speeds else ""
    return decided(speeds.get(f"at {LONG}", {}), "times as fast", detail, above=1.0)


def _speed_claim(kind: str, words: str) -> Claim:
    return Claim(
        name=f"{words} is faster",
        statement=f"At {LONG} tokens a decoder with {words} trains faster than one with fused softmax.",
        source="this lab",
        rule=f"Tokens a second of a training step of one sequence of {LONG} tokens over softmax's, the median of "
        f"five pairs that take turns, by seed. {held_above(1)}",
        decide=partial(decide_speed, kind),
    )


CLAIMS = (
    Claim(
        name="most learn",
        statement="More than three quarters of the kernels learn the task, all in the same number of steps.",
        source="this lab",
        rule="Share of the kernels whose run learned (normalized accuracy of at least 0.9 at all trained lengths), "
        f"by seed. {held_above(0.75)}",
        decide=decide_learned,
    ),
    Claim(
        name="reach differs",
        statement="Kernels that learn equally well on short sequences differ in reach by more than four times.",
        source="this lab",
        rule="Doublings from the shortest to the longest reach among the kernels that learned, by seed; a reach at "
        f"the end of the grid counts as that. {held_above(2)}",
        decide=decide_spread,
    ),
    Claim(
        name="length scaling",
        statement=f"Kernels that scale scores with length hold better at {FAR} than softmax.",
        source="this lab, after what scaling scores with log n is made for (arXiv 2501.13428)",
        rule=f"Mean normalized accuracy at {FAR} of those of {', '.join(LENGTH_SCALED)} that learned, minus that of "
        f"softmax, by seed. {ABOVE_ZERO}",
        decide=decide_scaled,
    ),
    Claim(
        name="speed costs reach",
        statement=f"The faster a kernel trains at {LONG} tokens, the worse it holds at {FAR}.",
        source="this lab",
        rule=f"Over the kernels that learned (at least {FEWEST}), the rank correlation of speed with the normalized "
        f"accuracy at {FAR}, by seed. Held if the 95 % interval of the mean over seeds lies below 0, did not hold if "
        "it lies above or at 0, else not decided.",
        decide=decide_price,
    ),
    _speed_claim("Linear", "linear attention"),
    _speed_claim("SlidingWindow", "a window of 64"),
)
