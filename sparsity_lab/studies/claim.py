"""Claims, what seeds say about them, and the verdicts."""

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
    """What each seed gave.

    >>> Outcomes({0: 0.25, 1: 0.5}, unit="nats").numbers[1]
    0.5

    Attributes:
        numbers: what the criterion tests, by seed.
        unit: of the numbers.
        detail: what was seen, in one sentence.
        levels: what is compared, by arm and seed, where it lies between ``floor`` and ``ceiling``. A comparison of
            arms that are all at the ceiling, or all at the floor, cannot tell.
        floor, ceiling: of the levels.
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
        source: whose claim it is; "this lab" for what no paper says.
        outcome: what the number of a seed is, in words.
        numbers: what each seed gave.
        criterion: what is asked of the numbers.
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
        """The number of a seed, and what is asked of it."""
        return f"{self.outcome} {self.criterion.words}"

    @property
    def rule_id(self) -> str:
        """A hash of what decides the claim: the number of a seed in words, its arms, and the criterion."""
        text = "\n".join((self.name, self.outcome, repr(self.criterion), *self.arms))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Decision:
    """What came of one claim.

    >>> claim = difference_claim("k", "One beats two.", "one", "two", lengths=(8, 16), source="this lab")
    >>> judge([claim], ("k",), Evidence(rows))["k"].verdict
    'not decided'

    Attributes:
        verdict: one of four.
        outcomes: what each seed gave.
        evidences: the three e-values.
        estimate, low, high: with its 90 % confidence sequence; None without one.
        primary: whether it was decided together with the study's other primary claims, at one false discovery rate.
        cannot_tell: why these runs cannot decide, whatever the number of seeds.
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
        """How many seeds gave a number."""
        return len(self.outcomes.numbers)
