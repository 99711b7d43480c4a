"""Gains of pairs of tokens and of repeats, by block: estimated in half of the blocks and measured in the others."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCKS = 40
_MOST_CLASSES = 64
MOST_PAIRS = 2_000_000
_NEAR_LAGS, _PEAKS, _PROJECTIONS = 32, 24, 3
_MOST_BESIDE = 400_000
_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
_PER_OCTAVE = 4
_LEVELS = 3
"""Of repeats: m, 2 m and 4 m tokens."""
_ORDERS = (1, 2, 3, 4)
_TABLE = 2**22
_SEEN = 64
"""How often tokens before must be seen on average, where fewer of them told nothing."""
_WEIGHT = 4.0
"""Of what is known with fewer tokens, in tokens."""


# --- pairs


def common_classes(tokens: Ints, vocab_size: int) -> Ints:
    """The commonest tokens by rank, and one class of all others: so few that their pairs can be counted."""
    most = int(min(_MOST_CLASSES, max(2, math.isqrt(len(tokens) // 20))))
    order = np.argsort(-np.bincount(tokens, minlength=vocab_size), kind="stable")
    rank = np.empty(vocab_size, dtype=np.int64)
    rank[order] = np.arange(vocab_size)
    classes: Ints = np.minimum(rank, most - 1)[tokens]
    return classes


def share_of_class(tokens: Ints, classes: Ints) -> Floats:
    """Of each token, how common it is among those of its class."""
    of_token, of_class = np.bincount(tokens), np.bincount(classes)
    shares: Floats = of_token[tokens] / of_class[classes]
    return shares


def spread(total: int, most: int) -> NDArray[np.bool_]:
    """Stretches of all positions, evenly spread, so many in all."""
    chosen = np.arange(total) % max(1, total // BLOCKS) < max(1, most // BLOCKS)
    return chosen if total > most else np.ones(total, dtype=bool)


def lags_to_look_at(classes: Ints, longest: int, seed: int) -> Ints:
    """The lags to look at: near ones, a grid, and those that stand out. They go up to three quarters of the longest
    sequence, since few tokens are farther apart."""
    most = max(1, longest * 3 // 4)
    grid = np.unique(np.geomspace(1, most, 2 * max(1, int(math.log2(most)) + 1)).astype(np.int64))
    return np.unique(np.concatenate([np.arange(1, min(_NEAR_LAGS, most) + 1), grid, _peaks(classes, most, seed)]))


def _peaks(classes: Ints, most: int, seed: int) -> Ints:
    """Lags at which random numbers given to the tokens correlate more than at their neighbors."""
    draws, n = np.random.default_rng(seed), len(classes)
    size = fft.next_fast_len(n + most, real=True)
    level = np.zeros(most + 1)
    for _ in range(_PROJECTIONS):
        before, after = (draws.standard_normal(int(classes.max()) + 1)[classes] for _ in range(2))
        spectra = [fft.rfft((own - own.mean()).astype(np.float32), size) for own in (before, after)]
        product = fft.irfft(spectra[0].conj() * spectra[1], size)[: most + 1]
        level += (product / np.sqrt(n - np.arange(most + 1)) / (before.std() * after.std() + 1e-12)) ** 2
    around = np.maximum(np.roll(level, 1), np.roll(level, -1))
    level[: min(_NEAR_LAGS, most) + 1] = 0
    level[level <= around] = 0
    found = np.argsort(-level)[:_PEAKS]
    return found[level[found] > 2 * math.log(n)].astype(np.int64)


def pair_gain(classes: Ints, age: Ints, block: Ints, sampled: Ints, lag: int) -> tuple[Floats, Floats]:
    """Of one lag, by block: the gain in nats, and how many tokens it is of."""
    K = int(classes.max()) + 1
    at = sampled[age[sampled] >= lag]
    code = (block[at] * K + classes[at - lag]) * K + classes[at]
    table = np.bincount(code, minlength=BLOCKS * K * K).reshape(BLOCKS, K, K).astype(np.float64)
    gains = np.empty(BLOCKS)
    for half in (0, 1):
        other = table[1 - half :: 2].sum(0) + 1e-9
        alone = (other.sum(0) + 1 / K) / (other.sum() + 1)
        given = (other + K * alone) / (other.sum(1, keepdims=True) + K)
        gains[half::2] = (table[half::2] * (np.log(given) - np.log(alone))).sum((1, 2))
    return gains, table.sum((1, 2))


def gain_beside(
    classes: Ints, inside: Floats, known: Floats, age: Ints, block: Ints, near: int, far: int
) -> tuple[Floats, Floats]:
    """The gain of the token at a far lag over counts of the last tokens and the one at a near lag, by block, and of
    how many tokens.

    The near token is mixed with the counts, p = (1 - w) p(y | counts) + w p(y | near). The far token is mixed with
    the result in the same way. Each w is the best one in the other half. In a chain the gain is nothing: there the
    far token tells no more than the near one.

    Args:
        inside: of each token, its share of its class.
        known: its probability from counts.
    """
    K = int(classes.max()) + 1
    at = np.flatnonzero(age >= far)
    at = at[spread(len(at), _MOST_BESIDE)]
    half = block[at] % 2
    mixed: Floats = known[at].astype(np.float64)
    for lag in (near, far):
        own = np.empty(len(at))
        for mine in (0, 1):
            here, other = half == mine, half != mine
            table = np.bincount(classes[at - lag][other] * K + classes[at][other], minlength=K * K).reshape(K, K)
            alone = (table.sum(0) + 1 / K) / (table.sum() + 1)
            given = (table + K * alone) / (table.sum(1, keepdims=True) + K)
            own[here] = given[classes[at - lag][here], classes[at][here]] * inside[at][here]
        before, mixed = mixed, _mixed(mixed, own, half)
    gains = np.log(mixed) - np.log(before)
    return _by_block(block[at], gains), _by_block(block[at], np.ones(len(at)))


def _mixed(first: Floats, second: Floats, half: Ints) -> Floats:
    """(1 - w) first + w second, with the w of the larger mean logarithm in the other half."""
    found = first.copy()
    for mine in (0, 1):
        here, other = half == mine, half != mine
        if here.any() and other.any():
            scores = [np.log((1 - w) * first[other] + w * second[other]).mean() for w in _WEIGHTS]
            w = _WEIGHTS[int(np.argmax(scores))]
            found[here] = (1 - w) * first[here] + w * second[here]
    return found


def _by_block(block: Ints, values: Floats) -> Floats:
    return np.bincount(block, weights=values, minlength=BLOCKS).astype(np.float64)


# --- repeats


def _hashes(tokens: Ints, orders: tuple[int, ...]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """For each order n, ascending, a number for the n tokens that end at each position."""
    found, done = np.zeros(len(tokens), dtype=np.uint64), 0
    for order in orders:
        for back in range(done, min(order, len(tokens))):
            shifted = np.zeros(len(tokens), dtype=np.uint64)
            shifted[back:] = tokens[: len(tokens) - back].astype(np.uint64) + np.uint64(1)
            shifted *= np.uint64((0x9E3779B97F4A7C15 * (2 * back + 1)) % 2**64)
            shifted ^= shifted >> np.uint64(29)
            found += shifted * np.uint64(0xBF58476D1CE4E5B9)
        done = order
        yield order, found ^ (found >> np.uint64(31))


def known_from_counts(tokens: Ints, age: Ints, block: Ints) -> Floats:
    """(n,) the probability of each token from counts of it after the tokens before it, in the other blocks."""
    half = block % 2
    V = int(tokens.max()) + 1
    known = np.empty(len(tokens))
    for own in (0, 1):
        other = np.bincount(tokens[half != own], minlength=V) + 0.5
        known[half == own] = (other / other.sum())[tokens[half == own]]
    places, skipped = min(_TABLE, 2 ** (8 * len(tokens)).bit_length()), False
    for order, before in _hashes(tokens, _ORDERS):
        context = np.zeros(len(tokens), dtype=np.int64)
        context[1:] = (before[:-1] % np.uint64(places)).astype(np.int64)
        # Many tokens together are rarely seen twice but in a repeat, which is not to be counted here.
        if skipped and np.count_nonzero(np.bincount(context)) > len(tokens) / _SEEN:
            break
        joint = (context * 0x2545F491 + tokens * 0x9E3779B1) % places
        there, better = age >= order, known.copy()
        for own in (0, 1):
            of_other, mine = there & (half != own), there & (half == own)
            seen = np.bincount(context[of_other], minlength=places)[context[mine]]
            together = np.bincount(joint[of_other], minlength=places)[joint[mine]]
            together = np.minimum(together, seen)  # of two that share a place in the table
            better[mine] = (together + _WEIGHT * known[mine]) / (seen + _WEIGHT)
        # A sum is known from all its tokens and from none alone, so that more of them can tell where fewer do not.
        if np.log(better).mean() > np.log(known).mean():
            known = better
        else:
            skipped = True
    return known


def match_length(tokens: Ints, vocab_size: int) -> int:
    """How many tokens make a repeat that is hardly one by chance."""
    shares = np.bincount(tokens, minlength=vocab_size) / len(tokens)
    return int(np.clip(math.ceil(math.log(len(tokens)) / -math.log(min(0.99, (shares**2).sum()))) + 1, 2, 16))


@dataclass(frozen=True, eq=False)
class Repeats:
    """The guesses that repeats give, one for each token that has one.

    Attributes:
        distance: (n,) how far back the token lies that is guessed to come again.
        block: (n,) of the guessed token.
        gain: (n,) nats.
        right: (n,) whether the guess is right.
    """

    distance: Ints
    block: Ints
    gain: Floats
    right: NDArray[np.bool_]

    def by_block(self, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Of chosen guesses, the gain and the number of right ones in each block."""
        block = self.block[chosen]
        return _by_block(block, self.gain[chosen]), _by_block(block, self.right[chosen].astype(np.float64))


