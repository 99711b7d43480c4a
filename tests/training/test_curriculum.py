import numpy as np
import pytest
from scipy.stats import chisquare

from sparsity_lab.generators import Stream
from sparsity_lab.settings import SettingError
from sparsity_lab.training import FixedLength, GrowingLength, MixedLengths, UniformLength


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


def test_growing_length_is_uniform_up_to_a_bound_that_grows() -> None:
    curriculum = GrowingLength(low=4, start=6, high=12, growth=0.5)
    seen = [{curriculum.at(Stream(seed=seed), step, 100) for seed in range(400)} for step in (0, 25, 49, 50, 99)]
    tops = [6, 9, 11, 12, 12]
    assert seen == [set(range(4, top + 1)) for top in tops]
    lengths = [curriculum.at(Stream(seed=seed), 80, 100) for seed in range(4000)]
    assert chisquare(np.bincount(lengths, minlength=13)[4:]).pvalue > 1e-6
    assert curriculum.range() == (4, 12)


def test_growth_at_once_is_uniform() -> None:
    whole, growing = UniformLength(low=3, high=9), GrowingLength(low=3, start=5, high=9, growth=0.0)
    assert [growing.at(Stream(), s, 50) for s in range(50)] == [whole.at(Stream(), s, 50) for s in range(50)]


def test_mixed_lengths_within_mixed_lengths_pick_for_themselves() -> None:
    inner = MixedLengths(curricula=(FixedLength(length=1), FixedLength(length=2)))
    curriculum = MixedLengths(curricula=(inner, FixedLength(length=3)))
    lengths = [curriculum.at(Stream(), step, 4000) for step in range(4000)]
    assert chisquare(np.bincount(lengths)[1:], [1000, 1000, 2000]).pvalue > 1e-6


def test_mixed_lengths_come_in_their_shares_from_their_curricula() -> None:
    parts = (FixedLength(length=30), UniformLength(low=2, high=4))
    curriculum = MixedLengths(curricula=parts, shares=(0.25, 0.75))
    lengths = np.array([curriculum.at(Stream(seed=2), step, 4000) for step in range(4000)])
    counts = [(lengths == length).sum() for length in (30, 2, 3, 4)]
    assert sum(counts) == 4000
    assert chisquare(counts, 4000 * np.full(4, 0.25)).pvalue > 1e-6
    short = lengths < 30
    assert [parts[1].at(Stream(seed=2), step, 4000) for step in np.flatnonzero(short)] == lengths[short].tolist()
    assert curriculum.range() == (2, 30)
    assert {MixedLengths().at(Stream(), step, 50) for step in range(50)} == {8, 24}


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: FixedLength(length=0), "length"),
        (lambda: UniformLength(low=0, high=3), "low"),
        (lambda: UniformLength(low=4, high=3), "high"),
        (lambda: GrowingLength(low=0), "low"),
        (lambda: GrowingLength(low=4, start=3), "start"),
        (lambda: GrowingLength(start=30), "high"),
        (lambda: GrowingLength(growth=1.5), "growth"),
        (lambda: MixedLengths(curricula=()), "curricula"),
        (lambda: MixedLengths(shares=(1.0,)), "shares"),
        (lambda: MixedLengths(shares=(0.5, 0.6)), "shares"),
        (lambda: MixedLengths(shares=(1.0, 0.0)), "shares"),
    ],
)
def test_impossible_lengths_are_refused(make, path) -> None:
    with pytest.raises(SettingError) as error:
        make()
    assert error.value.path == path
