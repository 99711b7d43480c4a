"""Claims: their rules in words and hashes, and the numbers by seed that they are about."""

from dataclasses import replace

import polars as pl
import pytest

from sparsity_lab.settings import SettingError
from sparsity_lab.studies import (
    BoundedMean,
    Claim,
    Criterion,
    Decision,
    Evidence,
    MostSeeds,
    NormalMean,
    Outcomes,
    judge,
    numbers_at,
)

ROWS = pl.DataFrame(
    {
        "arm": ["a", "a", "a", "b", "b", "b"],
        "seed": [0, 1, 2, 2, 0, 1],
        "condition": ["trained"] * 6,
        "length": [8] * 6,
        "accuracy": [0.5, 0.7, 0.9, 0.6, 0.4, 0.5],
        "learned": [True] * 6,
    }
)


def claim(numbers: Outcomes, criterion: Criterion, *arms: str, name: str = "one") -> Claim:
    return Claim(
        name=name,
        statement="One.",
        source="this lab",
        outcome="A number.",
        numbers=lambda evidence: numbers,
        criterion=criterion,
        arms=arms,
    )


def decision(numbers: list[float], criterion: Criterion, rows: pl.DataFrame = ROWS, **more: object) -> Decision:
    outcomes = replace(Outcomes(dict(enumerate(numbers)), "nats", "Seen."), **more)
    return judge([claim(outcomes, criterion, "a", "b")], (), Evidence(rows))["one"]


FAR = [0.4, 0.5, 0.45, 0.5, 0.4, 0.5] * 4
NEAR = [0.01, -0.01, 0.02, 0.0] * 6
WIDE = [0.5, -0.5] * 12
DIFFERENT = BoundedMean(above=0.0, matters=0.05)
LOSS = NormalMean(above=0.0, matters=0.05)


@pytest.mark.parametrize(
    ("numbers", "criterion", "verdict"),
    [
        (FAR, DIFFERENT, "held"),
        ([-one for one in FAR], DIFFERENT, "did not hold"),
        (NEAR, DIFFERENT, "smaller than matters"),
        (NEAR, BoundedMean(above=0.0), "not decided"),
        (WIDE, DIFFERENT, "not decided"),
        (FAR, BoundedMean(below=0.0), "did not hold"),
        (FAR, BoundedMean(above=0.9), "did not hold"),
        (FAR, LOSS, "held"),
        ([-one for one in FAR], LOSS, "did not hold"),
        (NEAR, LOSS, "smaller than matters"),
        (WIDE, LOSS, "not decided"),
        (FAR, NormalMean(below=0.6), "held"),
        ([1.0] * 7, MostSeeds(at_least=1.0), "held"),
        ([1.0] * 3, MostSeeds(at_least=1.0), "not decided"),
        ([0.9] * 7, MostSeeds(at_least=1.0), "did not hold"),
        ([0.9] * 7, MostSeeds(at_most=0.9), "held"),
        ([0.9] * 7, MostSeeds(at_least=0.5, at_most=0.8), "did not hold"),
        (WIDE, MostSeeds(at_least=0.0), "not decided"),
        ([], DIFFERENT, "not decided"),
    ],
)
def test_verdicts(numbers: list[float], criterion: Criterion, verdict: str) -> None:
    assert decision(numbers, criterion).verdict == verdict


def test_a_decision_has_its_estimate_and_limits_inside_the_range() -> None:
    found = decision([0.9, 1.0, 0.8], BoundedMean(above=0.0))
    assert found.estimate == pytest.approx(0.9)
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low < 0.9 < found.high <= 1
    assert (found.count, found.outcomes.detail, found.primary) == (3, "Seen.", False)
    share = decision([0.9, 1.0, 0.8], MostSeeds(at_least=0.85))
    assert share.estimate == pytest.approx(2 / 3)
    nothing = decision([], BoundedMean(above=0.0))
    assert (nothing.estimate, nothing.low, nothing.count) == (None, None, 0)
    # Three losses have no finite limits, so none are said.
    assert (decision([0.1, 0.2, 0.3], LOSS).low, decision(FAR, LOSS).high is None) == (None, False)


@pytest.mark.parametrize("criterion", [DIFFERENT, LOSS, MostSeeds(at_least=0.1)])
def test_what_never_learned_cannot_tell(criterion: Criterion) -> None:
    """No mean of losses where a single run failed; else where none learned."""
    some = ROWS.with_columns(learned=pl.col("seed") != 1)
    none = ROWS.with_columns(learned=pl.lit(False))
    assert decision(FAR, criterion, none).cannot_tell == "never learned"
    assert decision(FAR, criterion, none).verdict == "not decided"
    assert decision(FAR, criterion, some).cannot_tell == ("not every run learned" if criterion is LOSS else None)
    # Where no optimum is declared, nothing is known of it.
    assert decision(FAR, criterion, ROWS.with_columns(learned=pl.lit(None, pl.Boolean))).cannot_tell is None


