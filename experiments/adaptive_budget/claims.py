"""The claims: what the number of a seed is, and what is asked of it."""

from collections.abc import Callable
from functools import partial

from sparsity_lab.analysis import Replicates, by_replicate, paired_differences
from sparsity_lab.studies import Claim, Evidence, MostSeeds, Outcomes, means_listed

from .arms import DENSE, KEYS, LENGTHS, RANDOM, SELECTED, WINDOW
from .measure import QUARTER, TIMED_LENGTH

__all__ = ["ABOVE_RANDOM", "ALLOWED", "CLAIMS", "FASTER", "KEPT"]

KEPT, ABOVE_RANDOM, FASTER = (
    "headline_adaptive_recall",
    "headline_adaptive_above_random",
    "headline_adaptive_faster",
)
FAR, FARTHER = LENGTHS
ALLOWED, MORE, WORTH = 0.02, 0.1, 0.9
"""How much recall may be lost, how much more selection must have than what does not select, and the dense recall
below which there is nothing to keep."""


def _recall(evidence: Evidence, choice: str, length: int) -> Replicates:
    return by_replicate(evidence.measured.filter(what="recall", choice=choice, length=length), "accuracy")


def _kept(evidence: Evidence) -> Outcomes:
    found, words = dict[int, float](), []
    for length in LENGTHS:
        dense, own = (_recall(evidence, choice, length) for choice in (DENSE, SELECTED))
        for seed, number in paired_differences(own, dense).items():
            here = number if dense[seed] >= WORTH else -1.0
            found[seed] = min(here, found.get(seed, here))
        words.append(f"at {length} {means_listed({SELECTED: own, DENSE: dense}, 3)}")
    return Outcomes(found, "of recall", f"Mean recall {', '.join(words)}.")


def _more(other: str, evidence: Evidence) -> Outcomes:
    values = {choice: _recall(evidence, choice, FAR) for choice in (SELECTED, other)}
    detail = f"Mean recall at {FAR}: {means_listed(values, 3)}."
    return Outcomes(paired_differences(*values.values()), "of recall", detail)


def _ratio(choice: str, evidence: Evidence) -> Outcomes:
    times = evidence.measured.filter(what="time", choice=choice)
    means = {words: by_replicate(times, column) for words, column in ((choice, "seconds"), (DENSE, "dense_seconds"))}
    return Outcomes(by_replicate(times, "ratio"), "of dense time", f"Mean seconds: {means_listed(means, 3)}.")


def _claim(
    name: str, statement: str, outcome: str, numbers: Callable[[Evidence], Outcomes], asked: MostSeeds
) -> Claim:
    return Claim(
        name=name,
        statement=f"In more than half of the seeds {statement}.",
        source="this lab",
        outcome=outcome,
        numbers=numbers,
        criterion=asked,
        arms=(DENSE,),
    )


def _above(name: str, other: str, words: str) -> Claim:
    return _claim(
        name,
        f"selected blocks have at least {MORE} more recall at {FAR} tokens than {words}",
        f"Recall with selected blocks minus that with {words}, in the second layer, with the same weights, at {FAR} "
        f"tokens.",
        partial(_more, other),
        MostSeeds(at_least=MORE),
    )


CLAIMS = (
    _claim(
        KEPT,
        f"a model with selected blocks, less than a quarter of the pairs, stays within {ALLOWED} of dense recall at "
        f"{FAR} and {FARTHER} tokens",
        f"Recall with at most {KEYS} selected keys a row in the second layer minus that of dense attention there, "
        f"with the same weights: the smaller of the differences at {FAR} and {FARTHER} tokens; -1 where dense recall "
        f"is below {WORTH}, so that there is nothing to keep.",
        _kept,
        MostSeeds(at_least=-ALLOWED),
    ),
    _above(ABOVE_RANDOM, RANDOM, "as many blocks that are drawn for each row"),
    _claim(
        FASTER,
        f"the same selection is faster than dense attention at {TIMED_LENGTH} tokens",
        f"Seconds of a call with selected blocks over those of dense attention: on random inputs of the seed with "
        f"{TIMED_LENGTH} tokens, on one thread, without gradients, the shortest of three calls each, taken in turn.",
        partial(_ratio, SELECTED),
        MostSeeds(at_most=1.0),
    ),
    _above("above a window", WINDOW, "a window with as many keys"),
    _claim(
        "faster with a quarter of the pairs",
        f"selection of a quarter of the pairs is faster than dense attention at {TIMED_LENGTH} tokens",
        "As for the selection that is compared, with 15 selected blocks, which make a quarter of the pairs.",
        partial(_ratio, QUARTER),
        MostSeeds(at_most=1.0),
    ),
)
