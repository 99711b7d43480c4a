"""What ``check_rule`` catches: each mutant breaks one property of a sound rule."""

import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparsity_lab.generators import First, Majority, Parity, Rule, SumMod
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


class _ApplyOf(Parity):
    """Parity, but for what ``flip`` says of the values."""

    def flip(self, values: Values) -> object:
        return False

    def apply(self, values: Values, planted_vocab: int) -> Values:
        return np.asarray(super().apply(values, planted_vocab) ^ np.int64(bool(self.flip(values))))


@register
class OtherBeyondFour(_ApplyOf):
    def flip(self, values: Values) -> bool:
        return values.shape[1] == 5


@register
class OtherBeyondTwelve(_ApplyOf):
    def flip(self, values: Values) -> bool:
        return values.shape[1] > 12


@register
class OtherAlone(_ApplyOf):
    def flip(self, values: Values) -> bool:
        return len(values) == 1


@register
class NeedsRows(_ApplyOf):
    def flip(self, values: Values) -> bool:
        return bool(values.max() > 10)


@register
class GlobalGenerator(_ApplyOf):
    def flip(self, values: Values) -> bool:
        return bool(np.random.random() < 0.0)


@register
class GlobalSeed(_ApplyOf):
    def flip(self, values: Values) -> bool:
        return torch.initial_seed() % 2 == 1


@register
class GlobalDefinition(Parity):
    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        return super().define(values, planted_vocab) ^ (random.random() < 0.5)


@register
class FloatDefinition(Parity):
    def define(self, values: tuple[int, ...], planted_vocab: int) -> int:
        return float(super().define(values, planted_vocab))  # type: ignore[return-value]


@register
class LabelThatNeverOccurs(Parity):
    def num_labels(self, planted_vocab: int) -> int:
        return 3

    def joint(self, k: int, planted_vocab: int) -> NDArray[np.float64]:
        return np.pad(super().joint(k, planted_vocab), ((0, 0), (0, 0), (0, 1)))


@register
class FlatJointBeyondTwelve(First):
    def joint(self, k: int, planted_vocab: int) -> NDArray[np.float64]:
        joint = super().joint(k, planted_vocab)
        return joint if k <= 12 else np.full_like(joint, planted_vocab**-2.0)


@register
class RefusesRawly(Parity):
    def check_use(self, k: int, planted_vocab: int) -> None:
        if k > 3:
            raise IndexError(k)


MUTANTS: list[tuple[Rule, str]] = [
    (Unregistered(), "Unregistered is not registered as the rule 'Parity'. Put `@register`"),
    (OtherDefinition(), r"`apply` says 1 and `define` 0"),
    (LabelsFromOne(m=2), "labels run from 1 to 2, and num_labels says 2"),
    (WideLabels(), r"`apply` gives shape \(2, 1\)"),
    (SortsItsValues(), "`apply` changes the values"),
    (LooksAround(), "a label depends on the other rows"),
    (FlatJoint(), r"`joint`\[.*\] is 0.25, and 2 tuples give"),
    (Boastful(), r"values \(0,\) tell something of the label"),
    (OtherBeyondFour(), r"at k=5, planted_vocab=2: of \(0, 0, 0, 0, 0\), `apply` says 1 and `define` 0"),
    (OtherBeyondTwelve(), "at k=16, planted_vocab=2: of .* `apply` says"),
    (OtherAlone(), "a label depends on the other rows"),
    (NeedsRows(), "`apply` fails for 0 rows: ValueError"),
    (GlobalGenerator(), "`apply` moves the global generator of torch or numpy"),
    (GlobalSeed(), "`apply` gives something else the second time, or under another global seed"),
    (GlobalDefinition(), "`define` gives something else the second time"),
    (FloatDefinition(), r"of \(0,\), `define` gives 0.0. Give the label as an int"),
    (LabelThatNeverOccurs(), r"num_labels says 3, and k in \[.*\] never give \[2\]"),
    (FlatJointBeyondTwelve(), r"at k=16, planted_vocab=2: `joint`\[\(0, .*2000 tuples give"),
    (RefusesRawly(), r"`check_use` of k=4, planted_vocab=2 raises IndexError"),
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
