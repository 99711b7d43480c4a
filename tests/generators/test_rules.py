"""Rules by hand, and what they refuse; ``testing.test_registered`` holds them to enumeration."""

import numpy as np
import pytest

from sparsity_lab.generators import First, Lookup, Majority, Parity, SumMod
from sparsity_lab.settings import SettingError


def test_values_by_hand() -> None:
    values = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]])
    assert Parity().apply(values, 2).tolist() == [0, 1, 0, 1]
    assert Majority().apply(values, 2).tolist() == [1, 1, 0, 0]
    assert First().apply(values, 2).tolist() == [1, 1, 0, 0]
    assert SumMod(m=3).apply(values, 2).tolist() == [2, 0, 0, 1]


def test_an_even_tie_gives_zero() -> None:
    assert Majority().apply(np.array([[0, 1], [1, 1]]), 2).tolist() == [0, 1]


def test_lookup_reads_base_q_and_depends_on_its_seed() -> None:
    rule = Lookup(seed=2)
    table = rule.table(3, 4)
    assert rule.apply(np.array([[1, 2, 3]]), 4)[0] == table[1 * 16 + 2 * 4 + 3]
    assert not np.array_equal(table, Lookup(seed=3).table(3, 4))


def test_refusals() -> None:
    with pytest.raises(SettingError, match=r"planted_vocab: expected 2, since Majority counts bits, got 3"):
        Majority().check_use(3, 3)
    with pytest.raises(
        SettingError, match=r"rule: expected a Lookup table of at most 2\^20 entries, got '8\^7 entries'"
    ):
        Lookup().check_use(7, 8)
    Lookup().check_use(20, 2)
    with pytest.raises(SettingError, match="m: expected a whole number of at least 2, got 1"):
        SumMod(m=1)
