"""The look without a model: what lies where, in sources whose answer is known."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from numpy.random import Generator

from sparsity_lab.analysis import TokenData, look_at
from sparsity_lab.generators import SparseMarkov, Stream

Sequences = list[np.ndarray]
N, V, FAR = 16_000, 8, 320


def iid(draws: Generator) -> Sequences:
    return list(draws.integers(0, V, (40, N // 40)))


def one_long(draws: Generator) -> Sequences:
    return [draws.integers(0, V, N)]


def chain(draws: Generator) -> Sequences:
    """Of order one: the token after the last one, or any."""
    tokens = draws.integers(0, V, N)
    for t in range(1, N):
        if draws.random() < 0.7:
            tokens[t] = (tokens[t - 1] + 1) % V
    return [tokens]


def near_lag(draws: Generator) -> Sequences:
    task = SparseMarkov(k=1, lag_seed=1, vocab_size=4)
    return list(task.sample(Stream(int(draws.integers(1 << 30)), "look"), 0, 40, 400).tokens.numpy())


def far_lag(draws: Generator) -> Sequences:
    tokens = draws.integers(0, V, N)
    for t in range(FAR, N):
        if draws.random() < 0.5:
            tokens[t] = (tokens[t - FAR] * 3 + 1) % V
    return [tokens]


def far_copies(draws: Generator) -> Sequences:
    """Stretches of 24 tokens, three in ten a copy of what stood ten trained lengths before."""
    tokens = list(draws.integers(0, V, FAR + 80))
    while len(tokens) < N:
        start = len(tokens) - FAR
        tokens += tokens[start : start + 24] if draws.random() < 0.3 else list(draws.integers(0, V, 24))
    return [np.array(tokens)]


def near_copies(draws: Generator) -> Sequences:
    """The same, 28 tokens before."""
    tokens = list(draws.integers(0, V, 60))
    while len(tokens) < N:
        start = len(tokens) - 28
        tokens += tokens[start : start + 24] if draws.random() < 0.3 else list(draws.integers(0, V, 24))
    return [np.array(tokens)]


def mixed(draws: Generator) -> Sequences:
    return [far_copies(draws)[0][: N // 2], draws.integers(0, V, N // 2)]


def two_far_lags(draws: Generator) -> Sequences:
    """A sum of two far tokens, which no pair tells: not seen, as the page says."""
    tokens = draws.integers(0, V, N)
    for t in range(FAR, N):
        tokens[t] = (tokens[t - FAR] + tokens[t - 100]) % V if draws.random() < 0.5 else tokens[t]
    return [tokens]


def near_sum(draws: Generator) -> Sequences:
    """A sum of two near tokens: neither tells alone, and what stood after the same four tokens is no news."""
    task = SparseMarkov(k=2, lag_seed=26, max_lag=4, vocab_size=3)
    return list(task.sample(Stream(int(draws.integers(1 << 30)), "look"), 0, 40, 400).tokens.numpy())


def non_ascii(draws: Generator) -> Sequences:
    """Words of Greek letters, each word any of fifty."""
    words = ["".join(map(chr, draws.integers(945, 970, draws.integers(3, 9)))) for _ in range(50)]
    text = " ".join(draws.choice(words, N // 6))
    return [np.array([ord(letter) for letter in text])]


ANSWERS: dict[Callable[[Generator], Sequences], str | None] = {
    iid: None,
    one_long: None,
    chain: None,
    near_lag: None,
    near_copies: None,
    two_far_lags: None,
    near_sum: None,
    non_ascii: None,
    far_lag: "pair",
    far_copies: "repeats",
    mixed: "repeats",
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("source", ANSWERS, ids=lambda source: source.__name__)
def test_what_lies_beyond_the_horizon_is_known(source: Callable[[Generator], Sequences], seed: int) -> None:
    """At four seeds each; the horizon is the default trained length."""
    beyond = look_at(TokenData.of(source(np.random.default_rng(seed)))).beyond(32)
    found = None if not beyond.matters else "repeats" if beyond.gain is beyond.repeats else "pair"
    assert found == ANSWERS[source]
    if found == "pair":
        assert beyond.lag == FAR
    if found == "repeats":
        assert beyond.distance is not None
        assert abs(np.log2(beyond.distance / FAR)) < 0.25
        assert f"at a median distance of {beyond.distance}" in str(beyond)


def test_gains_are_those_of_the_law() -> None:
    """Of the far lag: with a half x_t is a permutation of the token 320 before, else any: 1/2 + 1/16 = 9/16 for one
    token and 1/16 for each other one."""
    p = np.array([9 / 16, *[1 / 16] * 7])
    gain = np.log(8) + (p * np.log(p)).sum()
    found = look_at(TokenData.of(far_lag(np.random.default_rng(0))))
    row = found.frame().filter(source="pair", distance=FAR)
    assert row["low"].item() < gain < row["high"].item()
    assert found.loss == pytest.approx(np.log(8), abs=0.01)
    # What is no more than chance gains nothing.
    others = found.frame().filter(source="pair").filter(pl.col("distance") % FAR != 0)
    assert others["gain"].max() < 0.002  # type: ignore[operator]
    assert found.beyond(1000).gain.estimate < found.beyond(100).gain.estimate  # type: ignore[operator]


def test_repeats_gain_what_they_are_worth() -> None:
    """Three in ten stretches are copies; of their 24 tokens the first m - 1 are not yet known to be."""
    found = look_at(TokenData.of(far_copies(np.random.default_rng(1))))
    beyond = found.beyond(32)
    most = 0.3 * (24 - found.match) / 24
    assert most < beyond.share < most + 0.05
    assert 0.7 * most * np.log(8) < beyond.repeats.estimate < 1.1 * most * np.log(8)  # type: ignore[operator]
    assert beyond.repeats.low < beyond.repeats.estimate < beyond.repeats.high  # type: ignore[operator]


@pytest.mark.parametrize("distance", [31, 32, 33, 36, 38, 39, 64])
def test_beyond_is_exact_within_the_range_that_holds_the_horizon(distance: int) -> None:
    """Of copies at one distance, all are beyond a shorter horizon and none beyond any other."""
    draws = np.random.default_rng(distance)
    tokens = list(draws.integers(0, V, 120))
    while len(tokens) < N:
        start = len(tokens) - distance
        tokens += tokens[start : start + 24] if draws.random() < 0.3 else list(draws.integers(0, V, 24))
    look = look_at(TokenData.of([np.array(tokens)]))
    for horizon in (30, 31, 32, 33, 35, 38, 63):
        beyond = look.beyond(horizon)
        if distance > horizon:
            assert beyond.distance == distance
            assert beyond.share > 0.1
        else:
            assert beyond.share < 0.02
            assert not beyond.matters


def test_short_data_and_the_figure() -> None:
    for sequences in ([np.array([0, 1])], [np.arange(5) % 2] * 3, [np.array([0]), np.array([1])]):
        found = look_at(TokenData.of(sequences))
        assert not found.beyond(32).matters
        assert found.beyond(32).lag is None
        assert found.plot().get_xscale() == "log"
