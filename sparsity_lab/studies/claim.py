"""Claims and how they are decided, by rules that are fixed before the runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from sparsity_lab.analysis import Interval, mean_interval
from sparsity_lab.settings import SettingError
from sparsity_lab.studies.drops import paired_difference
from sparsity_lab.studies.evidence import Evidence

__all__ = ["Claim", "Decision", "Verdict", "judged", "level", "paired"]

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


def judged(interval: Interval, *, above: float = 0.0) -> Verdict:
    """``held`` if the whole interval lies above the value, ``did not hold`` if all of it lies at or below, else
    ``not decided``; so also without an interval, from fewer than two seeds."""
    if interval.low is None or interval.high is None:
        return "not decided"
    if interval.low > above:
        return "held"
    return "did not hold" if interval.high <= above else "not decided"


def level(
    rows: pl.DataFrame, arm: str, length: int, measure: str = "accuracy", *, condition: str | None = None
) -> Interval:
    """Mean over seeds of one arm's measure at one length, with Student's 95 % interval.

    Raises:
        SettingError: there is no such arm, length or measure.
    """
    return mean_interval(_by_seed(rows, arm, length, measure, condition)[measure].to_list())


def paired(
    rows: pl.DataFrame,
    arm: str,
    minus: str,
    length: int,
    measure: str = "accuracy",
    *,
    condition: str | None = None,
) -> Interval:
    """Mean over seeds of the difference of two arms at one length, paired by seed, with Student's 95 % interval.

    Raises:
        SettingError: there is no such arm, length or measure.
    """
    first, second = (_by_seed(rows, name, length, measure, condition) for name in (arm, minus))
    return paired_difference(first, second, measure)


def _by_seed(rows: pl.DataFrame, arm: str, length: int, measure: str, condition: str | None) -> pl.DataFrame:
    if measure not in rows.columns:
        raise SettingError("measure", "a column of the rows", measure, rows.columns)
    chosen = rows.filter((pl.col("arm") == arm) & (pl.col("length") == length))
    if condition is not None:
        chosen = chosen.filter(pl.col("condition") == condition)
    chosen = chosen.drop_nulls(measure)
    if chosen.is_empty():
        raise SettingError("arm", f"an arm with {measure} at length {length}", arm, rows["arm"].unique().to_list())
    if chosen["seed"].n_unique() < chosen.height:
        raise SettingError("condition", f"one condition of {arm}", chosen["condition"].unique().to_list())
    return chosen.select("seed", measure)
