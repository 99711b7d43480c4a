"""What several studies claim, and their numbers by seed, by hand."""

import polars as pl
import pytest

from sparsity_lab.studies import (
    BoundedMean,
    Evidence,
    MostSeeds,
    difference_claim,
    growths,
    means_listed,
    rank_correlations,
    shares_of_way,
    slope_claim,
)


def test_growths_and_shares_are_taken_seed_by_seed() -> None:
    assert growths({0: 2.0, 1: 1.0}, {1: 1.5, 2: 1.0}) == {1: 0.5}
    assert shares_of_way({0: 3.0, 1: 9.0}, {0: 2.5, 1: 5.0}, {0: 1.0}) == {0: 0.25}


def test_rank_correlations_need_enough_arms_that_differ() -> None:
    """Seed 0 rises, seed 1 falls; of seed 2 there are two arms, with one value."""
    rows = pl.DataFrame(
        [(0, 0.2, 1.0), (0, 0.4, 2.0), (0, 0.6, 3.0), (1, 0.5, 1.0), (1, 0.4, 2.0), (1, 0.3, 3.0), (2, 0.5, 1.0),
         (2, 0.5, 2.0)], schema=["seed", "far", "speed"], orient="row",
    )  # fmt: skip
    assert rank_correlations(rows, "speed", "far", 3) == pytest.approx({0: 1.0, 1: -1.0})
    assert rank_correlations(rows, "speed", "far", 2) == pytest.approx({0: 1.0, 1: -1.0})
    assert rank_correlations(rows, "speed", "far", 4) == {}


def test_means_in_words() -> None:
    numbers = {"a": {0: 1.0, 1: 2.0}, "b": {}, "c": {0: -0.001}}
    assert means_listed(numbers) == "a 1.50; c 0.00"
    assert means_listed(numbers, 3, between=", ", missing="not learned") == "a 1.500, b not learned, c -0.001"


# Normalized accuracy at 8 (trained) and 16 by arm, condition and seed; with whether it learned.
VALUES = {
    ("a", "k=1", 0): (1.0, 0.9, True), ("a", "k=2", 0): (1.0, 0.7, True), ("a", "k=4", 0): (1.0, 0.1, True),
    ("a", "k=1", 1): (1.0, 0.9, True), ("a", "k=2", 1): (0.5, 0.4, False), ("a", "k=4", 1): (1.0, 0.3, True),
    ("b", "k=1", 0): (1.0, 0.5, True), ("b", "k=2", 0): (1.0, 0.5, True), ("b", "k=4", 0): (1.0, 0.5, True),
    ("b", "k=1", 1): (1.0, 0.5, True), ("b", "k=2", 1): (1.0, 0.5, True), ("b", "k=4", 1): (1.0, 0.5, True),
}  # fmt: skip
EVIDENCE = Evidence(
    pl.DataFrame(
        {
            "arm": arm,
            "condition": condition,
            "seed": seed,
            "length": length,
            "trained": length == 8,
            "normalized_accuracy": value,
            "learned": learned,
        }
        for (arm, condition, seed), (*values, learned) in VALUES.items()
        for length, value in zip((8, 16), values, strict=True)
    )
)
AT = {"k=1": 1.0, "k=2": 2.0, "k=4": 4.0}


def test_differences_are_over_what_both_learned_and_all_stands_beside() -> None:
    claim = difference_claim("one", "One.", "a", "b", lengths=(8, 16), source="this lab")
    found = claim.numbers(EVIDENCE)
    assert found.numbers == pytest.approx({0: 0.2 / 3, 1: 0.1})
    assert "a 0.58 (1 of 2 seeds learned all)" in found.detail
    assert "Difference over all seeds, learned or not: 0.05." in found.detail
    assert found.levels["b"] == {0: 0.5, 1: 0.5}
    assert (claim.arms, claim.criterion) == (("a", "b"), BoundedMean(above=0.0, matters=0.05))
    of_one = difference_claim(
        "one", "One.", "a", "b", lengths=(8, 16), source="this lab", column="drop", conditions=["k=4"]
    )
    assert of_one.numbers(EVIDENCE).numbers == pytest.approx({0: 0.4, 1: 0.2})
    assert of_one.outcome.endswith("over what both learned, the mean over k=4.")


def test_differences_of_several_pairs_are_averaged() -> None:
    claim = difference_claim(
        "one", "One.", ["a", "b"], ["b", "b"], lengths=(8, 16), source="this lab", criterion=MostSeeds(at_least=0.1)
    )
    assert claim.numbers(EVIDENCE).numbers == pytest.approx({0: 0.1 / 3, 1: 0.05})
    assert (claim.arms, claim.criterion) == (("a", "b"), MostSeeds(at_least=0.1))
    assert claim.outcome.endswith("over what both learned, the mean over these pairs.")
    with pytest.raises(ValueError, match="zip"):
        difference_claim("one", "One.", ["a", "b"], ["b"], lengths=(8, 16), source="this lab")


def test_rises_are_those_of_the_arm_that_rises_least() -> None:
    """Of arm a seed 0 has a slope of 38/140 over k from 1 to 4; seed 1 learned two k alone. Arm b is flat."""
    claim = slope_claim("one", "One.", {"a": AT}, lengths=(8, 16), source="this lab")
    found = claim.numbers(EVIDENCE)
    assert found.numbers == pytest.approx({0: 3 * 38 / 140})
    assert found.detail.startswith(
        "Mean drop of what was learned: a k=1 0.10, k=2 0.30, k=4 0.80. Mean rise, over all"
    )
    both = slope_claim("one", "One.", {"a": AT, "b": AT}, lengths=(8, 16), source="this lab")
    assert both.numbers(EVIDENCE).numbers == pytest.approx({0: 0.0})
    assert both.outcome.endswith("from one end to the other, the smallest of the arms.")
    assert both.criterion == MostSeeds(at_least=0.2)
