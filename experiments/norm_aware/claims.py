"""The claims: what each seed gives, and what is asked of it."""

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, paired, paired_differences
from sparsity_lab.studies import Claim, Evidence, MostSeeds, NormalMean, Outcomes, means_listed

from .arms import AWARE, PLAIN, PUBLISHED, TRAINED
from .measure import LIMIT

__all__ = ["CLAIMS", "PRIMARY", "measured"]

PAPER = "Meng et al., arXiv 2506.21137"
SLOPE = (
    "dH / d ln r of the trained model: the change of the entropy of attention (nats) when all queries of a layer "
    "become longer, by central differences at their own norms, mean over layers, heads and rows"
)
INSIDE = f"whose norm times the scale is below {LIMIT:g}"


def measured(evidence: Evidence, arm: str, column: str) -> Replicates:
    """A measure by seed, averaged over the layers of the model, which are all of one size."""
    rows = evidence.measured.filter((pl.col("arm") == arm) & (pl.col("what") == "norms")).drop_nulls(column)
    return by_replicate(rows.group_by("seed", maintain_order=True).agg(pl.col(column).mean()), column)


def _falls(evidence: Evidence) -> Outcomes:
    slopes = {arm: measured(evidence, arm, "slope") for arm in (AWARE, *PLAIN)}
    detail = f"Mean slopes: {means_listed(slopes, 3)}."
    return Outcomes(slopes[AWARE], "nats per unit of ln r", detail)


def _more_than_plain(evidence: Evidence) -> Outcomes:
    slopes = {arm: measured(evidence, arm, "slope") for arm in (AWARE, *PLAIN)}
    steepest = paired(min, *(slopes[arm] for arm in PLAIN))
    detail = f"Mean slopes: {means_listed(slopes, 3)}."
    return Outcomes(paired_differences(slopes[AWARE], steepest), "nats per unit of ln r", detail)


def _inside(evidence: Evidence) -> Outcomes:
    shares = {arm: measured(evidence, arm, "inside") for arm in (AWARE, PUBLISHED)}
    return Outcomes(shares[AWARE], "of the queries", f"Mean shares inside: {means_listed(shares, 3)}.")


def _outside_as_published(evidence: Evidence) -> Outcomes:
    shares = measured(evidence, PUBLISHED, "inside")
    return Outcomes(shares, "of the queries", f"Mean share inside: {means_listed({PUBLISHED: shares}, 3)}.")


def _observed(evidence: Evidence) -> Outcomes:
    ranks = {arm: measured(evidence, arm, "rank") for arm in (AWARE, *PLAIN)}
    detail = f"Mean rank correlations: {means_listed(ranks, 3)}."
    return Outcomes(ranks[AWARE], "rank correlation", detail)


CLAIMS = (
    Claim(
        name="headline_nalaformer_entropy_falls",
        statement="Inside the range of its power, the entropy of norm-aware linear attention falls with the query "
        "norm.",
        source=PAPER,
        outcome=f"{SLOPE} {INSIDE}, at length {TRAINED}.",
        numbers=_falls,
        criterion=NormalMean(below=0.0, matters=0.01),
        arms=(AWARE,),
    ),
    Claim(
        name="headline_nalaformer_more_than_plain",
        statement="This entropy falls more than that of plain linear attention, with elu and with relu.",
        source=PAPER,
        outcome=f"{SLOPE} {INSIDE}, minus the same of plain linear attention over all of its rows, of the steeper "
        f"of elu and relu in that seed, at length {TRAINED}.",
        numbers=_more_than_plain,
        criterion=NormalMean(below=0.0, matters=0.01),
        arms=(AWARE, *PLAIN),
    ),
    Claim(
        name="norms_inside",
        statement="With its norms divided by twice the root of the head size, a trained norm-aware model has most "
        "queries in the range in which the power follows them.",
        source="this lab; a control for the two headlines",
        outcome=f"The share of queries {INSIDE}, over all layers and heads, at length {TRAINED}.",
        numbers=_inside,
        criterion=MostSeeds(at_least=0.5),
        arms=(AWARE,),
    ),
    Claim(
        name="published norms leave the range",
        statement="With unscaled norms, as published, fewer than half of the queries are in that range.",
        source="this lab",
        outcome="The same share, with a scale of 1.",
        numbers=_outside_as_published,
        criterion=MostSeeds(at_most=0.5),
        arms=(PUBLISHED,),
    ),
    Claim(
        name="longer queries are sharper",
        statement="Among rows with equally many keys, those with longer queries have less entropy.",
        source=PAPER,
        outcome="Spearman's correlation of the entropy and the query norm among rows with equally many keys, mean "
        f"over layers and heads, at length {TRAINED}, scaled norms.",
        numbers=_observed,
        criterion=MostSeeds(at_most=0.0),
        arms=(AWARE,),
    ),
)

PRIMARY = ("headline_nalaformer_entropy_falls", "headline_nalaformer_more_than_plain", "norms_inside")
