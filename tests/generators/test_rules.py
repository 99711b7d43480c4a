"""Rules: fast form against definition, joint laws against enumeration."""

import itertools

import numpy as np
import pytest

from sparsity_lab.generators import First, Lookup, Majority, Parity, Rule, SumMod
from sparsity_lab.settings import SettingError

CASES = [
    (Parity(), 2),
    (Parity(), 3),
    (SumMod(m=3), 3),
    (SumMod(m=3), 4),
    (SumMod(m=5), 2),
    (Majority(), 2),
    (First(), 3),
    (Lookup(), 3),
    (Lookup(seed=4), 2),
]


@pytest.mark.parametrize(("rule", "q"), CASES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_rule_against_enumeration(rule: Rule, q: int, k: int) -> None:
    values = np.array(list(itertools.product(range(q), repeat=k)))
    labels = rule.apply(values, q)
    assert labels.tolist() == [rule.define(tuple(row), q) for row in values.tolist()]
    m = rule.num_labels(q)
    joint = [[[((values[:, j] == z) & (labels == y)).mean() for y in range(m)] for z in range(q)] for j in range(k)]
    assert rule.joint(k, q) == pytest.approx(np.array(joint), abs=1e-12)
    free = all(
        np.allclose(
            [labels[(values[:, :j] == values[i, :j]).all(axis=1)].mean() for i in range(len(values))], labels.mean()
        )
        for j in range(k)
    )
    if rule.label_free_subsets(k, q):
        assert free


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
