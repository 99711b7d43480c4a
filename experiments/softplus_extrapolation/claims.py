"""The claims and their rules.

Losses of text are those of ``measure``: the same bytes at every length. The other tasks declare an optimum, so theirs
are compared where it was reached.
"""

import math
from collections.abc import Sequence
from functools import partial
from statistics import fmean

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, paired_differences
from sparsity_lab.studies import ABOVE_ZERO, Claim, Decision, Evidence, decided, growths, undecided

from .arms import MARKOV, NOPE, PASSKEY, PHIS, TEXT, activation, arm

__all__ = ["CLAIMS", "losses"]

NEARLY = 0.05
"""The relative growth of a loss that is nearly constant: the source has 3.19 at the trained length and 3.32 at eight
times it, which is 4 % more."""
ALIKE = 0.10
"""How far apart two losses at the trained length may be, relative to the smaller one, to be compared beyond it."""
FAR = 8

LSSAR = "LSSAR p=15"


def losses(evidence: Evidence, name: str, factor: int) -> Replicates:
    """Loss of text at a multiple of the longest trained length."""
    return _at(evidence, evidence.measured, name, "loss", factor)


def _at(evidence: Evidence, rows: pl.DataFrame, name: str, column: str, factor: int) -> Replicates:
    """A column of an arm at a multiple of the longest trained length."""
    trained = evidence.rows.filter("trained").select(pl.col("length").max()).item()
    return by_replicate(rows.filter((pl.col("arm") == name) & (pl.col("length") == factor * trained)), column)


def growth(evidence: Evidence, name: str, factor: int) -> Replicates:
    """By which share of the loss at the trained length the loss is larger at a multiple of it."""
    return growths(losses(evidence, name, 1), losses(evidence, name, factor))


def decide_constant(name: str, factor: int, evidence: Evidence) -> Decision:
    """Whether a loss grows by less than ``NEARLY``."""
    return decided(growth(evidence, name, factor), "of the loss", _words(evidence, [name], factor), below=NEARLY)


def decide_grows(name: str, factor: int, evidence: Evidence) -> Decision:
    """Whether a loss grows by more than ``NEARLY``."""
    return decided(growth(evidence, name, factor), "of the loss", _words(evidence, [name], factor), above=NEARLY)


def decide_better(name: str, other: str, evidence: Evidence) -> Decision:
    """Whether an arm has a smaller loss far away than another with which it began alike."""
    gained = paired_differences(losses(evidence, other, FAR), losses(evidence, name, FAR))
    decision = decided(gained, "nats", _words(evidence, [name, other], FAR))
    near = [_mean(losses(evidence, one, 1)) for one in (name, other)]
    if min(near) > 0 and max(near) > (1 + ALIKE) * min(near):
        return undecided(decision, "Not alike at the trained length.")
    return decision


def decide_learned(part: str, column: str, sign: int, evidence: Evidence) -> Decision:
    """Whether LSSAR is above (sign 1) or below (-1) softmax in a column far away, over seeds that both learned."""
    names = [arm(part, one) for one in (LSSAR, "softmax")]
    rows = evidence.rows.filter("learned")
    near, far = ([_at(evidence, rows, name, column, factor) for name in names] for factor in (1, FAR))
    unit = "nats above the optimum" if sign < 0 else "of normalized accuracy"
    parts = (
        f"{name} {_number(one)} at 1x, {_number(other)} at {FAR}x ({len(one)} seeds learned)"
        for name, one, other in zip(names, near, far, strict=True)
    )
    return decided(paired_differences(*far[::sign]), unit, f"{'; '.join(parts)}.")


def decide_l1(norm: str, factor: int, evidence: Evidence) -> Decision:
    """Whether activations lose without l1, each against itself with it."""
    without, with_l1 = (_by_activation(evidence, one, factor) for one in (norm, "l1"))
    return _over_activations(evidence, PHIS, paired_differences(without, with_l1), (norm, "l1"), factor)


