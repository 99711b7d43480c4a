"""Index sampling: the laws, exactly where words can be enumerated and by chi-square where not."""

import itertools
from collections import Counter
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from sparsity_lab.models import IndexSampling, Plain, PoSE, Randomized, RandomOffset
from sparsity_lab.settings import SettingError

FALSE_ALARM = 1e-6


def every_draw(*bounds: int) -> NDArray[np.uint64]:
    """A row of words for each combination of values below the bounds: the middle of the words that give the value."""
    choices = [[((2 * value + 1) << 63) // bound for value in range(bound)] for bound in bounds]
    return np.array(list(itertools.product(*choices)), dtype=np.uint64).reshape(-1, len(bounds))


def random_words(count: int, num_words: int) -> NDArray[np.uint64]:
    return np.random.default_rng(12345).integers(0, 2**64, size=(count, num_words), dtype=np.uint64)


def law(indices: NDArray[np.int64]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(row) for row in indices.tolist())


def test_plain() -> None:
    got = Plain().indices(np.empty((3, 0), dtype=np.uint64), 4)
    assert got.tolist() == [[0, 1, 2, 3]] * 3
    assert got.dtype == np.int64


def test_random_offset_exactly() -> None:
    n, size = 4, 9
    got = law(RandomOffset(size=size).indices(every_draw(size - n + 1), n))
    assert got == {tuple(range(o, o + n)): 1 for o in range(6)}


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pose_exactly(n: int) -> None:
    """First chunk's length uniform on 1 .. (n + 1) // 2, skip uniform on 0 .. T - n, independent."""
    target = 9
    expected: Counter[tuple[int, ...]] = Counter()
    for first, skip in itertools.product(range(1, (n + 1) // 2 + 1), range(target - n + 1)):
        expected[(*range(first), *(i + skip for i in range(first, n)))] += 1
    words = every_draw((n + 1) // 2, target - n + 1)
    assert law(PoSE(target=target).indices(words, n)) == expected


@pytest.mark.parametrize(("n", "target"), [(1, 5), (2, 5), (3, 5), (4, 4)])
def test_randomized_exactly(n: int, target: int) -> None:
    """Every n-subset comes equally often when every combination of draws comes once."""
    bounds = [target - n + 1 + step for step in range(n)]
    got = law(Randomized(target=target).indices(every_draw(*bounds), n))
    assert set(got) == set(itertools.combinations(range(target), n))
    assert len(set(got.values())) == 1


@pytest.mark.parametrize(
    ("index_sampling", "n", "outcomes"),
    [
        (RandomOffset(size=40), 8, 33),
        # Skip 0 gives one outcome whatever the first chunk; it is taken apart below.
        (PoSE(target=20), 6, 3 * 14 + 1),
        (Randomized(target=9), 4, comb(9, 4)),
    ],
    ids=str,
)
def test_law_of_random_words(index_sampling: IndexSampling, n: int, outcomes: int) -> None:
    count = 60_000
    got = law(index_sampling.indices(random_words(count, index_sampling.num_words(n)), n))
    assert len(got) == outcomes
    if isinstance(index_sampling, PoSE):
        expected = {key: count / 45 * (3 if key == tuple(range(n)) else 1) for key in got}
    else:
        expected = dict.fromkeys(got, count / outcomes)
    statistic = sum((got[key] - expected[key]) ** 2 / expected[key] for key in got)
    assert chi2.sf(statistic, outcomes - 1) > FALSE_ALARM


def test_rows_are_their_own() -> None:
    """A sequence's indices depend on its own words only."""
    for index_sampling in (RandomOffset(size=50), PoSE(target=50), Randomized(target=50)):
        words = random_words(20, index_sampling.num_words(10))
        whole = index_sampling.indices(words, 10)
        np.testing.assert_array_equal(index_sampling.indices(words[7:9], 10), whole[7:9])
        assert (np.diff(whole, axis=1) > 0).all()
        assert whole.min() >= 0
        assert whole.max() <= index_sampling.limit() == 49


@pytest.mark.parametrize("index_sampling", [RandomOffset(size=5), PoSE(target=5), Randomized(target=5)], ids=str)
def test_too_small_is_refused(index_sampling: IndexSampling) -> None:
    index_sampling.num_words(5)
    with pytest.raises(SettingError, match=r"(size|target): expected at least 6, the size of the sequence, got 5"):
        index_sampling.num_words(6)
    with pytest.raises(SettingError, match=r"words: expected \d words a sequence, got 9"):
        index_sampling.indices(random_words(2, 9), 5)
    with pytest.raises(SettingError, match=r"(size|target): expected at least 1, got 0"):
        type(index_sampling)(**{"size" if isinstance(index_sampling, RandomOffset) else "target": 0})
