"""Drops seed by seed, by hand."""

import polars as pl
import pytest

from sparsity_lab.settings import SettingError
from sparsity_lab.studies import differences_at, learned_words, means_at, slopes, values_at

# Normalized accuracy at lengths 8, 16 (trained) and 32, by arm, condition and seed; the last says whether it learned.
VALUES = {
    ("a", "k=1", 0): (1.0, 1.0, 0.9, True),
    ("a", "k=1", 1): (1.0, 0.9, 0.6, True),
    ("a", "k=2", 0): (1.0, 1.0, 0.7, True),
    ("a", "k=2", 1): (0.1, 0.0, 0.4, False),
    ("a", "k=4", 0): (1.0, 0.9, -0.5, True),
    ("a", "k=4", 1): (1.0, 1.0, 0.0, True),
    ("b", "k=1", 0): (1.0, 1.0, 0.5, True),
    ("b", "k=1", 1): (1.0, 1.0, 0.4, True),
    ("b", "k=2", 0): (1.0, 1.0, 0.5, True),
    ("b", "k=2", 1): (1.0, 1.0, 0.5, True),
}
ROWS = pl.DataFrame(
    {
        "arm": arm,
        "condition": condition,
        "seed": seed,
        "length": length,
        "trained": length <= 16,
        "normalized_accuracy": value,
        "learned": values[3],
    }
    for (arm, condition, seed), values in VALUES.items()
    for length, value in zip((8, 16, 32), values[:3], strict=True)
)


def test_drops_are_from_the_longest_trained_length() -> None:
    """Chance is the floor: at k=4 seed 0 loses 0.9, not 1.4. What was not learned is left out."""
    found = values_at(ROWS, "a", 32)
    assert found["trained_length"].unique().to_list() == [16]
    drops = {(seed, condition): drop for seed, condition, drop in found.select("seed", "condition", "drop").rows()}
    expected = {(0, "k=1"): 0.1, (0, "k=2"): 0.3, (0, "k=4"): 0.9, (1, "k=1"): 0.3, (1, "k=4"): 1.0}
    assert drops == pytest.approx(expected)
    assert values_at(ROWS, "a", 32, ["k=2"], only_learned=False).height == 2


def test_conditions_are_averaged_within_a_seed() -> None:
    """Of seed 1 k=2 was not learned: it counts only where all do, with a drop below zero."""
    drops = means_at(ROWS, "a", 32, "drop")
    assert drops == pytest.approx({0: (0.1 + 0.3 + 0.9) / 3, 1: (0.3 + 1.0) / 2})
    every = means_at(ROWS, "a", 32, "drop", only_learned=False)
    assert every == pytest.approx({0: (0.1 + 0.3 + 0.9) / 3, 1: (0.3 - 0.4 + 1.0) / 3})
    assert means_at(ROWS, "a", 32, "at_trained", ["k=1"]) == pytest.approx({0: 1.0, 1: 0.9})


def test_pairs_are_of_seeds_and_conditions_that_both_learned() -> None:
    """Seed 0: 0.4 at k=1 and 0.2 at k=2; seed 1: 0.2 at k=1 alone, and -0.1 at k=2 where all count."""
    assert differences_at(ROWS, "a", "b", 32) == pytest.approx({0: 0.3, 1: 0.2})
    assert differences_at(ROWS, "a", "b", 32, only_learned=False) == pytest.approx({0: 0.3, 1: 0.05})


def test_slope_by_hand() -> None:
    """Seed 0: drops 0.1, 0.3, 0.9 at 1, 2, 4, slope 38/140; seed 1 learned two k, and has a slope only if two do."""
    at = {"k=1": 1.0, "k=2": 2.0, "k=4": 4.0}
    assert slopes(ROWS, "a", 32, at) == pytest.approx({0: 38 / 140})
    assert slopes(ROWS, "a", 32, at, least=2) == pytest.approx({0: 38 / 140, 1: 0.7 / 3})


def test_learned_is_counted() -> None:
    assert learned_words(ROWS, "a") == "1 of 2 seeds learned all"
    assert learned_words(ROWS, "a", ["k=1"]) == "2 of 2 seeds learned"


@pytest.mark.parametrize(
    ("arm", "length", "conditions", "message"),
    [
        ("c", 32, None, r"arm: expected an arm of the study"),
        ("a", 64, None, r"length: expected an evaluated length of a"),
        ("a", 32, ["k=3"], r"condition: expected a condition of a"),
    ],
)
def test_what_is_not_there_is_named(arm: str, length: int, conditions: list[str] | None, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        values_at(ROWS, arm, length, conditions)