def decide_phi(factor: int, evidence: Evidence) -> Decision:
    """Whether another activation in place of exp loses less than leaving out l1 does."""
    without, with_l1 = (_by_activation(evidence, one, factor) for one in ("divided by n", "l1"))
    others = PHIS[1:]
    found = {
        phi: lost - abs(with_l1[phi] - with_l1["exp"])
        for phi, lost in paired_differences(without, with_l1).items()
        if phi in others and "exp" in with_l1
    }
    return _over_activations(evidence, others, found, ("l1", "divided by n"), factor)


def _by_activation(evidence: Evidence, norm: str, factor: int) -> Replicates:
    """The losses of the activations' only runs; activations without one are left out."""
    found = {phi: _of_activation(evidence, phi, norm, factor) for phi in PHIS}
    return {phi: loss for phi, loss in found.items() if not math.isnan(loss)}


def _of_activation(evidence: Evidence, phi: str, norm: str, factor: int) -> float:
    """The loss of an activation's only run; nan without one."""
    return _mean(losses(evidence, activation(phi, norm), factor))


def _over_activations(
    evidence: Evidence, phis: Sequence[str], found: Replicates, norms: Sequence[str], factor: int
) -> Decision:
    """What an interval over activations says, each of one seed."""
    parts = []
    for norm in norms:
        values = (f"{phi} {_of_activation(evidence, phi, norm, factor):.2f}" for phi in PHIS)
        parts.append(f"{norm}: {', '.join(values)}")
    missing = "" if len(found) == len(phis) else f" Only {len(found)} of {len(phis)} have a loss."
    return decided(found, "nats", f"Loss at {factor}x, {'; '.join(parts)}.{missing}", over="activations")


def _words(evidence: Evidence, names: Sequence[str], factor: int) -> str:
    parts = (
        f"{name} {_number(losses(evidence, name, 1))} at 1x, {_number(losses(evidence, name, factor))} at {factor}x"
        for name in names
    )
    return f"Loss of {'; '.join(parts)}."


def _mean(found: Replicates) -> float:
    return fmean(found.values()) if found else math.nan


def _number(found: Replicates) -> str:
    return f"{_mean(found):.2f}" if found else "not learned"


PAPER = "Gao, Spratling, Gionfrida, arXiv 2501.13428"
OWN = "this lab"


def _grows_claim(name: str, statement: str, kernel: str, factor: int, *, constant: bool = False) -> Claim:
    side, other = ("below", "above") if constant else ("above", "below")
    return Claim(
        name=name,
        statement=statement,
        source=PAPER,
        rule=f"Loss of {kernel} at {factor} times the trained length over that at it, minus one, by seed, on the "
        f"same bytes (text, RoPE). Held if the 95 % interval of the mean over seeds lies {side} {NEARLY}, did not "
        f"hold if it lies at or {other} it, else not decided.",
        decide=partial(decide_constant if constant else decide_grows, arm(TEXT, kernel), factor),
    )


def _better_claim(name: str, statement: str, kernel: str, other: str, part: str = TEXT, source: str = OWN) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=source,
        rule=f"Loss of {other} minus that of {kernel} at {FAR} times the trained length ({part}), paired by seed. "
        f"{ABOVE_ZERO} Not decided either if their mean losses at the trained length differ by more than "
        f"{ALIKE:.0%}: then one of them learned less to begin with.",
        decide=partial(decide_better, arm(part, kernel), arm(part, other)),
    )


def _l1_claim(name: str, statement: str, norm: str, factor: int) -> Claim:
    where = f"{factor} times the trained length" if factor > 1 else "the trained length"
    return Claim(
        name=name,
        statement=statement,
        source=PAPER,
        rule=f"Loss at {where} without l1 ({norm}) minus that with it, for each of {', '.join(PHIS)}, one seed each "
        "(text, RoPE). Held if Student's 95 % interval of the mean over activations lies above 0, did not hold if at "
        "or below, else not decided. It says nothing of other seeds.",
        decide=partial(decide_l1, norm, factor),
    )


