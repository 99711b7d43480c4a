"""The shared rules, by hand."""

import polars as pl
import pytest

from sparsity_lab.studies import (
    advantages,
    decided,
    growths,
    means_listed,
    rank_correlations,
    shares_of_way,
    undecided,
)

ALIKE = {0: 0.5, 1: 0.51, 2: 0.49}


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [
        ({}, "held"),
        ({"above": 0.6}, "did not hold"),
        ({"above": 0.5}, "not decided"),
        ({"below": 0.6}, "held"),
        ({"below": 0.4}, "did not hold"),
        ({"at_most": 0.6}, "held"),
        ({"at_most": 0.4}, "did not hold"),
    ],
)
def test_numbers_by_seed_become_a_verdict(bound: dict[str, float], verdict: str) -> None:
    decision = decided(ALIKE, "nats", "Seen.", **bound)
    assert decision.verdict == verdict
    assert decision.interval.estimate == pytest.approx(0.5)
    assert (decision.interval.count, decision.unit, decision.detail, decision.over) == (3, "nats", "Seen.", "seeds")


def test_a_single_seed_or_none_decides_nothing() -> None:
    assert decided({0: 5.0}, "nats").verdict == decided({}, "nats").verdict == "not decided"


def test_what_cannot_be_decided_says_why_first() -> None:
    decision = undecided(decided(ALIKE, "nats", "Seen."), "Not alike.")
    assert (decision.verdict, decision.detail) == ("not decided", "Not alike. Seen.")
    assert decision.interval.count == 3
    assert undecided(decided(ALIKE, "nats", "Seen.")).detail == "Seen."


def test_growths_and_shares_are_taken_seed_by_seed() -> None:
    assert growths({0: 2.0, 1: 1.0}, {1: 1.5, 2: 1.0}) == {1: 0.5}
    assert shares_of_way({0: 3.0, 1: 9.0}, {0: 2.5, 1: 5.0}, {0: 1.0}) == {0: 0.25}


ROWS = pl.DataFrame(
    [
        {"arm": arm, "seed": seed, "far": far, "speed": speed}
        for arm, seed, far, speed in [
            ("softmax", 0, 0.2, 1.0), ("b", 0, 0.4, 2.0), ("c", 0, 0.6, 3.0),
            ("softmax", 1, 0.5, 1.0), ("b", 1, 0.4, 2.0), ("c", 1, 0.3, 3.0),
            ("b", 2, 0.5, 1.0), ("c", 2, 0.5, 2.0),
        ]
    ]
)  # fmt: skip


def test_rank_correlations_need_enough_arms_that_differ() -> None:
    """Seed 0 rises, seed 1 falls; of seed 2 there are two arms, with one value."""
    assert rank_correlations(ROWS, "speed", "far", 3) == pytest.approx({0: 1.0, 1: -1.0})
    assert rank_correlations(ROWS, "speed", "far", 2) == pytest.approx({0: 1.0, 1: -1.0})
    assert rank_correlations(ROWS, "speed", "far", 4) == {}


def test_advantages_over_one_arm_are_of_those_that_a_seed_has() -> None:
    """Seed 2 has no softmax, and no seed has d."""
    found, names = advantages(ROWS, "far", "softmax", ("d", "c", "b"))
    assert found == pytest.approx({0: 0.3, 1: -0.15})
    assert names == ["c", "b"]


def test_means_in_words() -> None:
    numbers = {"a": {0: 1.0, 1: 2.0}, "b": {}, "c": {0: -0.001}}
    assert means_listed(numbers) == "a 1.50; c 0.00"
    assert means_listed(numbers, 3, between=", ", missing="not learned") == "a 1.500, b not learned, c -0.001"
