"""What ``check_rule`` catches: each mutant breaks one property of a sound rule."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsity_lab.generators import Majority, Parity, Rule, SumMod
from sparsity_lab.settings import SettingError, register
from sparsity_lab.testing import check_rule

Values = NDArray[np.int64]


class Unregistered(Parity):
    pass


@register
class OtherDefinition(Parity):
    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        return int(values[0] % 2)


@register
class LabelsFromOne(SumMod):
    def apply(self, values: Values, planted_vocab: int) -> Values:
        return super().apply(values, planted_vocab) + 1


@register
class WideLabels(Parity):
    def apply(self, values: Values, planted_vocab: int) -> Values:
        return super().apply(values, planted_vocab)[:, None]


@register
class SortsItsValues(Majority):
    def apply(self, values: Values, planted_vocab: int) -> Values:
        values.sort(axis=1)
        return super().apply(values, planted_vocab)


@register
class LooksAround(Parity):
    def apply(self, values: Values, planted_vocab: int) -> Values:
        return np.asarray((values.sum(axis=1) + values[0, 0]) % 2)


@register
class FlatJoint(Majority):
    def joint(self, k: int, planted_vocab: int) -> NDArray[np.float64]:
        return np.full((k, 2, 2), 0.25)


@register
class Boastful(Majority):
    def label_free_subsets(self, k: int, planted_vocab: int) -> bool:
        return True


@register
class Picky(Parity):
    def check_use(self, k: int, planted_vocab: int) -> None:
        raise SettingError("k", "another", k)


MUTANTS: list[tuple[Rule, str]] = [
    (Unregistered(), "Unregistered is not registered as the rule 'Parity'. Put `@register`"),
    (OtherDefinition(), r"`apply` says 1 and `define` 0"),
    (LabelsFromOne(m=2), "labels run from 1 to 2, and num_labels says 2"),
    (WideLabels(), r"`apply` gives shape \(2, 1\)"),
    (SortsItsValues(), "`apply` changes the values"),
    (LooksAround(), "a label depends on the other rows"),
    (FlatJoint(), r"`joint`\[.*\] is 0.25, and enumeration gives"),
    (Boastful(), r"values \(0,\) tell something of the label"),
    (Picky(), "it allows none of k"),
]


@pytest.mark.parametrize(("rule", "message"), MUTANTS, ids=[type(rule).__name__ for rule, _ in MUTANTS])
def test_mutants_are_caught_and_named(rule: Rule, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_rule(rule)


@register
class WithText(Parity):
    note: str = ""


def test_a_sound_rule_passes_with_any_text_in_it() -> None:
    for note in ("😀", "é\u2028\x7f", '\\ "it\'s"\n'):
        check_rule(WithText(note=note), ks=(1,), planted_vocabs=(2,))
