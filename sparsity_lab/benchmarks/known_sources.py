"""Sources of tokens whose answers are known before anything is asked, drawn by seed: what ``diagnose`` is tested on.

Each source writes a realistic file, and states the right diagnosis at the default settings. Training windows have 32
tokens, near means within 16, and anything farther than 32 is beyond the horizon.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Draws = np.random.Generator
_PAD = 0
_CYRILLIC, _CHINESE = 0x430, 0x4E00
_COUNT, _SIZE = 40, 400
_LONG = 2000
"""Tokens of a sequence with something far in it."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a right diagnosis says.

    Attributes:
        verdicts: each of these is right.
        learned: whether some scheme surely learned something inside the window.
        k: least and largest right estimate of the tokens that a target needs; None where nothing is to be learned.
        near: whether they are near.
        beyond: least and largest right distance of what lies beyond the horizon; None: nothing lies there.
    """

    verdicts: tuple[str, ...]
    learned: bool
    k: tuple[int, int] | None = None
    near: bool | None = None
    beyond: tuple[int, int] | None = None


@dataclass(frozen=True)
class Source:
    """One source.

    Attributes:
        name: of it.
        words: what it is, for people.
        make: from random draws and a folder to a file in it and what is known of that.
    """

    name: str
    words: str
    make: Callable[[Draws, Path], tuple[Path, Known]]

    def write(self, folder: Path, seed: int) -> tuple[Path, Known]:
        """The file of this seed, and what is known of it."""
        return self.make(np.random.default_rng([seed, zlib.crc32(self.name.encode())]), folder)


SOURCES: dict[str, Source] = {}
_Made = tuple[Path, Known]

_ANY = ("expected", "not expected", "not decided")
"""For a lag: the data need few tokens, and these are near. But a small model finds them by counting distances.
Whether it still does so at four times the length is not a property of the data."""
_NOTHING = Known(verdicts=("not decided",), learned=False)


def _near(least: int, most: int, *verdicts: str, beyond: tuple[int, int] | None = None) -> Known:
    return Known(verdicts=verdicts or ("expected",), learned=True, k=(least, most), near=True, beyond=beyond)


def _far_away(least: int, most: int) -> Known:
    return Known(verdicts=("not decided",), learned=False, beyond=(least, most))


def _source(make: Callable[[Draws, Path], _Made]) -> Callable[[Draws, Path], _Made]:
    """Enter a source under its function's name, with its docstring."""
    name = make.__name__.strip("_")
    SOURCES[name] = Source(name, " ".join((make.__doc__ or "").split()), make)
    return make


# --- files


def _array(folder: Path, sequences: Sequence[Ints]) -> Path:
    np.save(folder / "tokens.npy", np.stack(sequences))
    return folder / "tokens.npy"


def _text(folder: Path, tokens: Ints, first: int) -> Path:
    """A text of the characters from ``first`` on."""
    (folder / "text.txt").write_text("".join(chr(first + token) for token in tokens.tolist()), encoding="utf-8")
    return folder / "text.txt"


