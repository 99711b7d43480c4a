"""The claims and their rules."""

from collections.abc import Callable, Mapping
from functools import partial

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, paired, paired_differences
from sparsity_lab.studies import (
    ABOVE_ZERO,
    Claim,
    Decision,
    Evidence,
    decided,
    held_above,
    means_listed,
    shares_of_way,
    undecided,
)

from .arms import HYBRID, TRAINED, gated
from .measure import AWARE, LONG, TIMED

__all__ = ["CLAIMS", "entropies", "losses"]


def losses(evidence: Evidence, arm: str) -> Replicates:
    """Loss at the trained length of the seeds that learned: that do better than the law of single bytes."""
    rows = evidence.rows.filter((pl.col("arm") == arm) & pl.col("trained") & (pl.col("loss") < pl.col("chance_loss")))
    return by_replicate(rows, "loss")


def measured(column: str, evidence: Evidence, arm: str, **where: object) -> Replicates:
    """A measure by seed, averaged over the layers and heads of the model, which are all of one size."""
    rows = evidence.measured.filter(pl.col("arm") == arm).filter(**where).drop_nulls(column)
    return by_replicate(rows.group_by("seed", maintain_order=True).agg(pl.col(column).mean()), column)


entropies = partial(measured, "entropy", what="attention")
slopes = partial(measured, "query_slope", what="attention")


def decide_less(
    read: Callable[[Evidence, str], Replicates], unit: str, less: str, more: str, evidence: Evidence
) -> Decision:
    """Whether one arm has less of something than another."""
    values = {arm: read(evidence, arm) for arm in (less, more)}
    return decided(paired_differences(values[more], values[less]), unit, means_of(values))


def decide_gap(evidence: Evidence) -> Decision:
    """What share of the way from linear attention's entropy to softmax's the norm-aware map goes."""
    values = {arm: entropies(evidence, arm) for arm in ("elu", "cosine", "softmax")}
    elu, cosine, softmax = values.values()
    gaps = paired(lambda linear, _, dense: linear - dense, elu, cosine, softmax)
    if any(gap <= 0 for gap in gaps.values()):
        return undecided(decided({}, "of the gap", means_of(values)), "There is no gap.")
    return decided(shares_of_way(elu, cosine, softmax), "of the gap", means_of(values), above=0.5)


def decide_gate(evidence: Evidence) -> Decision:
    """Whether the gate lowers the loss more under the norm-aware map than under softmax."""
    gains = {
        arm: paired_differences(losses(evidence, arm), losses(evidence, gated(arm))) for arm in ("cosine", "softmax")
    }
    return decided(paired_differences(*gains.values()), "nats", means_of(gains, "Taken off by the gate"))


def decide_range(evidence: Evidence) -> Decision:
    """Whether most query norms stay where the power still follows them."""
    shares = {stage: measured("aware", evidence, "cosine", stage=stage) for stage in ("initial", "trained")}
    return decided(shares["trained"], "of the queries", means_of(shares), above=0.5)


def decide_time(evidence: Evidence) -> Decision:
    """Whether the norm-aware map is faster than softmax at the longest length."""
    speeds = {f"at {length}": measured("speed", evidence, "cosine", length=length) for length in TIMED}
    return decided(speeds[f"at {LONG}"], "times as fast", means_of(speeds), above=1.0)


def means_of(values: Mapping[str, Replicates], begun: str = "Means") -> str:
    """``Means: elu 2.61; softmax 1.69.``"""
    words = means_listed(values)
    return f"{begun}: {words}." if words else "Nothing was measured."


PAPER = "Meng et al., arXiv 2506.21137"
LEARNED = f"at length {TRAINED}, paired over the seeds in which both do better than the law of single bytes"


def _loss_claim(name: str, statement: str, less: str, more: str, source: str = PAPER) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=source,
        rule=f"Loss of {more} minus loss of {less} {LEARNED}. {ABOVE_ZERO}",
        decide=partial(decide_less, losses, "nats", less, more),
    )


CLAIMS = (
    Claim(
        name="spikier",
        statement="Norm-aware linear attention (cosine) is spikier than linear attention (elu).",
        source=PAPER,
        rule=f"Entropy of the rows of elu minus that of cosine at length {TRAINED}, averaged over rows, heads and "
        f"layers, paired by seed. {ABOVE_ZERO}",
        decide=partial(decide_less, entropies, "nats", "cosine", "elu"),
    ),
    Claim(
        name="entropy gap",
        statement="Norm-aware attention (cosine) closes at least half of the entropy gap between linear attention "
        "(elu) and softmax.",
        source=f"{PAPER}, which says that spikiness is restored; the half is this lab's",
        rule="The same entropies: (elu - cosine) / (elu - softmax) of each seed; not decided if a seed has no gap. "
        f"{held_above(0.5)}",
        decide=decide_gap,
    ),
    Claim(
        name="follows the norm",
        statement="The entropy of norm-aware attention (cosine) falls with the query norm more than that of linear "
        "attention (elu).",
        source=PAPER,
        rule=f"dH / d ln r under rescaled queries at length {TRAINED}, averaged over rows, heads and layers: "
        f"elu minus cosine, paired by seed. {ABOVE_ZERO}",
        decide=partial(decide_less, slopes, "nats per unit of ln r", "cosine", "elu"),
    ),
    Claim(
        name="norm range",
        statement=f"Most queries of a trained norm-aware model (cosine) have norms below {AWARE:g}, where the power "
        "still follows them.",
        source="this lab",
        rule=f"Share of the queries with r < {AWARE:g} at length {TRAINED}, over all layers and heads, by seed. "
        f"{held_above(0.5)}",
        decide=decide_range,
    ),
    _loss_claim("better than elu", "Norm-aware attention (cosine) models text better than elu.", "cosine", "elu"),
    _loss_claim("better than relu", "Norm-aware attention (cosine) models text better than relu.", "cosine", "relu"),
    _loss_claim(
        "better than elu, gated",
        "With the output gate, norm-aware attention (cosine) models text better than elu.",
        gated("cosine"),
        gated("elu"),
    ),
    _loss_claim(
        "cosine or polarity",
        "The cosine map of the paper models text better than the polarity map of its code.",
        "cosine",
        "polarity",
        "this lab",
    ),
    _loss_claim(
        "hybrid",
        "Softmax in the last layer makes norm-aware attention better.",
        HYBRID,
        "cosine",
        f"this lab, after the released models of {PAPER}, whose last stages are softmax",
    ),
    _loss_claim("gate", "The output gate makes norm-aware attention better.", gated("cosine"), "cosine"),
    Claim(
        name="gate, beyond softmax",
        statement="The output gate does more for norm-aware attention (cosine) than for softmax.",
        source="this lab",
        rule=f"What the gate takes off the loss under cosine minus what it takes off under softmax {LEARNED}. "
        f"{ABOVE_ZERO}",
        decide=decide_gate,
    ),
    Claim(
        name="faster",
        statement=f"At {LONG} tokens norm-aware attention (cosine) is faster than softmax.",
        source=PAPER,
        rule=f"A forward pass of one sequence of {LONG} tokens: time of the trained weights under softmax over "
        f"their own, the median of five pairs that take turns, by seed; without the gate. {held_above(1)}",
        decide=decide_time,
    ),
)
