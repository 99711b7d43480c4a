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

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparsity_lab.analysis.diagnosis.gains import (
    BLOCKS,
    MOST_PAIRS,
    Repeats,
    common_classes,
    first_of_range,
    gain_beside,
    known_from_counts,
    lags_to_look_at,
    match_length,
    pair_gain,
    range_of,
    repeats,
    share_of_class,
    spread,
)
from sparsity_lab.analysis.diagnosis.token_data import TokenData
from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.analysis.lines import draw_curve, name_lines
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.statistics import Interval
from sparsity_lab.analysis.style import look as style_of
from sparsity_lab.analysis.style import new_axes, styled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_RESAMPLES = 400
_TRIED = 3


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
            found = _bootstrap(gains, counts)
            rows.append(_row("pair", int(lag), int(lag), found, None))
        own = range_of(self._repeats.distance)
        for i in np.unique(own).tolist():
            gains, right = self._repeats.by_block(own == i)
            share = float(right.sum() / self._counts.sum())
            found = _bootstrap(gains, self._counts)
            rows.append(_row("repeat", first_of_range(i), first_of_range(i + 1) - 1, found, share))
        return pl.DataFrame(rows, schema=_SCHEMA)

    def beyond(self, horizon: int) -> Beyond:
        """What lies farther than so many tokens."""
        far = self._repeats.distance > horizon
        gains, right = self._repeats.by_block(far)
        distances = self._repeats.distance[far & self._repeats.right]
        best, lag = Interval(None, None, None, 0), None
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


_SCHEMA = pl.Schema(
    {
        "source": pl.String(),
        "distance": pl.Int64(),
        "up_to": pl.Int64(),
        "gain": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "share": pl.Float64(),
    }
)


def _row(source: str, low: int, high: int, gain: Interval, share: float | None) -> dict[str, Any]:
    found = {"gain": gain.estimate, "low": gain.low, "high": gain.high}
    return {"source": source, "distance": low, "up_to": high, **found, "share": share}


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
        return Interval(None, None, None, 0)
    sums, counts, n = sums[own], counts[own], int(own.sum())
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), n)
