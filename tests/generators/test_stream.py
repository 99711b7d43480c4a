"""Words are a pure function of (seed, name, purpose, length, index)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsity_lab.generators.stream import Stream, bounded, open_unit
from sparsity_lab.settings import SettingError


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 9))
def test_any_slice_equals_the_whole(start: int, count: int, per_sequence: int) -> None:
    stream = Stream(seed=7, name="train")
    whole = stream.words("background", 16, 0, start + count, per_sequence)
    assert np.array_equal(stream.words("background", 16, start, count, per_sequence), whole[start:])


def test_integers_of_numpy_name_the_same_words() -> None:
    words = Stream(seed=7).words("background", 16, 5, 4, 3)
    for kind in (np.uint8, np.int32, np.int64):
        assert np.array_equal(Stream(seed=7).words("background", kind(16), kind(5), kind(4), kind(3)), words)
    big = Stream(seed=7).words("background", 16, 2**62, 4, 3)
    assert np.array_equal(Stream(seed=7).words("background", 16, np.int64(2**62), 4, np.int64(3)), big)


@pytest.mark.parametrize("wrong", [16.0, None, "16", -1, True])
@pytest.mark.parametrize("name", ["length", "start", "count", "per_sequence"])
def test_what_is_no_whole_number_is_refused(name: str, wrong: object) -> None:
    arguments: dict[str, Any] = {"length": 16, "start": 5, "count": 4, "per_sequence": 3, name: wrong}
    with pytest.raises(SettingError, match=f"{name}: expected a whole number of at least 0"):
        Stream(seed=7).words("background", **arguments)


@pytest.mark.committed
def test_pinned_words_never_change() -> None:
    """Data of published runs must stay what they were."""
    words = Stream(seed=0, name="train").words("background", 24, 5, 2, 3)
    assert [[hex(int(word)) for word in row] for row in words] == PINNED


PINNED = [
    ["0xfe509ca643589fd1", "0x5aae552c0d034ad6", "0xc64416e456f7807"],
    ["0xa73394ef2bc79f0e", "0x53c0dd380e19fe84", "0xef64cd9d49f6f23d"],
]


@pytest.mark.parametrize(
    "other",
    [
        (Stream(seed=1, name="train"), "background", 24),
        (Stream(seed=0, name="evaluation"), "background", 24),
        (Stream(seed=0, name="train"), "positions", 24),
        (Stream(seed=0, name="train"), "background", 25),
    ],
    ids=["seed", "name", "purpose", "length"],
)
def test_every_part_of_the_key_counts(other: tuple[Stream, str, int]) -> None:
    stream, purpose, length = other
    mine = Stream(seed=0, name="train").words("background", 24, 0, 1000, 4)
    theirs = stream.words(purpose, length, 0, 1000, 4)
    assert not np.isin(mine, theirs).any()


def test_names_cannot_run_into_each_other() -> None:
    first = Stream(seed=1, name="1train").words("x", 1, 0, 1, 4)
    second = Stream(seed=11, name="train").words("x", 1, 0, 1, 4)
    assert not np.array_equal(first, second)


def test_bounded_is_floor_of_word_times_bound() -> None:
    words = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    assert bounded(words, 3).tolist() == [int(w) * 3 // 2**32 for w in words.tolist()]
    assert bounded(words.astype(np.uint64) << np.uint64(32), 3).tolist() == bounded(words, 3).tolist()


def test_open_unit_never_touches_its_ends() -> None:
    ends = open_unit(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert ends.tolist() == [2.0**-54, 1 - 2.0**-54]


def test_words_are_uniform_and_neighbors_independent() -> None:
    """Chi-square at a false-alarm rate of 1e-6 each, fixed seed."""
    words = Stream(seed=3, name="train").words("background", 10, 0, 100_000, 2)
    counts = np.bincount(bounded(words[:, 0], 64), minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-6
    pairs = np.bincount(bounded(words[:-1, 0], 16) * 16 + bounded(words[1:, 0], 16), minlength=256)
    assert stats.chisquare(pairs).pvalue > 1e-6
