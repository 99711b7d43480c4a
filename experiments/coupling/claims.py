"""Claims and their rules."""

from dataclasses import replace
from functools import partial
from statistics import fmean

import polars as pl

from sparsity_lab.analysis import Replicates, by_replicate, paired_differences
from sparsity_lab.studies import ABOVE_ZERO, Claim, Decision, Evidence, decided, numbers_at, undecided

from .arms import (
    ADDITION,
    AHEAD,
    CLIPPED,
    GIVEN,
    LOG_N,
    NO_OFFSET,
    NOPE,
    OFFSET,
    PARTS,
    POSE,
    PREDICTED,
    PREDICTED_AHEAD,
    PREDICTED_OFFSET,
    PUBLISHED,
    RE_WEIGHTED,
    ROPE,
    SHUFFLED,
    SPARSE,
    arm,
)

EXACT = "free_exact_match"
WORDS = {EXACT: "exact match", "exact_match": "exact match with given IDs", "id_accuracy": "ID accuracy"}
TRAINED, HALF_MORE, FURTHER, FARTHEST = 6, 9, 15, 24
"""Digits: the longest trained, 1.5, 2.5 and 4 times as many."""
LEAST, POINTS, WORTH = 0.95, 0.05, 0.5


def _means(
    evidence: Evidence, label: str, names: tuple[str, ...], length: int, measure: str = EXACT, *, paired: bool = False
) -> str:
    """``name 0.98 (0.95 to 1.00)`` for each arm of a part, of the seeds that all have where they are paired."""
    found = []
    arms = [
        evidence.rows.filter((pl.col("arm") == arm(label, name)) & (pl.col("length") == length)) for name in names
    ]
    shared = set.intersection(*(set(rows["seed"]) for rows in arms))
    for name, rows in zip(names, arms, strict=True):
        chosen = rows.filter(pl.col("seed").is_in(shared)) if paired else rows
        values: list[float] = chosen[measure].drop_nulls().to_list()
        found.append(f"{name} {fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    return f"{WORDS.get(measure, measure)} at length {length}: {', '.join(found)}."


def decide_level(name: str, length: int, evidence: Evidence) -> Decision:
    """Whether an arm with IDs reaches the level, and twice what the better arm without IDs reaches. The mean decides,
    not its interval."""
    own, *without = (numbers_at(evidence.rows, arm(ADDITION, one), length, EXACT) for one in (name, ROPE, NOPE))
    reached = fmean(own.values())
    held = reached >= LEAST and max(fmean(one.values()) for one in without) < reached / 2
    decision = decided(own, "exact match", _means(evidence, ADDITION, (name, ROPE, POSE, NOPE), length))
    return replace(decision, verdict="held" if held else "did not hold")


def decide_close(label: str, given: str, predicted: str, length: int, evidence: Evidence) -> Decision:
    """Whether predicted IDs stay within some points of given ones that are worth coming close to."""
    values = [numbers_at(evidence.rows, arm(label, name), length, EXACT) for name in (given, predicted)]
    ids = _means(evidence, label, (predicted,), length, "id_accuracy")
    means = _means(evidence, label, (given, predicted), length, paired=True)
    decision = decided(paired_differences(*values), "exact match", f"{means} {ids}", below=POINTS)
    return decision if fmean(values[0].values()) >= WORTH else undecided(decision)


def decide_same(label: str, length: int, evidence: Evidence) -> Decision:
    """Whether a model that predicts IDs loses much against being given them."""
    own = arm(label, PREDICTED)
    values = [numbers_at(evidence.rows, own, length, measure) for measure in ("exact_match", EXACT)]
    detail = " ".join(_means(evidence, label, (PREDICTED,), length, measure) for measure in ("exact_match", EXACT))
    decision = decided(paired_differences(*values), "exact match", detail, below=POINTS)
    return decision if fmean(values[0].values()) >= WORTH else undecided(decision)


def decide_more(label: str, name: str, minus: str, length: int, measure: str, evidence: Evidence) -> Decision:
    values = [numbers_at(evidence.rows, arm(label, one), length, measure) for one in (name, minus)]
    detail = _means(evidence, label, (name, minus), length, measure, paired=True)
    return decided(paired_differences(*values), f"of {WORDS.get(measure, measure)}", detail)


def _measured(evidence: Evidence, name: str, length: int, column: str) -> Replicates:
    rows = evidence.measured.filter((pl.col("arm") == arm(ADDITION, name)) & (pl.col("length") == length))
    return by_replicate(rows, column)


def decide_ends(evidence: Evidence) -> Decision:
    published, marked = (
        [_measured(evidence, name, FURTHER, column) for column in ("before", "end")] for name in (PUBLISHED, OFFSET)
    )
    means = [fmean(one.values()) for one in (*published, *marked)]
    detail = (
        f"accuracy at {FURTHER} digits, before the last two targets and at them: {means[0]:.2f} and "
        f"{means[1]:.2f} with IDs as published, {means[2]:.2f} and {means[3]:.2f} with IDs at the ends."
    )
    return decided(paired_differences(*published), "of accuracy", detail)


def decide_mass(evidence: Evidence) -> Decision:
    near, far = (_measured(evidence, GIVEN, length, "mass") for length in (TRAINED, FARTHEST))
    means = [fmean(one.values()) for one in (near, far)]
    detail = f"mass on the sources {means[0]:.2f} at {TRAINED} digits, {means[1]:.2f} at {FARTHEST}."
    return decided(paired_differences(near, far), "of attention mass", detail)


COUPLING_PAPER = "Cho et al., arXiv 2405.20671"


def _level_claim(of: str, length: int) -> Claim:
    times = f"{length / TRAINED:g} times"
    ids, short = {
        GIVEN: ("coupled IDs, spread out at random in training", ""),
        PREDICTED: ("predicted coupled IDs, spread out at random in training", ", predicted"),
        OFFSET: ("coupled IDs and a random offset alone", ", offset alone"),
        PUBLISHED: ("coupled IDs as published", ", as published"),
        CLIPPED: ("coupled IDs and offsets that make none rare in training", ", clipped"),
        LOG_N: ("coupled IDs, an offset alone and scores that grow with log n", ", log-n"),
    }[of]
    return Claim(
        name=times + short,
        statement=f"With {ids}, sums of {times} the trained digits are right, and without IDs not.",
        source=COUPLING_PAPER if of == PUBLISHED else "this lab",
        rule=(
            f"Held if the mean exact match of {arm(ADDITION, of)} at {length} digits is at least {LEAST}, and "
            f"those of {ROPE} and {NOPE} are below half of it; else did not hold."
        ),
        decide=partial(decide_level, of, length),
    )


def _close_claim(name: str, statement: str, given: str, predicted: str) -> Claim:
    length = PARTS[SPARSE].longest
    return Claim(
        name=name,
        statement=statement,
        source="this lab",
        rule=(
            f"{arm(SPARSE, given)} minus {predicted}: difference of exact match at length {length}, paired by seed. "
            f"Held if its 95 % interval lies below {POINTS}, did not hold if it lies above, else not decided; nor is "
            f"it if given IDs stay below {WORTH}, where there is nothing to come close to."
        ),
        decide=partial(decide_close, SPARSE, given, predicted, length),
    )


def _more_claim(
    name: str,
    statement: str,
    label: str,
    of: str,
    minus: str,
    length: int,
    measure: str = EXACT,
) -> Claim:
    what = "accuracy of single targets" if measure == "accuracy" else "exact match"
    return Claim(
        name=name,
        statement=statement,
        source="this lab",
        rule=f"{arm(label, of)} minus {minus}: difference of {what} at length {length}, paired by seed. {ABOVE_ZERO}",
        decide=partial(decide_more, label, of, minus, length, measure),
    )


CLAIMS = (
    *(_level_claim(of, length) for of in (GIVEN, PREDICTED) for length in (HALF_MORE, FURTHER, FARTHEST)),
    *(_level_claim(of, length) for of in (OFFSET, CLIPPED, PUBLISHED, LOG_N) for length in (HALF_MORE, FURTHER)),
    _more_claim(
        "spread",
        "Where IDs are spread out at random in training, so that those far apart meet, more sums of 2.5 times the "
        "trained digits are right than with an offset alone.",
        ADDITION,
        GIVEN,
        OFFSET,
        FURTHER,
    ),
    _more_claim(
        "clipped offsets",
        "Where offsets are clipped, so that no ID is rare in training, more sums of 2.5 times the trained digits are "
        "right than with uniform ones.",
        ADDITION,
        CLIPPED,
        OFFSET,
        FURTHER,
    ),
    _more_claim(
        "ends",
        "With IDs at the ends of the operands, where the search would find nothing, more sums of 1.5 times the "
        "trained digits are right than with the published ones.",
        ADDITION,
        OFFSET,
        PUBLISHED,
        HALF_MORE,
    ),
    Claim(
        name="nothing to find",
        statement="With IDs as published, errors beyond the trained digits gather where there is nothing to find.",
        source="this lab",
        rule=(
            f"{arm(ADDITION, PUBLISHED)}: accuracy of the targets before the last two minus that of the last two "
            f"(the carry above the highest place, and the end) at {FURTHER} digits. {ABOVE_ZERO}"
        ),
        decide=decide_ends,
    ),
    _close_claim(
        "prediction",
        "Where IDs depend on the input, predicted ones come within 5 points of given ones at 4 times the trained "
        "length.",
        GIVEN,
        PREDICTED,
    ),
    _close_claim(
        "prediction, look-ahead",
        "By the look-ahead rule too, which gives each token the ID of what the next one needs, predicted IDs that "
        "depend on the input come within 5 points of given ones.",
        AHEAD,
        PREDICTED_AHEAD,
    ),
    Claim(
        name="prediction alone",
        statement=(
            "Where IDs depend on the input, a model that feeds back its own loses less than 5 points against being "
            "given them, at 4 times the trained length."
        ),
        source="this lab",
        rule=(
            f"{arm(SPARSE, PREDICTED)} at length {PARTS[SPARSE].longest}: exact match with given IDs minus that of "
            f"free running, of the same model. Held if its 95 % interval lies below {POINTS}, did not hold if it "
            f"lies above, else not decided; nor is it if given IDs stay below {WORTH}."
        ),
        decide=partial(decide_same, SPARSE, PARTS[SPARSE].longest),
    ),
    _more_claim(
        "offset",
        "Predicted IDs that are moved in training carry addition further past the trained digits than ones that are "
        "not.",
        ADDITION,
        PREDICTED,
        NO_OFFSET,
        HALF_MORE,
    ),
    _more_claim(
        "shuffled",
        "It is the coupling and not the presence of IDs: with shuffled ones fewer sums are right at the trained "
        "length.",
        ADDITION,
        OFFSET,
        SHUFFLED,
        TRAINED,
    ),
    _more_claim(
        "spread, predicted",
        "Where IDs depend on the input, predicted ones that were spread out in training are right more often at 4 "
        "times the trained length than ones moved by an offset alone.",
        SPARSE,
        PREDICTED,
        PREDICTED_OFFSET,
        PARTS[SPARSE].longest,
    ),
    _more_claim(
        "log-n",
        "Scores that grow with log n add to coupling with an offset alone.",
        ADDITION,
        LOG_N,
        OFFSET,
        FURTHER,
        "accuracy",
    ),
    _more_claim(
        "LSSAR",
        "Re-weighting adds to coupling with an offset alone.",
        ADDITION,
        RE_WEIGHTED,
        OFFSET,
        FURTHER,
        "accuracy",
    ),
    Claim(
        name="mass",
        statement="The mass on the tokens that an answer needs falls with length also where IDs point at them.",
        source="this lab",
        rule=(
            f"{arm(ADDITION, GIVEN)}: mass on the sources at {TRAINED} digits minus that at {FARTHEST}, mean over "
            f"heads, in the layer. {ABOVE_ZERO}"
        ),
        decide=decide_mass,
    ),
)
