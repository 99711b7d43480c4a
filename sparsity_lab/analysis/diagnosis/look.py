"""A look at token data without a model: what pairs of tokens, and what repeats, could gain at each distance.

Everything is estimated on one half of the data and measured on the other, blocks in turn, so that what is no more
than chance gains nothing on average. Intervals are bootstraps over the blocks.

- *Pairs*: the gain of log p(x_t | x_{t-d}) over log p(x_t), a lower bound of the mutual information at lag d. The
  commonest tokens count one by one, all others as one. Lags are 1 .. 32, a grid up to three quarters of the longest
  sequence, and those that stand out in the cross-correlation of random numbers given to the tokens.
- *Repeats*: where the last m, 2 m or 4 m tokens stood before, at any distance, the token after them is guessed to
  come again. Let h be the share of right guesses at such a distance. The gain is that of (1 - h) p(x_t) + h [guess
  right] over p(x_t), where p mixes counts of up to four preceding tokens. The nearest such place counts.

It sees no rule that needs several far tokens at once, such as a parity.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import fft

from sparsity_lab.analysis.diagnosis.token_data import Ints, TokenData
from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.analysis.lines import draw_curve, name_lines
from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.analysis.statistics import Floats, Interval
from sparsity_lab.analysis.style import look as style_of
from sparsity_lab.analysis.style import new_axes, styled

_RESAMPLES = 400
_TRIED = 3
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


@dataclass(frozen=True)
class Beyond:
    """What lies farther than a horizon.

    Attributes:
        horizon: in tokens.
        repeats: nats a token that repeats farther away could gain.
        share: of all tokens, guessed right from there.
        distance: the median of those; None if there are none.
        pair: nats per token that one far token could gain over the best near one and counts of the last ones, at the
            best lag.
        lag: that lag; None if no sequence is so long.
        loss: nats a token without anything far.
    """

    horizon: int
    repeats: Interval
    share: float
    distance: int | None
    pair: Interval
    lag: int | None
    loss: float

    @property
    def gain(self) -> Interval:
        """The larger of the two."""
        return max(self.repeats, self.pair, key=lambda one: one.low or 0.0)

    @property
    def matters(self) -> bool:
        """Whether something that is worth a twentieth of the loss surely lies there."""
        return (self.gain.low or 0.0) > self._least

    @property
    def _least(self) -> float:
        return 0.05 * self.loss

    def __str__(self) -> str:
        parts = []
        if (self.repeats.low or 0.0) > self._least:
            where = f"{self.share:.0%} of tokens at a median distance of {self.distance:,}"
            parts.append(f"repeats worth {_words(self.repeats)} nats a token, {where}")
        if (self.pair.low or 0.0) > self._least:
            parts.append(f"a token at lag {self.lag:,} worth {_words(self.pair)} nats")
        if not parts:
            return f"nothing found beyond {self.horizon} tokens that is worth a twentieth of the loss"
        return f"found beyond {self.horizon} tokens: {' and '.join(parts)}, of a loss of {self.loss:.2f} without it"


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


_WORDS = {"pair": "one token at this distance", "repeat": "repeats at this distance"}


@dataclass(frozen=True, repr=False, eq=False)
class DataLook(Measurement):
    """What ``look_at`` found.

    Attributes:
        tokens, longest: number of tokens, and of those of the longest sequence.
        loss: nats a token of counts of up to four tokens before.
        match: m, how many tokens make a repeat.
    """

    tokens: int
    longest: int
    loss: float
    match: int
    _lags: Ints
    _pair_gains: Floats  # (lags, blocks), nats
    _pair_counts: Floats  # (lags, blocks)
    _repeats: Repeats
    _counts: Floats  # (blocks,) tokens
    _data: tuple[Ints, Floats, Floats, Ints, Ints]  # classes, shares of them, probabilities from counts, age, block

    def frame(self) -> pl.DataFrame:
        """One row for each lag of pairs and each range of distances of repeats.

        Columns: ``source`` (``pair``, ``repeat``), ``distance``, ``up_to``, ``gain`` in nats a token with its 95 %
        interval ``low`` and ``high``, ``share`` of tokens that a repeat guesses right.
        """
        rows: list[dict[str, Any]] = []
        for lag, gains, counts in zip(self._lags, self._pair_gains, self._pair_counts, strict=True):
            gain = _bootstrap(gains, counts).columns("gain")
            rows.append({"source": "pair", "distance": int(lag), "up_to": int(lag), **gain, "share": None})
        own = range_of(self._repeats.distance)
        for i in np.unique(own).tolist():
            gains, right = self._repeats.by_block(own == i)
            row = {"source": "repeat", "distance": first_of_range(i), "up_to": first_of_range(i + 1) - 1}
            row |= _bootstrap(gains, self._counts).columns("gain")
            rows.append(row | {"share": float(right.sum() / self._counts.sum())})
        return rows_frame(rows)

    def beyond(self, horizon: int) -> Beyond:
        """What lies farther than so many tokens."""
        far = self._repeats.distance > horizon
        gains, right = self._repeats.by_block(far)
        distances = self._repeats.distance[far & self._repeats.right]
        best, lag = Interval(), None
        gain = self._pair_gains.sum(1) / np.maximum(self._pair_counts.sum(1), 1)
        near, *distant = (np.flatnonzero(own) for own in (self._lags <= horizon, self._lags > horizon))
        for at in distant[0][np.argsort(-gain[distant[0]])[:_TRIED]]:
            beside = int(self._lags[near[gain[near].argmax()]])
            found = _bootstrap(*gain_beside(*self._data, beside, int(self._lags[at])))
            if best.low is None or (found.low or 0.0) > best.low:
                best, lag = found, int(self._lags[at])
        return Beyond(
            horizon=horizon,
            repeats=_bootstrap(gains, self._counts),
            share=float(right.sum() / self._counts.sum()),
            distance=int(np.quantile(distances, 0.5, method="lower")) if len(distances) else None,
            pair=best,
            lag=lag,
            loss=self.loss,
        )

    @property
    def longest_lag(self) -> int:
        """The longest lag at which pairs were looked at."""
        return int(self._lags[-1])

    @property
    def finding(self) -> str:
        """At which distance a token could gain most."""
        most = self.frame().drop_nulls("gain").sort("gain", descending=True).head(1).rows(named=True)
        if not most:
            return "Nothing could gain from other tokens"
        (one,) = most
        words = _WORDS[one["source"]].replace("this distance", f"distance {one['distance']}")
        return f"{words[:1].upper()}{words[1:]} could gain most: {one['gain']:.2f} nats a token"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw gains against distance; returns the axes."""
        frame = self.frame()
        with styled():
            ax = new_axes(5.6, 3.4) if ax is None else ax
            for index, (source, words) in enumerate(_WORDS.items()):
                part = frame.filter(source=source).sort("distance")
                band: dict[str, Any] = {"low": part["low"], "high": part["high"]}
                draw_curve(ax, part["distance"], part["gain"], style_of(index), words, markersize=3, **band)
            farthest = max(frame["distance"].to_list(), default=1)
            length_axis(ax, [2**i for i in range(farthest.bit_length())], None, "distance (tokens, log scale)")
            ax.set_ylabel("could gain (nats a token)")
            name_lines(ax, 14)
        return ax