def range_of(distance: Ints) -> Ints:
    """The range, a quarter of an octave, that a distance lies in; range i begins at 2^(i / 4)."""
    ranges: Ints = (_PER_OCTAVE * np.log2(distance) + 1e-9).astype(np.int64)
    return ranges


def first_of_range(index: int) -> int:
    """The shortest distance in a range; more than the longest one, if it has none."""
    return math.ceil(math.exp2(index / _PER_OCTAVE) - 1e-9)


def repeats(tokens: Ints, age: Ints, block: Ints, known: Floats, match: int) -> Repeats:
    """The guesses of repeats of ``match`` tokens, and of two and four times as many."""
    distance = np.zeros(len(tokens), dtype=np.int64)
    level = np.zeros(len(tokens), dtype=np.int64)
    for longer, (size, ends) in enumerate(_hashes(tokens, (match, 2 * match, 4 * match))):
        gap = _since(ends)
        # The guess is for the token after the repeat, inside one sequence.
        here = np.zeros(len(tokens), dtype=np.int64)
        here[1:] = gap[:-1]
        good = (here > 0) & (age >= here + size)
        distance[good], level[good] = here[good], longer
    at = np.flatnonzero(distance)
    right = tokens[at] == tokens[at - distance[at]]
    cell = range_of(distance[at]) * _LEVELS + level[at]
    gain = np.zeros(len(at))
    half = block[at] % 2
    for own in (0, 1):
        other, mine = half != own, half == own
        cells = int(cell.max(initial=0)) + 1
        hits = np.bincount(cell[other], weights=right[other], minlength=cells)
        h = np.clip((hits / (np.bincount(cell[other], minlength=cells) + 2))[cell[mine]], 0.0, 0.999)
        p = known[at[mine]]
        gain[mine] = np.log1p(-h + np.where(right[mine], h / p, 0.0))
    return Repeats(distance[at], block[at], gain, right)


def _since(keys: NDArray[np.uint64]) -> Ints:
    """(n,) how far back the same key stood last; 0 if it did not."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    gap = np.zeros(len(keys), dtype=np.int64)
    gap[order[1:][same]] = (order[1:] - order[:-1])[same]
    return gap
