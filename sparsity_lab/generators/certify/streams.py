"""Checks that a sequence depends on seed, stream name, length and index, and on nothing else.

Two sequences that differ in any of these are independent. So products of bits of their tokens have mean zero for
every task, and two sequences are equal only if the task has few different ones.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

from sparsity_lab.generators.batch import Batch
from sparsity_lab.generators.certify.draws import Choices, Columns, columns, draws_of
from sparsity_lab.generators.certify.findings import Finding, certain, largest, spread
from sparsity_lab.generators.certify.sequences import CERTIFICATE, DrawnSequences, fingerprints
from sparsity_lab.generators.stream import Ints, Stream
from sparsity_lab.generators.task import Task
from sparsity_lab.settings import SettingError

_NAMES = ("train", "analysis", "sample", "certificate")
_SEEDS = (1, 2, 1 << 8, 1 << 16, 1 << 31, 1 << 32, 1 << 63)  # added to the seed
_NEAR = 17  # seeds below this one further on are compared across names
_FAR = (10, 16, 20, 24, 31, 32, 40)  # powers of two: a stream with an index of so many bits repeats there
_FEW = 1000  # sequences: streams that share anything share it in all sequences
_MOST_COLUMNS = 128
_MOST_NOISE = 8
_OF_TWO = "correlation of two tokens"
_LAGS = 512
_SINGLES = 512  # sequences drawn far on in the stream, one at a time
_FARTHEST = 1 << 40
_MOST_EQUAL = 100
_SPARSE = 1e-3  # a task has few different sequences if two are equal with a larger probability


def slices(sample: DrawnSequences) -> Iterator[Finding]:
    """A sequence is the same in batches of any size: of all small ones at the first length, and of those that runs
    use at all lengths."""
    if not sample.whole:
        return
    N, T = sample.tokens.shape
    first = T <= 64 and sample.length == sample.task.certified_lengths[0]
    small = range(1, 258) if first else (*range(1, 34), 63, 64, 65, 127, 128, 129, 255, 256, 257)
    rng = sample.generator()
    sizes = [*small, 300, 384, 500, 512, 513, 1000, 1024, *rng.integers(1, min(N, 5000) + 1, 4).tolist()]
    wrong = []
    stream = Stream(seed=sample.seed, name=CERTIFICATE)
    for i, size in enumerate(size for size in sizes if size <= N):
        # At a multiple of the size, as in training runs, or anywhere.
        start = int(rng.integers(0, N // size)) * size if i % 2 else int(rng.integers(0, N - size + 1))
        batch = sample.task.sample(stream, start, size, sample.length)
        if not _same(batch, sample, start):
            wrong.append(size)
    told = f"batches of {len(small)} sizes from 1 to {max(small)} and more" + (
        f": not of {wrong[:5]}" if wrong else ""
    )
    yield certain("slices", told, not wrong, len(wrong))


def _same(batch: Batch, sample: DrawnSequences, start: int) -> bool:
    rows = slice(start, start + len(batch))
    if not (
        np.array_equal(batch.tokens.numpy(), sample.tokens[rows])
        and np.array_equal(batch.targets.numpy(), sample.every_target[rows])
        and batch.has_sources == sample.has_sources
        and (batch.position_ids is None) == (sample.position_ids is None)
    ):
        return False
    last = start + len(batch) - 1
    whole = slice(int(sample.first[start]), int(sample.first[last] + sample.counts[last]))
    sources, ids = batch.sources, sample.position_ids
    return (sources is None or np.array_equal(sources[batch.scored].numpy(), sample.sources[whole])) and (
        batch.position_ids is None or ids is None or np.array_equal(batch.position_ids.numpy(), ids[rows])
    )


@lru_cache(maxsize=1)
def _others(sample: DrawnSequences) -> tuple[list[Finding], list[NDArray[np.uint64]]]:
    """Findings on the correlation of the sample with other streams, and fingerprints of some of their sequences. The
    other streams differ in name, seed or length, or start at a far index of the same stream."""
    task, length, N = sample.task, sample.length, len(sample.tokens)
    own, few = Stream(seed=sample.seed, name=CERTIFICATE), min(_FEW, N)
    others = {f"the stream {name}": (replace(own, name=name), 0, few, length) for name in _NAMES}
    others[f"the stream {_NAMES[0]}"] = (replace(own, name=_NAMES[0]), 0, _many(sample), length)
    others |= {f"seed + {add}": (replace(own, seed=sample.seed + add), 0, few, length) for add in _SEEDS}
    pooled = list(others)
    others |= {"the seed's opposite": (replace(own, seed=-1 - sample.seed), 0, few, length)}
    others |= {f"2^{power} sequences on": (own, 1 << power, few, length) for power in _FAR}
    others |= {f"length {one}": (own, 0, few, one) for one in _other_lengths(task, length)}
    mine, pool, found = _told(sample), [], list[Finding]()
    for name, which in others.items():
        batch = task.sample(*which)
        last = batch.targets.max(dim=1, keepdim=True).values
        theirs = _columns(np.concatenate([batch.tokens.numpy(), last.numpy()], axis=1))
        found += _unrelated(f"{name}, the same place", mine, theirs, len(batch))
        if name in pooled:
            pool.append(fingerprints(batch.tokens[:few].numpy()))
    return found, pool


def _many(sample: DrawnSequences) -> int:
    """The number of sequences for which products of all pairs of columns stay within the budget."""
    N = len(sample.tokens)
    return min(N, max(_FEW, int(sample.budget / 2 / _MOST_COLUMNS**2 / 8)))


def streams(sample: DrawnSequences) -> Iterator[Finding]:
    """Sequence i of a stream is independent of sequence i of another name, seed or length. It is also independent of
    sequences at far indices of the same stream, and of those just before it."""
    if not sample.whole:
        return
    N, mine = len(sample.tokens), _told(sample)
    yield from _others(sample)[0]
    for lag in (1, 2, 3, 4, 8, 16, 32, 64, 100, 128, 256):
        if lag < N:
            yield from _unrelated(f"{lag} sequences on", mine, mine, min(_many(sample), N - lag), lag)


def periods(sample: DrawnSequences) -> Iterator[Finding]:
    """No token, target or noise depends periodically on the index in the stream, for any period. A sequence as a
    whole is independent of the one d places before it, for every d."""
    if not sample.whole:
        return
    mine = _told(sample)
    size = fft.prev_fast_len(len(mine.x), real=True)
    x = mine.x.T[:, :size]
    tallest, power = [np.empty(0)], np.zeros(size // 2 + 1)
    for some in np.array_split(x, max(1, len(x) // 16)):
        if len(some):
            waves = np.abs(fft.rfft(some, axis=1)).astype(np.float64)
            tallest.append(waves[:, 1:].max(axis=1) / np.sqrt(size))
            power += (waves**2).sum(axis=0)
    z, cases = np.concatenate(tallest), np.full(len(x), float(size))
    # For each column the largest Fourier coefficient. Each counts twice, for its real and its imaginary part.
    yield from largest("periods", "one and a wave", z, np.sqrt(2) * mine.bound, cases, _OF_TWO, 2 * (size // 2))
    # A product of two sequences has the variance of the sum of the squared correlations of their columns.
    variance = float(((x @ x.T / size) ** 2).sum())
    again = fft.irfft(power, size)[1 : (size + 1) // 2] / np.sqrt(size * max(variance, 1e-9))
    cases = np.full(again.shape, size * len(x) ** 2 / max(variance, 1e-9))
    most = np.full(again.shape, float((mine.bound**2).sum()) * len(x) / max(variance, 1e-9))
    yield from largest("periods", "all and those any number of sequences before", again, most, cases, _OF_TWO)


@lru_cache(maxsize=1)
def _told(sample: DrawnSequences) -> Columns:
    """Bits of the tokens, the last target and the noise, as columns."""
    last = np.full((len(sample.tokens), 1), -1)
    last[sample.rows, 0] = sample.targets
    return _columns(np.concatenate([sample.tokens, last], axis=1), sample.noise[:, :_MOST_NOISE])


def _columns(tokens: Ints, others: Ints | None = None) -> Columns:
    """Columns of the bits of tokens, at most ``_MOST_COLUMNS`` of them, and of other choices."""
    low = tokens - tokens.min(axis=0)
    choices = Choices.of(low, "tokens").only(low.max(axis=0) > 0)
    each = max(1, int(choices.values.max(initial=1)).bit_length())
    kept = np.zeros(choices.values.shape[1], bool)
    kept[spread(len(kept), _MOST_COLUMNS // each)] = True
    choices = choices.only(kept)
    if others is not None and others.size:
        choices = choices.beside(Choices.of(others + 1, "noise"))
    return columns(choices)


def _unrelated(subject: str, mine: Columns, theirs: Columns, count: int, lag: int = 0) -> Iterator[Finding]:
    z = (mine.x[:count].T @ theirs.x[lag : lag + count]) / np.sqrt(count)
    yield from largest("streams", subject, z, np.outer(mine.bound, theirs.bound), np.array(float(count)), _OF_TWO)


def _other_lengths(task: Task, length: int) -> list[int]:
    """Slightly longer lengths, and those with one more binary digit set. The length before if there are none."""
    more = [*range(length + 1, length + 4), *(length | 1 << bit for bit in range(length.bit_length())), 2 * length]
    others = [one for one in dict.fromkeys(more) if one != length and has_length(task, one)]
    return others or [one for one in (length - 1,) if has_length(task, one)]


def has_length(task: Task, length: int) -> bool:
    """Whether the task has sequences of this length."""
    try:
        task.check_length(length)
    except SettingError:
        return False
    return True


def repeats(sample: DrawnSequences) -> Iterator[Finding]:
    """No sequence repeats more often than by chance: in the sample, in streams of other names and seeds, or at far
    indices, drawn one at a time."""
    if not sample.whole:
        return
    task, N = sample.task, len(sample.tokens)
    mine = fingerprints(sample.tokens)
    counts = np.unique(mine, return_counts=True)[1].astype(np.float64)
    equal = float((counts * (counts - 1)).sum() / 2)
    share = equal / (N * (N - 1) / 2)
    most = min(_LAGS, N - 1)
    again = np.array([int((mine[lag:] == mine[:-lag]).sum()) for lag in range(1, most + 1)])
    pairs = N - np.arange(1, most + 1)
    if share < _SPARSE:
        p_values = stats.poisson.sf(again - 1, pairs * share)
    else:  # neighboring pairs share a sequence
        variance = share - share**2 + 2 * float(((counts / N) ** 3).sum() - share**2)
        p_values = stats.norm.sf((again - pairs * share) / np.sqrt(np.maximum(pairs * variance, 1e-9)))
    worst = int(p_values.argmin())
    subject = f"the same sequence up to {most} places before: most often {worst + 1}"
    p_value, of = min(1.0, most * float(p_values[worst])), "share of repeats"
    # If equal sequences hardly occur, five repeats at one distance are detected.
    sparse = "certain" if share * N < 1e-3 else "normal"
    scale = 1 / N if sparse == "certain" else float(np.sqrt(max(share, 1 / N) / N))
    yield Finding("repeats", subject, float(again[worst]), p_value, of, scale, most, sparse)
    if (chance := _chance_of_equal(sample)) is None:
        return
    few, own = min(_FEW, N), Stream(seed=sample.seed, name=CERTIFICATE)
    if (mean := chance * N * (N - 1) / 2) < _MOST_EQUAL:
        yield _as_rare("two of the sample", equal, mean, N)
    # Sequences are drawn only if they will be tested.
    if (mean := chance * _SINGLES * N) < _MOST_EQUAL:
        starts = np.exp(sample.generator().uniform(np.log(N), np.log(_FARTHEST), _SINGLES)).astype(np.int64)
        singles = [task.sample(own, int(start), 1, sample.length).tokens.numpy() for start in starts]
        far = float(np.isin(fingerprints(np.concatenate(singles)), mine).sum())
        yield _as_rare(f"one of {_SINGLES} far on, each drawn alone, and one of the sample", far, mean, N)
    named = [replace(own, seed=sample.seed + add, name=n) for add in range(3, _NEAR) for n in (_NAMES[0], own.name)]
    pool, fewer = [mine[:few], *_others(sample)[1]], min(_SINGLES // 4, N)
    number = len(pool) * few + len(named) * fewer
    if (mean := chance * number**2 / 2) < _MOST_EQUAL:
        batches = [task.sample(stream, 0, fewer, sample.length).tokens.numpy() for stream in named]
        different = np.unique(np.concatenate([*pool, fingerprints(np.concatenate(batches))]))
        yield _as_rare("two of streams with other names and seeds", float(number - len(different)), mean, few)


def _as_rare(subject: str, equal: float, mean: float, cases: int) -> Finding:
    """Test the number of equal pairs, which is Poisson with at most this mean."""
    p_value = float(stats.poisson.sf(equal - 1, mean))
    return Finding("repeats", f"equal: {subject}", equal, p_value, "share of repeats", 1 / cases, test="certain")


def _chance_of_equal(sample: DrawnSequences) -> float | None:
    """An upper bound for the probability that two sequences make the same choices, or None if it is unknown."""
    log_chance = np.zeros(len(sample.tokens))
    for draw in draws_of(sample).values():
        if draw.together:
            continue
        for column in draw.values.T:
            present = column >= 0
            if present.any():
                shares = np.bincount(column[present]) / present.sum()
                log_chance += np.log((shares**2).sum()) * present
    return float(np.exp(log_chance.max())) if log_chance.any() else None
