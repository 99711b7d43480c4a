"""Claims and their rules."""

from functools import partial

import polars as pl

from sparsity_lab.analysis import Interval, mean_interval
from sparsity_lab.recipes.coupling.arms import (
    ADDITION,
    CLIPPED,
    GIVEN,
    LOG_N,
    NO_OFFSET,
    NOPE,
    PARTS,
    POSE,
    PREDICTED,
    PUBLISHED,
    RE_WEIGHTED,
    ROPE,
    SHUFFLED,
    SPARSE,
    arm,
)
from sparsity_lab.studies.claim import Claim, Decision, Verdict, judged, level, paired
from sparsity_lab.studies.decisions import ABOVE_ZERO
from sparsity_lab.studies.evidence import Evidence

EXACT = "free_exact_match"
WORDS = {EXACT: "exact match", "exact_match": "exact match with given IDs", "id_accuracy": "ID accuracy"}
TRAINED, HALF_MORE, FURTHER, FARTHEST = 6, 9, 15, 24
"""Digits: the longest trained, 1.5, 2.5 and 4 times as many."""
LEAST, POINTS, WORTH = 0.95, 0.05, 0.5


def _means(evidence: Evidence, label: str, names: tuple[str, ...], length: int, measure: str = EXACT) -> str:
    """``name 0.98 (0.95 to 1.00)`` for each arm of a part."""
    found = []
    for name in names:
        rows = evidence.rows.filter((pl.col("arm") == arm(label, name)) & (pl.col("length") == length))
        values: list[float] = rows[measure].drop_nulls().to_list()
        found.append(f"{name} {_mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    return f"{WORDS.get(measure, measure)} at length {length}: {', '.join(found)}."


def decide_level(name: str, length: int, evidence: Evidence) -> Decision:
    """Whether an arm with IDs reaches the level, and twice what the better arm without IDs reaches."""
    rows = evidence.rows
    interval = level(rows, arm(ADDITION, name), length, EXACT)
    without = max(level(rows, arm(ADDITION, other), length, EXACT).estimate or 0.0 for other in (ROPE, NOPE))
    held = interval.estimate is not None and interval.estimate >= LEAST and without < interval.estimate / 2
    names = (GIVEN, PUBLISHED, PREDICTED) if name == GIVEN else (name,)
    detail = _means(evidence, ADDITION, (*names, ROPE, POSE, NOPE), length)
    return Decision("held" if held else "did not hold", interval, "exact match", detail)


def decide_close(label: str, length: int, evidence: Evidence) -> Decision:
    """Whether predicted IDs stay within some points of given ones that are worth coming close to."""
    rows = evidence.rows
    interval = paired(rows, arm(label, GIVEN), arm(label, PREDICTED), length, EXACT)
    given = level(rows, arm(label, GIVEN), length, EXACT).estimate or 0.0
    verdict = _within(interval) if given >= WORTH else "not decided"
    ids = _means(evidence, label, (PREDICTED,), length, "id_accuracy")
    return Decision(verdict, interval, "exact match", f"{_means(evidence, label, (GIVEN, PREDICTED), length)} {ids}")


def decide_same(label: str, length: int, evidence: Evidence) -> Decision:
    """Whether a model that predicts IDs loses much against being given them."""
    own = evidence.rows.filter((pl.col("arm") == arm(label, PREDICTED)) & (pl.col("length") == length))
    interval = mean_interval((own["exact_match"] - own[EXACT]).to_list())
    worth = _mean(own["exact_match"].to_list()) >= WORTH
    detail = " ".join(_means(evidence, label, (PREDICTED,), length, measure) for measure in ("exact_match", EXACT))
    return Decision(_within(interval) if worth else "not decided", interval, "exact match", detail)


def _within(interval: Interval) -> Verdict:
    if interval.high is None or interval.low is None:
        return "not decided"
    return "held" if interval.high < POINTS else "did not hold" if interval.low > POINTS else "not decided"


def decide_more(label: str, name: str, minus: str, length: int, measure: str, evidence: Evidence) -> Decision:
    interval = paired(evidence.rows, arm(label, name), arm(label, minus), length, measure)
    return Decision(
        judged(interval),
        interval,
        f"of {WORDS.get(measure, measure)}",
        _means(evidence, label, (name, minus), length, measure),
    )


def _measured(evidence: Evidence, name: str, length: int, column: str) -> list[float]:
    rows = evidence.measured.filter((pl.col("arm") == arm(ADDITION, name)) & (pl.col("length") == length))
    return rows.sort("seed")[column].to_list()


def _difference(first: list[float], second: list[float]) -> Interval:
    return mean_interval([a - b for a, b in zip(first, second, strict=True)])


def decide_ends(evidence: Evidence) -> Decision:
    before, end = (_measured(evidence, PUBLISHED, FURTHER, column) for column in ("before", "end"))
    interval = _difference(before, end)
    marked = [_mean(_measured(evidence, GIVEN, FURTHER, column)) for column in ("before", "end")]
    detail = (
        f"accuracy at {FURTHER} digits, before the last two targets and at them: {_mean(before):.2f} and "
        f"{_mean(end):.2f} with IDs as published, {marked[0]:.2f} and {marked[1]:.2f} with IDs at the ends."
    )
    return Decision(judged(interval), interval, "of accuracy", detail)


def decide_mass(evidence: Evidence) -> Decision:
    near, far = (_measured(evidence, GIVEN, length, "mass") for length in (TRAINED, FARTHEST))
    interval = _difference(near, far)
    detail = f"mass on the sources {_mean(near):.2f} at {TRAINED} digits, {_mean(far):.2f} at {FARTHEST}."
    return Decision(judged(interval), interval, "of attention mass", detail)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


COUPLING_PAPER, PAPER = "Cho et al., arXiv 2405.20671", "Golowich et al., arXiv 2502.16792"


def _level_claim(of: str, length: int) -> Claim:
    times = f"{length / TRAINED:g} times"
    ids, short = {
        GIVEN: ("coupled IDs", ""),
        CLIPPED: ("coupled IDs of which none is rare in training", ", clipped"),
        LOG_N: ("coupled IDs and scores that grow with log n", ", log-n"),
    }[of]
    return Claim(
        name=times + short,
        statement=f"With {ids}, sums of {times} the trained digits are right, and without IDs not.",
        source=COUPLING_PAPER if of == GIVEN else "this lab",
        rule=(
            f"Held if the mean exact match of {arm(ADDITION, of)} at {length} digits is at least {LEAST}, and "
            f"those of {ROPE} and {NOPE} are below half of it; else did not hold."
        ),
        decide=partial(decide_level, of, length),
    )


def _more_claim(
    name: str,
    statement: str,
    label: str,
    of: str,
    minus: str,
    length: int,
    measure: str = EXACT,
    source: str = "this lab",
) -> Claim:
    what = "accuracy of single targets" if measure == "accuracy" else "exact match"
    return Claim(
        name=name,
        statement=statement,
        source=source,
        rule=f"{arm(label, of)} minus {minus}: difference of {what} at length {length}, paired by seed. {ABOVE_ZERO}",
        decide=partial(decide_more, label, of, minus, length, measure),
    )


CLAIMS = (
    *(_level_claim(of, length) for of in (GIVEN, CLIPPED, LOG_N) for length in (HALF_MORE, FURTHER)),
    _more_claim(
        "clipped offsets",
        "What fails beyond the trained digits fails at the rare IDs at the ends of the table: where offsets are "
        "clipped, so that none is rare, more sums are right.",
        ADDITION,
        CLIPPED,
        GIVEN,
        FURTHER,
    ),
    _more_claim(
        "ends",
        "IDs at the ends, where the search would find nothing, carry addition further than the published ones.",
        ADDITION,
        GIVEN,
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
    Claim(
        name="prediction",
        statement=(
            "Where IDs depend on the input, predicted ones come within 5 points of given ones at 4 times the trained "
            "length."
        ),
        source=PAPER,
        rule=(
            f"{arm(SPARSE, GIVEN)} minus {PREDICTED}: difference of exact match at length {PARTS[SPARSE].longest}, "
            f"paired by seed. Held if its 95 % interval lies below {POINTS}, did not hold if it lies above, else not "
            f"decided; nor is it if given IDs stay below {WORTH}, where there is nothing to come close to."
        ),
        decide=partial(decide_close, SPARSE, PARTS[SPARSE].longest),
    ),
    Claim(
        name="prediction alone",
        statement="A model that feeds back its own IDs loses less than 5 points against being given them, there.",
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
        "Without a random offset in training, predicted IDs do not carry addition past the trained digits.",
        ADDITION,
        PREDICTED,
        NO_OFFSET,
        HALF_MORE,
        source=PAPER,
    ),
    _more_claim(
        "shuffled",
        "It is the coupling and not the presence of IDs: shuffled ones do not even add at the trained length.",
        ADDITION,
        GIVEN,
        SHUFFLED,
        TRAINED,
    ),
    _more_claim("log-n", "Scores that grow with log n add to coupling.", ADDITION, LOG_N, GIVEN, FURTHER, "accuracy"),
    _more_claim("LSSAR", "Re-weighting adds to coupling.", ADDITION, RE_WEIGHTED, GIVEN, FURTHER, "accuracy"),
    Claim(
        name="mass",
        statement="The mass on the tokens that an answer needs falls with length also where IDs point at them.",
        source="this lab",
        rule=(
            f"{arm(ADDITION, GIVEN)}: mass on the sources at {TRAINED} digits minus that at {FARTHEST}, mean over "
            f"heads. {ABOVE_ZERO}"
        ),
        decide=decide_mass,
    ),
)
