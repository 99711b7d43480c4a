"""The claims: what each seed gives, and what is asked of it."""

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, paired
from sparsity_lab.studies import (
    Claim,
    Evidence,
    MostSeeds,
    NormalMean,
    Outcomes,
    growths,
    means_listed,
    shares_of_way,
)

from .arms import BOTH, DENSE, INTERPOLATED, LORA, PARENT, SHIFTED

__all__ = ["CLAIMS", "PRIMARY", "losses"]

PAPER = "Chen et al., arXiv 2309.12307"
TESTED = (
    "loss on text (nats a byte) at four times the parent's context, tested with dense attention on the same bytes"
)


def losses(evidence: Evidence, arm: str, context: int = 1, column: str = "loss") -> Replicates:
    """A loss by seed at one of the tested contexts, by its place: 0 is the parent's, 1 four times it, 2 eight times;
    empty without results."""
    lengths = evidence.measured["length"].unique().sort()
    at = (pl.col("arm") == arm) & (pl.col("length") == lengths[context])
    return by_replicate(evidence.measured.filter(at), column)


def _within(evidence: Evidence) -> Outcomes:
    dense, shifted = (losses(evidence, arm) for arm in (DENSE, SHIFTED))
    return Outcomes(growths(dense, shifted), "of the loss", _means({DENSE: dense, SHIFTED: shifted}))


def _lora_behind(evidence: Evidence) -> Outcomes:
    shifted, alone = (losses(evidence, arm) for arm in (SHIFTED, LORA))
    return Outcomes(growths(shifted, alone), "of the loss", _means({SHIFTED: shifted, LORA: alone}))


def _both_close(evidence: Evidence) -> Outcomes:
    alone, both, full = (losses(evidence, arm) for arm in (LORA, BOTH, SHIFTED))
    behind = {seed for seed, gap in paired(lambda one, other: one - other, alone, full).items() if gap > 0}
    shares = {seed: share for seed, share in shares_of_way(alone, both, full).items() if seed in behind}
    return Outcomes(shares, "of the gap", _means({LORA: alone, BOTH: both, SHIFTED: full}))


def _tuning_matters(evidence: Evidence) -> Outcomes:
    parent, interpolated, dense = (losses(evidence, arm) for arm in (PARENT, INTERPOLATED, DENSE))
    detail = _means({PARENT: parent, INTERPOLATED: interpolated, DENSE: dense})
    return Outcomes(growths(dense, paired(min, parent, interpolated)), "of the loss", detail)


def _dense_test(evidence: Evidence) -> Outcomes:
    dense, sparse = (losses(evidence, SHIFTED, column=column) for column in ("loss", "sparse_loss"))
    return Outcomes(growths(dense, sparse), "of the loss", _means({"tested dense": dense, "tested sparse": sparse}))


def _short(evidence: Evidence) -> Outcomes:
    parent, shifted = (losses(evidence, arm, 0) for arm in (PARENT, SHIFTED))
    return Outcomes(growths(parent, shifted), "of the loss", _means({PARENT: parent, SHIFTED: shifted}))


def _means(found: dict[str, Replicates]) -> str:
    """Over the seeds that all have: texts of seeds differ by more than the arms."""
    common = set.intersection(*map(set, found.values()))
    shared = {name: {seed: one[seed] for seed in sorted(common)} for name, one in found.items()}
    return f"Mean losses over {len(common)} seeds: {means_listed(shared, 4)}." if common else ""


CLAIMS = (
    Claim(
        name="headline_longlora_shifted_within_1_percent",
        statement="Trained with shifted sparse attention and tested dense, a model at four times its context comes "
        "within 1 % of the loss of dense training.",
        source=f"{PAPER}: +0.25, -0.25 and +0.5 % in perplexity",
        outcome=f"The {TESTED}, of shifted sparse training over that of dense training, minus 1. Both train all "
        "weights.",
        numbers=_within,
        criterion=NormalMean(below=0.01),
        arms=(DENSE, SHIFTED),
    ),
    Claim(
        name="headline_longlora_lora_alone_behind",
        statement="With shifted sparse attention, LoRA alone is more than 1 % of the loss behind training all "
        "weights.",
        source=f"{PAPER}: perplexity 11.44 against 8.08",
        outcome=f"The {TESTED}, of LoRA on queries, keys, values and output over that of all weights, minus 1.",
        numbers=_lora_behind,
        criterion=NormalMean(above=0.01),
        arms=(SHIFTED, LORA),
    ),
    Claim(
        name="headline_longlora_embeddings_and_norms_close_most",
        statement="Training embeddings and norms together with LoRA closes at least half of that gap.",
        source=f"{PAPER}: perplexity 8.12",
        outcome=f"The {TESTED}: which share of the way from LoRA alone to all weights LoRA with embeddings and norms "
        "goes. A seed in which LoRA alone is not behind has no number.",
        numbers=_both_close,
        criterion=MostSeeds(at_least=0.5),
        arms=(SHIFTED, LORA, BOTH),
    ),
    Claim(
        name="fine_tuning_matters",
        statement="Fine-tuning lowers the loss at the longer context by much more than the margin of 1 %.",
        source="this lab; a control, since a rate that is too low leaves all arms alike",
        outcome=f"The {TESTED}, of the parent with plain or with interpolated positions, whichever is lower in that "
        "seed, over that of dense training, minus 1.",
        numbers=_tuning_matters,
        criterion=NormalMean(above=0.05),
        arms=(PARENT, INTERPOLATED, DENSE),
    ),
    Claim(
        name="dense at test is better",
        statement="Trained with shifted sparse attention, a model is better tested dense than tested sparse.",
        source=f"{PAPER}: perplexity 8.12 against 8.64, there with LoRA, embeddings and norms",
        outcome="The loss on text at four times the parent's context, tested with the groups of training, over that "
        "tested dense, minus 1.",
        numbers=_dense_test,
        criterion=NormalMean(above=0.0, matters=0.005),
        arms=(SHIFTED,),
    ),
    Claim(
        name="short contexts suffer",
        statement="At the parent's context the extended model is worse than its parent.",
        source=f"{PAPER}, as reported by others",
        outcome="The loss on text at the parent's context, of shifted sparse training over that of the parent, "
        "minus 1.",
        numbers=_short,
        criterion=NormalMean(above=0.0, matters=0.01),
        arms=(PARENT, SHIFTED),
    ),
)

PRIMARY = tuple(claim.name for claim in CLAIMS[:4])
