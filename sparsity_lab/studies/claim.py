"""Claims and how they are decided, by rules that are fixed before the runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sparsity_lab.analysis import Interval
from sparsity_lab.studies.evidence import Evidence

__all__ = ["Claim", "Decision", "Verdict", "judged"]

Verdict = Literal["held", "did not hold", "not decided"]


@dataclass(frozen=True)
class Decision:
    """What came of one claim.

    Attributes:
        verdict: by the claim's rule.
        interval: the estimate that the rule looks at, a mean with Student's interval.
        unit: of the estimate.
        detail: what was seen, in one sentence, made from the numbers.
        over: what the mean is taken over, in the plural.
    """

    verdict: Verdict
    interval: Interval
    unit: str
    detail: str = ""
    over: str = "seeds"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim under test.

    Attributes:
        name: short, for tables.
        statement: the claim in words.
        source: whose claim it is; "this lab" for what no paper says.
        rule: in words, when it held, when it did not, when it is not decided.
        decide: the rule, from a study's evidence.
    """

    name: str
    statement: str
    source: str
    rule: str
    decide: Callable[[Evidence], Decision]


def judged(
    interval: Interval, *, above: float = 0.0, below: float | None = None, at_most: float | None = None
) -> Verdict:
    """The verdict that an interval gives; ``not decided`` without one, from fewer than two replicates.

    Args:
        above: ``held`` if the whole interval lies above it, ``did not hold`` if all of it lies at or below.
        below: in its place, the other way round.
        at_most: in its place, ``held`` if the interval ends at or below it, ``did not hold`` if all of it lies above.
    """
    if interval.low is None or interval.high is None:
        return "not decided"
    if at_most is not None:
        held, failed = interval.high <= at_most, interval.low > at_most
    elif below is not None:
        held, failed = interval.high < below, interval.low >= below
    else:
        held, failed = interval.low > above, interval.high <= above
    return "held" if held else "did not hold" if failed else "not decided"
