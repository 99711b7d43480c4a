import numpy as np
import pytest
from scipy.stats import chisquare

from sparsity_lab.generators import Stream
from sparsity_lab.settings import SettingError
from sparsity_lab.training import FixedLength, UniformLength


def test_fixed_length_is_the_same_at_every_step() -> None:
    curriculum = FixedLength(length=7)
    assert {curriculum.at(Stream(), step, 50) for step in range(50)} == {7}
    assert curriculum.range() == (7, 7)


def test_uniform_length_is_uniform_over_both_ends() -> None:
    curriculum = UniformLength(low=3, high=12)
    lengths = [curriculum.at(Stream(seed=5), step, 4000) for step in range(4000)]
    counts = np.bincount(lengths, minlength=13)
    assert counts[:3].sum() == 0
    assert len(counts) == 13
    assert chisquare(counts[3:]).pvalue > 1e-6


def test_length_depends_on_seed_and_step_alone() -> None:
    curriculum = UniformLength(low=1, high=1000)
    forward = [curriculum.at(Stream(seed=1), step, 20) for step in range(20)]
    backward = [curriculum.at(Stream(seed=1), step, 99) for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [curriculum.at(Stream(seed=2), step, 20) for step in range(20)]


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: FixedLength(length=0), "length"),
        (lambda: UniformLength(low=0, high=3), "low"),
        (lambda: UniformLength(low=4, high=3), "high"),
    ],
)
def test_impossible_lengths_are_refused(make, path) -> None:
    with pytest.raises(SettingError) as error:
        make()
    assert error.value.path == path