def _phi_claim(name: str, statement: str, factor: int) -> Claim:
    where = f"{factor} times the trained length" if factor > 1 else "the trained length"
    return Claim(
        name=name,
        statement=statement,
        source=PAPER,
        rule=f"For each of {', '.join(PHIS[1:])}, at {where} (text, RoPE, one seed): what leaving out l1 (divided by "
        "n) adds to the loss, minus the distance to exp, both with l1. Held if Student's 95 % interval of the mean "
        "over these activations lies above 0, did not hold if at or below, else not decided.",
        decide=partial(decide_phi, factor),
    )


CLAIMS = (
    *(
        claim
        for factor in (8, 16)
        for claim in (
            _grows_claim(
                f"LSSAR 15 is constant, {factor}x",
                f"With LSSAR, p=15, the loss is nearly constant up to {factor} times the trained length.",
                LSSAR,
                factor,
                constant=True,
            ),
            _grows_claim(
                f"softmax grows, {factor}x",
                f"With softmax the loss grows up to {factor} times the trained length.",
                "softmax",
                factor,
            ),
        )
    ),
    _grows_claim(
        "LSSAR 3 grows, 8x", "With LSSAR, p=3, the loss grows up to 8 times the trained length.", "LSSAR p=3", FAR
    ),
    _better_claim(
        "LSSAR 15",
        "At 8 times the trained length LSSAR, p=15, has a smaller loss than softmax.",
        LSSAR,
        "softmax",
        source=PAPER,
    ),
    _better_claim(
        "p",
        "At 8 times the trained length LSSAR has a smaller loss with p=15 than with p=3.",
        LSSAR,
        "LSSAR p=3",
        source=PAPER,
    ),
    _better_claim(
        "norm of queries and keys",
        "Normed queries and keys alone (cosine softmax) have a smaller loss far away than softmax.",
        "cosine",
        "softmax",
    ),
    _better_claim("log n", "Scores times log n, on top of that, have a smaller one still.", "cosine log-n", "cosine"),
    _better_claim(
        "softplus",
        "Softplus in place of the exponential, on top of that, has a smaller one still.",
        "LSSA",
        "cosine log-n",
    ),
    _better_claim("re-weighting", "Re-weighting with p=15, on top of that, has a smaller one still.", LSSAR, "LSSA"),
    _better_claim(
        "beyond log n",
        "LSSAR, p=15, has a smaller loss far away than softmax that has the norms and log n too.",
        LSSAR,
        "cosine log-n",
    ),
    _better_claim(
        "NoPE",
        "Without positions, too, LSSAR, p=15, has a smaller loss far away than softmax.",
        LSSAR,
        "softmax",
        NOPE,
    ),
    Claim(
        name="known optimum",
        statement="Where the optimum is known, LSSAR, p=15, stays nearer to it far away than softmax.",
        source=OWN,
        rule=f"Loss above the optimum at {FAR} times the trained length, {arm(MARKOV, 'softmax')} minus "
        f"{arm(MARKOV, LSSAR)}, paired by seed, over the seeds that both learned. {ABOVE_ZERO}",
        decide=partial(decide_learned, MARKOV, "excess_loss", -1),
    ),
    Claim(
        name="passkey",
        statement="LSSAR, p=15, finds a passkey further away than softmax.",
        source=PAPER,
        rule=f"Normalized accuracy of the digits at {FAR} times the trained length, {arm(PASSKEY, LSSAR)} minus "
        f"{arm(PASSKEY, 'softmax')}, paired by seed, over the seeds that both learned. {ABOVE_ZERO}",
        decide=partial(decide_learned, PASSKEY, "normalized_accuracy", 1),
    ),
    _l1_claim(
        "training without l1", "Without l1, with nothing in its place, training comes less far.", "not divided", 1
    ),
    _l1_claim("l1", "Without l1, divided by n instead, training comes less far.", "divided by n", 1),
    _l1_claim("l1, 8x", "Without l1, divided by n instead, the loss far away is larger.", "divided by n", FAR),
    _phi_claim("not the exponential", "At the trained length l1 matters more than the exponential.", 1),
    _phi_claim("not the exponential, 8x", "At 8 times the trained length l1 matters more than the exponential.", FAR),
)
