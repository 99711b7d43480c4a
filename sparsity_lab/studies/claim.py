"""Claims, their numbers by seed, and decisions."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparsity_lab.analysis import Replicates
from sparsity_lab.studies.criteria import Criterion, Evidences
from sparsity_lab.studies.evidence import Evidence

Verdict = Literal["held", "did not hold", "smaller than matters", "not decided"]
CannotTell = Literal["at the ceiling or floor", "never learned", "not every run learned"]


@dataclass(frozen=True)
class Outcomes:
    """The numbers of a claim by seed.

    >>> Outcomes({0: 0.25, 1: 0.5}, unit="nats").numbers[1]
    0.5

    Attributes:
        numbers: the numbers that the criterion tests, by seed.
        unit: the unit of the numbers.
        detail: a summary of the results in one sentence.
        levels: the compared values, by arm and seed, if they lie between ``floor`` and ``ceiling``. If all arms are
            at the ceiling, or all at the floor, the claim cannot be decided.
        floor, ceiling: the smallest and largest possible level.
    """

    numbers: Replicates
    unit: str
    detail: str = ""
    levels: Mapping[str, Replicates] = field(default_factory=dict)
    floor: float = 0.0
    ceiling: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim under test.

    >>> def drops(evidence: Evidence) -> Outcomes:
    ...     return Outcomes(means_at(evidence.rows, "one", 16, "drop"), "normalized accuracy")
    >>> claim = Claim(name="drop", statement="It drops.", source="this lab", outcome="The drop to length 16.",
    ...               numbers=drops, criterion=BoundedMean(above=0.0), arms=("one",))
    >>> judge([claim], (), Evidence(rows))["drop"].count
    2

    Attributes:
        name: short, for tables.
        statement: the claim in words.
        source: the source of the claim; "this lab" if it is from no paper.
        outcome: a description of the number of a seed.
        numbers: a function from the evidence to the number of each seed.
        criterion: the test of the numbers.
        arms: the arms that the numbers come from. ``decide`` adds seeds to them.
    """

    name: str
    statement: str
    source: str
    outcome: str
    numbers: Callable[[Evidence], Outcomes]
    criterion: Criterion
    arms: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """The number of a seed and the criterion, in words."""
        return f"{self.outcome} {self.criterion.words}"

    @property
    def rule_id(self) -> str:
        """A hash of the parts that decide the claim: its name, the description of the number, the criterion and the
        arms."""
        text = "\n".join((self.name, self.outcome, repr(self.criterion), *self.arms))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Decision:
    """The decision on one claim.

    >>> claim = difference_claim("k", "One beats two.", "one", "two", lengths=(8, 16), source="this lab")
    >>> judge([claim], ("k",), Evidence(rows))["k"].verdict
    'not decided'

    Attributes:
        verdict: one of four verdicts.
        outcomes: the numbers by seed.
        evidences: the three e-values.
        estimate, low, high: the estimate and its 90 % confidence sequence; None if there is none.
        primary: whether it was decided together with the study's other primary claims, at one false discovery rate.
        cannot_tell: why these runs cannot decide the claim, with any number of seeds.
    """

    verdict: Verdict
    outcomes: Outcomes
    evidences: Evidences
    estimate: float | None
    low: float | None
    high: float | None
    primary: bool
    cannot_tell: CannotTell | None = None

    @property
    def count(self) -> int:
        """The number of seeds that have a number."""
        return len(self.outcomes.numbers)
