"""``judge``: the verdicts from the seeds so far.

The primary claims of a study are judged together by e-BH, which keeps the false discovery rate at 5 % for any number
of looks. Each direction is a separate family: that claims hold, that they do not hold, and that effects are too small
to matter. The other claims are exploratory, and each is judged alone.
"""

import math
from collections.abc import Sequence

import polars as pl

from sparsity_lab.settings import SettingError
from sparsity_lab.studies.claim import CannotTell, Claim, Decision, Outcomes, Verdict
from sparsity_lab.studies.criteria import Evidences, MostSeeds, NormalMean
from sparsity_lab.studies.e_values import e_bh
from sparsity_lab.studies.evidence import Evidence

_EDGE = 0.01
"""A level within this share of the range from the ceiling or floor counts as at the ceiling or floor."""
# A claim whose effect is too small to matter gets this verdict even if it also holds.
_VERDICTS: tuple[tuple[Verdict, str], ...] = (
    ("smaller than matters", "smaller"),
    ("held", "held"),
    ("did not hold", "did_not_hold"),
)


def judge(claims: Sequence[Claim], primary: Sequence[str], evidence: Evidence) -> dict[str, Decision]:
    """The decision on each claim, by name.

    >>> claim = difference_claim("k", "One beats two.", "one", "two", lengths=(8, 16), source="this lab")
    >>> list(judge([claim], (), Evidence(rows)))
    ['k']

    Args:
        primary: the names of the claims to judge together.
    """
    outcomes = {claim.name: _outcomes(claim, evidence) for claim in claims}
    reasons = {claim.name: _cannot_tell(claim, outcomes[claim.name], evidence.rows) for claim in claims}
    evidences = {
        claim.name: Evidences(0.0, 0.0)
        if reasons[claim.name] or not outcomes[claim.name].numbers
        else claim.criterion.evidences(list(outcomes[claim.name].numbers.values()))
        for claim in claims
    }
    together = [claim.name for claim in claims if claim.name in primary]
    families = [together, *([claim.name] for claim in claims if claim.name not in primary)]
    verdicts: dict[str, Verdict] = {}
    for family in families:
        for verdict, direction in reversed(_VERDICTS):
            rejected = e_bh([getattr(evidences[name], direction) for name in family])
            verdicts |= {name: verdict for name, decided in zip(family, rejected, strict=True) if decided}
    found = {}
    for claim in claims:
        numbers = list(outcomes[claim.name].numbers.values())
        low, high = (claim.criterion.interval(numbers) if numbers else None) or (None, None)
        found[claim.name] = Decision(
            verdict=verdicts.get(claim.name, "not decided"),
            outcomes=outcomes[claim.name],
            evidences=evidences[claim.name],
            estimate=claim.criterion.estimate(numbers) if numbers else None,
            low=low,
            high=high,
            primary=claim.name in primary,
            cannot_tell=reasons[claim.name],
        )
    return found


def _outcomes(claim: Claim, evidence: Evidence) -> Outcomes:
    """The numbers of a claim by seed; none if an arm has no finished run."""
    have = set(evidence.rows["arm"])
    missing = [arm for arm in claim.arms if arm not in have]
    if missing:
        return Outcomes({}, "", f"No run yet of {', '.join(missing)}.")
    outcomes = claim.numbers(evidence)
    for seed, number in outcomes.numbers.items():
        if not math.isfinite(number):
            raise SettingError(f"claim {claim.name!r}", f"a finite number for seed {seed}", number)
    return outcomes


def _cannot_tell(claim: Claim, outcomes: Outcomes, rows: pl.DataFrame) -> CannotTell | None:
    """The reason why these runs cannot decide the claim; None if they can."""
    runs = rows.filter(pl.col("arm").is_in(claim.arms)).drop_nulls("learned")
    learned = runs.group_by("arm", "seed").agg(pl.col("learned").any())["learned"]
    # A run that learned nothing loses nothing with length.
    if len(learned) and not learned.any():
        return "never learned"
    # If a run did not learn, losses and their differences are not approximately normal.
    if isinstance(claim.criterion, NormalMean) and not learned.all():
        return "not every run learned"
    levels = [number for arm in outcomes.levels.values() for number in arm.values()]
    if len(outcomes.levels) < 2 or not levels or isinstance(claim.criterion, NormalMean):
        return None
    edge = _EDGE * (outcomes.ceiling - outcomes.floor)
    # If all arms solve the task, they are close to each other. For a claim about closeness this is a result.
    is_within = isinstance(claim.criterion, MostSeeds) and claim.criterion.at_most is not None
    if max(levels) <= outcomes.floor + edge or (min(levels) >= outcomes.ceiling - edge and not is_within):
        return "at the ceiling or floor"
    return None