def _words(value: Interval) -> str:
    return f"{value.estimate:.2f} ({value.low:.2f} to {value.high:.2f})"


def look_at(data: TokenData, seed: int = 0) -> DataLook:
    """Look at token data without a model.

    >>> found = look_at(TokenData.of([np.arange(400) % 7 for _ in range(6)]))
    >>> type(found).__name__
    'DataLook'

    Args:
        seed: of the random numbers that find lags.
    """
    tokens = np.concatenate(data.sequences)
    sizes = np.array([len(own) for own in data.sequences], dtype=np.int64)
    age = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    block = np.arange(len(tokens)) * BLOCKS // len(tokens)
    counts = np.bincount(block, minlength=BLOCKS).astype(np.float64)
    longest = int(sizes.max())
    classes = common_classes(tokens, data.vocab_size)
    lags = lags_to_look_at(classes, longest, seed)
    sampled = np.flatnonzero(spread(len(tokens), MOST_PAIRS))
    pairs = [pair_gain(classes, age, block, sampled, int(lag)) for lag in lags]
    known = known_from_counts(tokens, age, block)
    match = match_length(tokens, data.vocab_size)
    return DataLook(
        tokens=len(tokens),
        longest=longest,
        loss=float(-np.log(known).mean()),
        match=match,
        _lags=lags,
        _pair_gains=np.array([gain for gain, _ in pairs]),
        _pair_counts=np.array([count for _, count in pairs]),
        _repeats=repeats(tokens, age, block, known, match),
        _counts=counts,
        _data=(classes, share_of_class(tokens, classes), known, age, block),
    )


def _bootstrap(sums: Floats, counts: Floats) -> Interval:
    """Σ sums / Σ counts with the 95 % percentile interval over blocks that hold any."""
    own = counts > 0
    if not own.any():
        return Interval()
    sums, counts, n = sums[own], counts[own], int(own.sum())
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), n)


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