@pytest.mark.parametrize(
    ("first", "second", "cannot_tell"),
    [
        (1.0, 0.995, "at the ceiling or floor"),
        (0.0, 0.005, "at the ceiling or floor"),
        (1.0, 0.9, None),
        (1.0, 0.0, None),
    ],
)
def test_arms_at_one_end_cannot_be_compared(first: float, second: float, cannot_tell: str | None) -> None:
    levels = {"a": {0: first, 1: first}, "b": {0: second, 1: second}}
    found = decision(NEAR, DIFFERENT, levels=levels)
    assert found.cannot_tell == cannot_tell
    assert found.verdict == ("smaller than matters" if cannot_tell is None else "not decided")
    percent = {arm: {seed: 100 * one for seed, one in own.items()} for arm, own in levels.items()}
    assert decision(NEAR, DIFFERENT, levels=percent, ceiling=100.0).cannot_tell == cannot_tell
    assert decision(NEAR, MostSeeds(at_least=0.1), levels=levels).cannot_tell == cannot_tell
    # That both arms solve the task is a reason to be close; that neither does is none.
    close = decision(NEAR, MostSeeds(at_most=0.1), levels=levels).cannot_tell
    assert close == (cannot_tell if first == 0 else None)


def test_an_arm_without_runs_leaves_a_claim_open() -> None:
    one = replace(claim(Outcomes({}, "nats"), DIFFERENT, "a", "c"), numbers=lambda evidence: 1 / 0)
    found = judge([one], (), Evidence(ROWS))["one"]
    assert (found.verdict, found.count, found.outcomes.detail) == ("not decided", 0, "No run yet of c.")


def test_primary_claims_are_judged_together() -> None:
    """An e-value of 41 decides one claim alone, and two of two, but not one of three."""
    even = Outcomes(dict.fromkeys(range(6), 1.0), "of accuracy")
    odd = Outcomes({seed: float(seed % 2) for seed in range(6)}, "of accuracy")
    criterion = MostSeeds(at_least=1.0)
    claims = [claim(even, criterion, name=name) for name in "ab"] + [
        claim(odd, criterion, name=name) for name in "cd"
    ]

    def held(*primary: str) -> set[str]:
        found = judge(claims, primary, Evidence(ROWS))
        assert {name for name, one in found.items() if one.primary} == set(primary)
        return {name for name, one in found.items() if one.verdict == "held"}

    assert held() == held("a", "c") | {"b"} == held("a", "b") == {"a", "b"}
    assert held("a", "c", "d") == {"b"}
    assert held("a", "b", "c", "d") == {"a", "b"}


def test_a_rule_in_words_and_its_hash() -> None:
    one = claim(Outcomes({}, "nats"), DIFFERENT, "a")
    assert one.rule == (
        "A number. The mean over all seeds, of numbers from -1 to 1, is above 0. "
        "Smaller than matters: more than half of all seeds are within 0.05 of 0."
    )
    assert "t e-process, prior scale 1" in replace(one, criterion=LOSS).rule
    most = replace(one, criterion=MostSeeds(at_least=0.1, at_most=0.2))
    assert most.rule.endswith("In more than half of all seeds the number is at least 0.1 and at most 0.2.")
    changed = [
        replace(one, outcome="Another number."),
        replace(one, criterion=BoundedMean(above=0.0, matters=0.1)),
        replace(one, criterion=NormalMean(above=0.0, matters=0.05, scale=2.0)),
        replace(one, arms=("b",)),
        most,
    ]
    assert len({one.rule_id, *(other.rule_id for other in changed)}) == 6
    assert replace(one, statement="In other words.", source="somebody").rule_id == one.rule_id


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (BoundedMean, "above, below: give exactly one of the two"),
        (lambda: BoundedMean(above=0.0, below=0.0), "above, below: give exactly one of the two"),
        (lambda: BoundedMean(above=1.0), "above, below: expected a number between -1 and 1"),
        (lambda: NormalMean(above=0.0, matters=0.0), "matters: expected a number above 0"),
        (MostSeeds, "at_least, at_most: give at least one of the two"),
    ],
)
def test_criteria_that_ask_nothing_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(SettingError, match=message):
        make()


def test_a_number_outside_its_range_is_refused() -> None:
    with pytest.raises(SettingError, match="outcomes: expected numbers from -1 to 1"):
        decision([1.2, 0.1], DIFFERENT)


def test_levels_by_hand() -> None:
    assert numbers_at(ROWS, "a", 8) == {0: 0.5, 1: 0.7, 2: 0.9}
    with pytest.raises(SettingError, match="arm: expected an arm with accuracy at length 16"):
        numbers_at(ROWS, "a", 16)
    with pytest.raises(SettingError, match=r"measure: expected a column of the rows.*got 'accurracy'.*'accuracy'"):
        numbers_at(ROWS, "a", 8, "accurracy")
    two = pl.concat([ROWS, ROWS.with_columns(condition=pl.lit("other"))])
    with pytest.raises(SettingError, match="condition: expected one condition of a"):
        numbers_at(two, "a", 8)
    assert numbers_at(two, "a", 8, condition="other") == {0: 0.5, 1: 0.7, 2: 0.9}
