"""Verdicts: primary claims together, exploratory ones alone, and what these runs cannot tell."""

from collections.abc import Mapping

import polars as pl
import pytest

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
)
from sparsity_lab.studies.outlook import core_minutes_of_a_seed, outlook

Levels = Mapping[str, Mapping[int, float]]


def claim(
    name: str,
    numbers: list[float],
    criterion: Criterion,
    levels: Levels | None = None,
    arms: tuple[str, ...] = ("a",),
) -> Claim:
    outcomes = Outcomes(dict(enumerate(numbers)), "of it", "", levels or {})
    return Claim(
        name=name, statement="", source="", outcome="", numbers=lambda _: outcomes, criterion=criterion, arms=arms
    )


def evidence(learned: dict[str, list[bool | None]] | None = None) -> Evidence:
    """Runs of arms a and b with what each learned."""
    rows = [
        {"arm": arm, "seed": seed, "run": f"{arm}{seed}", "learned": one, "seconds": 60.0, "parent_seconds": 30.0}
        for arm, seeds in (learned or {"a": [True] * 3, "b": [True] * 3}).items()
        for seed, one in enumerate(seeds)
    ]
    return Evidence(pl.DataFrame(rows, schema_overrides={"learned": pl.Boolean}))


def most(name: str, good: int, bad: int = 0) -> Claim:
    return claim(name, [1.0] * good + [0.0] * bad, MostSeeds(at_least=0.5))


def verdicts(found: Mapping[str, Decision]) -> list[str]:
    return [decision.verdict for decision in found.values()]


def test_a_lone_claim_among_five_needs_seven_seeds() -> None:
    names = ["one", "two", "three", "four", "five"]
    others = [most(name, 0) for name in names[1:]]
    for seeds, verdict in ((6, "not decided"), (7, "held")):
        assert judge([most("one", seeds), *others], names, evidence())["one"].verdict == verdict
    assert judge([most("one", 0, 7), *others], names, evidence())["one"].verdict == "did not hold"


def test_primary_claims_help_each_other_and_exploratory_ones_stand_alone() -> None:
    """An e-value of 28 is enough for four of five together, or alone, but not for one of five."""
    names = ["one", "two", "three", "four", "five"]
    claims = [*(most(name, 5) for name in names[:4]), most("five", 0)]
    assert verdicts(judge(claims, names, evidence())) == ["held"] * 4 + ["not decided"]
    assert verdicts(judge([claims[0], *(most(name, 0) for name in names[1:])], names, evidence()))[0] == "not decided"
    alone = judge(claims, (), evidence())
    assert verdicts(alone) == ["held"] * 4 + ["not decided"]
    assert not any(decision.primary for decision in alone.values())


def test_smaller_than_matters_goes_before_held() -> None:
    numbers = [0.02 + 0.0001 * i for i in range(30)]
    found = judge([claim("small", numbers, NormalMean(above=0.0, matters=0.05))], ["small"], evidence())
    assert found["small"].verdict == "smaller than matters"
    found = judge([claim("large", numbers, NormalMean(above=0.0, matters=0.01))], ["large"], evidence())
    assert found["large"].verdict == "held"


@pytest.mark.parametrize(("level", "reason"), [(1.0, True), (0.995, True), (0.0, True), (0.9, False)])
def test_arms_that_are_all_at_an_end_cannot_be_compared(level: float, reason: bool) -> None:
    levels = {arm: dict.fromkeys(range(10), level) for arm in ("a", "b")}
    criterion = BoundedMean(above=0.0, matters=0.05)
    found = judge([claim("same", [0.0] * 10, criterion, levels, ("a", "b"))], ["same"], evidence())["same"]
    assert (found.cannot_tell, found.verdict) == (
        ("at the ceiling or floor", "not decided") if reason else (None, "smaller than matters")
    )


def test_one_arm_at_its_ceiling_can_be_compared() -> None:
    levels = {"a": dict.fromkeys(range(40), 1.0), "b": dict.fromkeys(range(40), 0.5)}
    criterion = BoundedMean(above=0.0)
    found = judge([claim("apart", [0.5] * 40, criterion, levels, ("a", "b"))], ["apart"], evidence())["apart"]
    assert (found.cannot_tell, found.verdict) == (None, "held")


def test_what_never_learned_loses_nothing_with_length() -> None:
    never = {"a": [False] * 3, "b": [False] * 3}
    far = claim("far", [0.5] * 40, BoundedMean(above=0.0), arms=("a", "b"))
    assert judge([far], ["far"], evidence(never))["far"].cannot_tell == "never learned"
    assert judge([far], ["far"], evidence(never | {"b": [False, True, False]}))["far"].verdict == "held"
    unknown: dict[str, list[bool | None]] = {"a": [None] * 3, "b": [None] * 3}
    assert judge([far], ["far"], evidence(unknown))["far"].verdict == "held", "text declares no optimum"


def test_losses_are_compared_where_every_run_learned() -> None:
    loss = claim("loss", [0.5, 0.52, 0.48, 0.51] * 3, NormalMean(above=0.0), arms=("a", "b"))
    assert judge([loss], ["loss"], evidence())["loss"].verdict == "held"
    found = judge([loss], ["loss"], evidence({"a": [True] * 3, "b": [True, False, True]}))["loss"]
    assert (found.verdict, found.evidences) == ("not decided", (0.0, 0.0, 0.0))
    assert found.cannot_tell == "not every run learned"


def test_a_claim_whose_arm_has_no_run_waits() -> None:
    found = judge([claim("c", [1.0] * 9, MostSeeds(at_least=0.5), arms=("a", "c"))], ["c"], evidence())["c"]
    assert (found.verdict, found.count, found.estimate) == ("not decided", 0, None)
    assert "No run yet of c" in found.outcomes.detail


def test_the_outlook_repeats_the_numbers_so_far() -> None:
    """Of one success seven are needed, alone among five; with a failure in each three, more."""
    rows = evidence().rows

    def still(one: Claim, primary: int = 5) -> tuple[int | None, float | None]:
        found = outlook(one, judge([one], [one.name], evidence())[one.name], primary, rows)
        return found.seeds, found.core_minutes

    assert still(most("one", 1)) == (6, pytest.approx(6 * 1.5))
    assert still(most("one", 1), primary=1) == (4, pytest.approx(4 * 1.5))
    seeds, _ = still(most("one", 2, 1))
    assert seeds is not None
    assert seeds > 20
    assert still(most("one", 1, 1)) == (None, None), "no end in sight"
    assert still(claim("t", [0.5, 0.6], NormalMean(above=0.0))) == (None, None), "too few to tell"


def test_what_several_arms_are_made_from_is_paid_once() -> None:
    rows = evidence().rows
    assert core_minutes_of_a_seed(rows, ("a",)) == pytest.approx(1.5)
    assert core_minutes_of_a_seed(rows, ("a", "b")) == pytest.approx(2.5)
    assert core_minutes_of_a_seed(rows, ("a", "c")) is None