def _padded(draws: Draws, sequences: Sequence[Ints]) -> list[Ints]:
    """Cut to random sizes, tokens from 1 on, and filled up at the end with 0."""
    sizes = draws.integers(_SIZE * 2 // 5, _SIZE, len(sequences))
    return [np.where(np.arange(_SIZE) < size, own + 1, _PAD) for own, size in zip(sequences, sizes, strict=True)]


# --- laws


def _independent(draws: Draws, count: int, size: int, vocab_size: int) -> list[Ints]:
    return list(draws.integers(0, vocab_size, (count, size)))


def _chains(draws: Draws, count: int, size: int, order: int = 1) -> list[Ints]:
    """Sequences of one Markov chain, whose transitions are Dirichlet draws of parameter 0.3."""
    V = int(draws.integers(4, 9)) if order == 1 else 4
    steps = draws.dirichlet(np.full(V, 0.3), V**order).cumsum(1)
    words = draws.random((count, size))
    tokens = draws.integers(0, V, (count, size))
    for t in range(order, size):
        state = sum(tokens[:, t - lag] * V ** (lag - 1) for lag in range(1, order + 1))
        tokens[:, t] = np.minimum((words[:, t, None] > steps[state]).sum(1), V - 1)
    return list(tokens)


def _sums(draws: Draws, count: int, size: int, lags: Sequence[int], vocab_size: int) -> list[Ints]:
    """Each token is the sum of those at the lags, and one time in ten any token."""
    tokens = draws.integers(0, vocab_size, (count, size))
    noisy = draws.random((count, size)) < 0.1
    for t in range(max(lags), size):
        sums = sum(tokens[:, t - lag] for lag in lags) % vocab_size
        tokens[:, t] = np.where(noisy[:, t], tokens[:, t], sums)
    return list(tokens)


def _with_copies(draws: Draws, sequence: Ints, least: int, most: int) -> Ints:
    """Stretches of 20 to 60 tokens, half of all, are those that stand from ``least`` to ``most`` tokens before."""
    copied = sequence.copy()
    t = most
    while t < len(copied):
        size, back = int(draws.integers(20, 61)), int(draws.integers(least, most + 1))
        if draws.random() < 0.5:
            stretch = copied[t - back : t - back + size]
            copied[t : t + size] = stretch[: len(copied) - t]
        t += size
    return copied


# --- nothing to learn


@_source
def _iid_uniform(draws: Draws, folder: Path) -> _Made:
    """Independent tokens, all as common."""
    return _array(folder, _independent(draws, _COUNT, _SIZE, int(draws.integers(2, 20)))), _NOTHING


@_source
def _iid_skewed(draws: Draws, folder: Path) -> _Made:
    """Independent tokens, the r-th commonest in proportion to 1 / r."""
    V = int(draws.integers(20, 61))
    law = 1 / np.arange(1, V + 1)
    return _array(folder, list(draws.choice(V, (_COUNT, _SIZE), p=law / law.sum()))), _NOTHING


@_source
def _iid_one_text(draws: Draws, folder: Path) -> _Made:
    """One text of independent letters."""
    law = draws.dirichlet(np.ones(26))
    return _text(folder, draws.choice(26, 20_000, p=law), ord("a")), _NOTHING


@_source
def _iid_padded(draws: Draws, folder: Path) -> _Made:
    """Independent tokens in sequences of many sizes, filled up with 0."""
    return _array(folder, _padded(draws, _independent(draws, _COUNT, _SIZE, int(draws.integers(4, 20))))), _NOTHING


@_source
def _iid_ignored(draws: Draws, folder: Path) -> _Made:
    """Independent tokens, with -100 before them, as loss functions want what they shall not see."""
    rows = np.array(_independent(draws, _COUNT, _SIZE, int(draws.integers(4, 20))))
    rows[np.arange(_SIZE) < draws.integers(0, _SIZE // 2, _COUNT)[:, None]] = -100
    (folder / "tokens.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows.tolist()))
    return folder / "tokens.jsonl", _NOTHING


@_source
def _iid_characters(draws: Draws, folder: Path) -> _Made:
    """A text of independent Chinese characters, three bytes each: bytes tell of each other, characters do not."""
    return _text(folder, draws.integers(0, 12, 20_000), _CHINESE), _NOTHING


# --- near


@_source
def _chain(draws: Draws, folder: Path) -> _Made:
    """A Markov chain."""
    return _array(folder, _chains(draws, _COUNT, _SIZE)), _near(1, 1)


@_source
def _chain_padded(draws: Draws, folder: Path) -> _Made:
    """A Markov chain in sequences of many sizes, filled up with 0."""
    return _array(folder, _padded(draws, _chains(draws, _COUNT, _SIZE))), _near(1, 1)


@_source
def _chain_characters(draws: Draws, folder: Path) -> _Made:
    """A text of a Markov chain of Cyrillic letters, two bytes each."""
    return _text(folder, _chains(draws, 1, 20_000)[0], _CYRILLIC), _near(1, 1)


@_source
def _chain_of_two(draws: Draws, folder: Path) -> _Made:
    """A Markov chain of order two."""
    return _array(folder, _chains(draws, _COUNT, _SIZE, order=2)), _near(1, 2)


@_source
def _words(draws: Draws, folder: Path) -> _Made:
    """A text of 24 words of three to six letters, independent of each other."""
    words = ["".join(map(chr, ord("a") + draws.integers(0, 26, draws.integers(3, 7)))) for _ in range(24)]
    (folder / "text.txt").write_text(" ".join(draws.choice(words, 4000).tolist()))
    return folder / "text.txt", _near(1, 4)


@_source
def _one_lag(draws: Draws, folder: Path) -> _Made:
    """Each token repeats the one at a lag of 2 to 8, nine times in ten."""
    return _array(folder, _sums(draws, _COUNT, _SIZE, [int(draws.integers(2, 9))], 6)), _near(1, 1, *_ANY)


@_source
def _two_lags(draws: Draws, folder: Path) -> _Made:
    """Each token is the sum, modulo 3, of those at two lags of at most 4, nine times in ten."""
    lags = sorted((1 + draws.choice(4, 2, replace=False)).tolist())
    return _array(folder, _sums(draws, _COUNT, _SIZE, lags, 3)), _near(2, 2, *_ANY)


@_source
def _mixed(draws: Draws, folder: Path) -> _Made:
    """Half of 120 sequences are of a Markov chain, the others of independent tokens: so many, since intervals are
    over sequences, which differ. Asked like a model, the exact predictor needs the token before and one or two more
    near ones, which tell the kind of the sequence."""
    chains = _chains(draws, 60, _SIZE)
    others = _independent(draws, 60, _SIZE, 1 + max(int(own.max()) for own in chains))
    order = draws.permutation(120)
    return _array(folder, [[*chains, *others][i] for i in order]), _near(1, 3)


# --- far


@_source
def _lag_inside(draws: Draws, folder: Path) -> _Made:
    """Each token repeats the one at a lag of 18 to 26, nine times in ten: inside the window, and not near."""
    known = Known(verdicts=("not decided", "not expected"), learned=True, k=(1, 1), near=False)
    return _array(folder, _sums(draws, _COUNT, _SIZE, [int(draws.integers(18, 27))], 6)), known


@_source
def _lag_beyond(draws: Draws, folder: Path) -> _Made:
    """Each token repeats the one at a lag of 64 to 120, nine times in ten."""
    lag = int(draws.integers(64, 121))
    return _array(folder, _sums(draws, _COUNT, _SIZE, [lag], 6)), _far_away(lag, lag)


@_source
def _either_lag_beyond(draws: Draws, folder: Path) -> _Made:
    """Each token repeats the one at a lag of 50 to 90 or one of 200 to 300, as often, eight times in ten."""
    short, far = int(draws.integers(50, 91)), int(draws.integers(200, 301))
    tokens = draws.integers(0, 12, (20, _LONG))
    words = draws.random(tokens.shape)
    for t in range(far, _LONG):
        lag = np.where(words[:, t] < 0.4, short, far)
        tokens[:, t] = np.where(words[:, t] < 0.8, tokens[np.arange(20), t - lag], tokens[:, t])
    return _array(folder, list(tokens)), _far_away(short, far)


@_source
def _lag_of_320(draws: Draws, folder: Path) -> _Made:
    """Each token repeats the one 320 before, ten times the trained length, nine times in ten."""
    return _array(folder, _sums(draws, 20, _LONG, [320], 10)), _far_away(320, 320)


@_source
def _copies(draws: Draws, folder: Path) -> _Made:
    """Independent letters in which half of all are in stretches copied from 280 to 360 before, as in a log."""
    tokens = _with_copies(draws, _independent(draws, 1, 20_000, 20)[0], 280, 360)
    return _text(folder, tokens, ord("a")), _far_away(240, 400)


@_source
def _chain_with_copies(draws: Draws, folder: Path) -> _Made:
    """A Markov chain in which half of all tokens are in stretches copied from 280 to 360 before."""
    rows = [_with_copies(draws, own, 280, 360) for own in _chains(draws, 20, _LONG)]
    return _array(folder, rows), _near(1, 1, beyond=(240, 400))
