"""Pairs of replicates, by hand."""

import polars as pl
import pytest

from sparsity_lab.analysis import by_replicate, by_seed, mean_interval, paired, paired_differences
from sparsity_lab.settings import SettingError

ROWS = pl.DataFrame(
    {
        "arm": ["a", "a", "a", "b", "b", "b", "b"],
        "seed": [0, 1, 2, 2, 0, 1, 7],
        "condition": ["k=1"] * 7,
        "value": [0.5, 0.7, 0.9, 0.6, 0.4, 0.5, None],
    }
)
OF, MINUS = (by_replicate(ROWS.filter(arm=arm), "value") for arm in ("a", "b"))


def test_numbers_are_named_by_their_keys() -> None:
    """What is null is left out. One key names by itself, several by a tuple."""
    assert MINUS == {2: 0.6, 0: 0.4, 1: 0.5}
    both = by_replicate(ROWS.filter(arm="a"), "value", ("seed", "condition"))
    assert both == {(0, "k=1"): 0.5, (1, "k=1"): 0.7, (2, "k=1"): 0.9}


def test_differences_are_between_equal_seeds_in_order() -> None:
    found = paired_differences(OF, MINUS)
    assert list(found) == [0, 1, 2]
    assert found == pytest.approx({0: 0.1, 1: 0.2, 2: 0.3})
    interval = mean_interval(list(found.values()))
    # Student's t with two degrees of freedom, 4.3027, times 0.1 / sqrt(3).
    assert interval.low == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert paired_differences(OF, {9: 1.0}) == {}


def test_any_function_of_what_all_arms_have() -> None:
    assert paired(lambda a, b, c: a + 10 * b + 100 * c, {0: 1.0, 1: 2.0}, {1: 3.0, 2: 4.0}, {1: 5.0}) == {1: 532.0}


def test_conditions_are_averaged_within_a_seed() -> None:
    assert by_seed({(1, "k=2"): 3.0, (0, "k=1"): 1.0, (1, "k=1"): 5.0}) == {0: 1.0, 1: 4.0}


def test_what_cannot_be_paired_is_named() -> None:
    with pytest.raises(SettingError, match="column: expected a column of the rows.*got 'valeu'.*'value'"):
        by_replicate(ROWS, "valeu")
    with pytest.raises(SettingError, match="seed: a replicate has several rows"):
        by_replicate(ROWS, "value")
