"""The claims and their rules. Losses are those of ``measure``: the same bytes at every length."""

from collections.abc import Callable
from statistics import fmean

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, paired, paired_differences
from sparsity_lab.studies import Claim, Criterion, Evidence, MostSeeds, NormalMean, Outcomes, growths

from .arms import FAR, LSSAR_15, SOFTMAX, arm

__all__ = ["CLAIMS", "PRIMARY", "growth", "losses", "positional_share"]

NEARLY = 0.05
"""The relative growth of a loss that is nearly constant: the source has 3.19 at the trained length and 3.32 at eight
times it, which is 4 % more."""
LESS = 0.20
"""By how much less than softmax's the loss must grow."""
POSITIONAL = 0.85
"""The share of the growth that is expected to go with untrained distances."""

PAPER = "Gao, Spratling, Gionfrida, arXiv 2501.13428"
OWN = "this lab"


def losses(evidence: Evidence, name: str, factor: int) -> Replicates:
    """Loss of an arm at a multiple of the trained length."""
    own = evidence.measured.filter(pl.col("arm") == name)
    return by_replicate(own.filter(pl.col("length") == factor * pl.col("length").min()), "loss")


def growth(evidence: Evidence, name: str) -> Replicates:
    """By which share of the loss at the trained length the loss at eight times it is larger."""
    return growths(losses(evidence, name, 1), losses(evidence, name, FAR))


def positional_share(evidence: Evidence, name: str) -> Replicates:
    """Which share of the growth goes when distances are clamped at the trained length; of seeds whose loss grows."""
    own = evidence.measured.filter(pl.col("arm") == name)
    trained, full, clamped = (by_replicate(own, column) for column in ("trained", "full", "clamped"))
    grown = {seed: loss for seed, loss in full.items() if loss > trained[seed]}
    return paired(lambda first, last, without: (last - without) / (last - first), trained, grown, clamped)


def _words(evidence: Evidence, names: tuple[str, ...]) -> str:
    parts = (
        f"{name} {fmean(losses(evidence, name, 1).values()):.3f} at 1x, "
        f"{fmean(losses(evidence, name, FAR).values()):.3f} at {FAR}x"
        for name in names
    )
    return f"Mean loss of {'; '.join(parts)}."


def _claim(
    name: str,
    statement: str,
    numbers: Callable[[Evidence], Replicates],
    outcome: str,
    criterion: Criterion,
    arms: tuple[str, ...],
    source: str = OWN,
) -> Claim:
    def found(evidence: Evidence) -> Outcomes:
        return Outcomes(numbers(evidence), "of the loss", _words(evidence, arms))

    return Claim(
        name=name,
        statement=statement,
        source=source,
        outcome=outcome,
        numbers=found,
        criterion=criterion,
        arms=arms,
    )


_GROWTH = f"Loss at {FAR} times the trained length over that at it, minus one, by seed, on the same bytes"


def _constant(head: int, name: str, *, holds: bool, source: str = OWN) -> Claim:
    own = arm(LSSAR_15, head)
    words = f"grows by less than {NEARLY:.0%}" if holds else f"grows by more than {NEARLY:.0%}"
    return _claim(
        name,
        f"With heads of {head} the loss of LSSAR, p=15, {words} up to {FAR} times the trained length.",
        lambda evidence: growth(evidence, own),
        f"{_GROWTH}: {own}.",
        NormalMean(below=NEARLY) if holds else NormalMean(above=NEARLY),
        (own,),
        source,
    )


def _less(head: int, name: str, source: str = OWN) -> Claim:
    own, other = arm(LSSAR_15, head), arm(SOFTMAX, head)
    return _claim(
        name,
        f"With heads of {head} the loss grows less with LSSAR, p=15, than with softmax, by at least {LESS:.0%} of "
        "it.",
        lambda evidence: paired_differences(growth(evidence, other), growth(evidence, own)),
        f"{_GROWTH}: {other} minus {own}.",
        NormalMean(above=LESS),
        (own, other),
        source,
    )


def _positional(kernel: str, head: int, name: str) -> Claim:
    own = arm(kernel, head)
    return _claim(
        name,
        f"At least {POSITIONAL:.0%} of what {own} loses beyond the trained length is lost to distances that were "
        "never trained.",
        lambda evidence: positional_share(evidence, own),
        f"{own}: share of the growth of the loss that goes when every distance beyond the trained length is taken "
        "for the largest trained one, by seed, of seeds whose loss grows.",
        MostSeeds(at_least=POSITIONAL),
        (own,),
    )


CLAIMS = (
    _constant(64, "headline_lssar_constant", holds=True, source=PAPER),
    _less(64, "headline_lssar_less_than_softmax", PAPER),
    _constant(16, "headline_lssar_not_with_small_heads", holds=False),
    _positional(SOFTMAX, 64, "accounting_softmax"),
    _positional(LSSAR_15, 16, "accounting_lssar_small_heads"),
    _constant(32, "constant, heads of 32", holds=True),
    *(_less(head, f"less than softmax, heads of {head}") for head in (16, 32)),
    *(_positional(SOFTMAX, head, f"accounting, softmax, heads of {head}") for head in (16, 32)),
    *(
        _claim(
            f"{name} grows less",
            f"With heads of 32 the loss grows less with {name} than with softmax.",
            lambda evidence, name=name: paired_differences(  # type: ignore[misc]
                growth(evidence, arm(SOFTMAX, 32)), growth(evidence, name)
            ),
            f"{_GROWTH}: {arm(SOFTMAX, 32)} minus {name}.",
            NormalMean(above=0.0, matters=NEARLY),
            (name, arm(SOFTMAX, 32)),
        )
        for name in ("LSSA", "LSSAR p=3")
    ),
    *(
        _claim(
            f"{what} takes it from both, {kernel}",
            f"With {what} the loss of {kernel} no longer grows by more than {NEARLY:.0%}.",
            lambda evidence, name=f"{kernel}, {what}": growth(evidence, name),  # type: ignore[misc]
            f"{_GROWTH}: {kernel}, {what}.",
            NormalMean(below=NEARLY),
            (f"{kernel}, {what}",),
        )
        for what in ("PoSE", "NoPE")
        for kernel in (SOFTMAX, LSSAR_15)
    ),
)
PRIMARY = tuple(claim.name for claim in CLAIMS[:5])
