"""Checks that what should be independent is: sequences of each other, values of places, background of everything.

Many dependences are looked for at once with signs: a_t is a centered bit of the token at position t where it is
background, 0 elsewhere. Under independence every product a_t a_u w with a weight w of the sequence (its label, say)
has mean zero, so the sum over sequences, divided by the root of the sum of squares, is standard normal. The largest
of all pairs (t, u) is one finding, its p-value multiplied by the number of pairs.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sparsity_lab.generators.batch import Batch
from sparsity_lab.generators.certify.findings import Finding, certain, chi_square, contingency
from sparsity_lab.generators.certify.sequences import CERTIFICATE, DrawnSequences, Slot, spread
from sparsity_lab.generators.stream import Stream
from sparsity_lab.generators.task import Task
from sparsity_lab.settings import SettingError

__all__ = ["background", "bystanders", "independence", "noise", "slices", "source_values"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BUCKETS = 8  # tokens are compared modulo this, so that no table gets too many cells
_MOST_CELLS = 20_000
_ENOUGH = 2000  # summands from which on a sum of bounded signs is normal far into its tails
_ENDS = 24  # of long sequences, pairs are taken among this many positions at either end
_MOST_PAIRED = 50_000  # sequences
_FAR = (20, 32, 40)  # powers of two, at which a stream that counts too few bits starts anew
_MOST_FAR = 10_000  # sequences, enough to know some of them again
_LABEL_BUCKETS = 64
_MOST_SLOTS = 8  # for checks that look at every position of every sequence


def source_values(sample: DrawnSequences) -> Iterator[Finding]:
    """Source tokens have their declared law, and are independent of each other and of where they stand."""
    distribution = sample.truth.value_distribution
    if not sample.truth.independent_values or distribution is None or not sample.one_target:
        return
    (slot,) = sample.slots
    alphabet = np.flatnonzero(distribution)
    index = np.searchsorted(alphabet, slot.source_tokens).clip(0, len(alphabet) - 1)
    wrong = (alphabet[index] != slot.source_tokens) & (slot.sources >= 0)
    yield certain("source_values", "only declared values", not wrong.any(), float(wrong.sum()))
    for j in range(slot.sources.shape[1]):
        rows = slot.sizes > j
        tercile = _terciles(slot.sources[rows, j])
        yield from contingency("source_values", f"source {j + 1} and its place", index[rows, j] % _BUCKETS, tercile)
    for k in np.unique(slot.sizes).tolist():
        rows = slot.sizes == k
        # All values of a sequence together if their tuples can be counted, else all triples.
        together = k if len(alphabet) ** k <= _MOST_CELLS else min(k, 3)
        if len(alphabet) ** together > _MOST_CELLS:
            continue
        for chosen in itertools.islice(itertools.combinations(range(k), together), 64):
            code = index[rows][:, chosen] @ len(alphabet) ** np.arange(together)
            expected = np.array([1.0])
            for _ in chosen:
                expected = np.multiply.outer(distribution[alphabet], expected).reshape(-1)
            counts = np.bincount(code, minlength=len(expected))
            yield from chi_square("source_values", f"k={k}, sources {chosen}", counts, expected * rows.sum())


def background(sample: DrawnSequences) -> Iterator[Finding]:
    """Background tokens are independent of each other, of the label, and of the sources' places and values."""
    if sample.truth.independent_background:
        is_background = np.array([role == "background" for role in sample.task.vocabulary.roles])
        for bit in (0, 1):
            signs = _signs(sample.tokens, is_background[sample.tokens], bit)
            yield from _pairs("background", f"two positions, bit {bit}", signs, np.ones(len(signs)))
    if not sample.truth.independent_values or not sample.one_target:
        return
    (slot,) = sample.slots
    label = _centered(slot.label_index % 2)
    early = _centered(slot.sources[:, 0] <= np.median(slot.sources[:, 0]))
    value = _centered(slot.source_tokens[:, 0] % 2)
    for bit in (0, 1):
        signs = _signs(slot.tokens, slot.free, bit)
        for name, weight in [("", np.ones(len(label))), ("the label", label), ("the first place", early)]:
            yield from _pairs("background", f"two positions {name}, bit {bit}", signs, weight)
        for name, weight in [("the label", label), ("the first place", early), ("the first value", value)]:
            yield from _largest("background", f"a position and {name}, bit {bit}", *_sums(signs, weight))
        yield from _beside_sources(slot, signs, label, bit)


def bystanders(sample: DrawnSequences) -> Iterator[Finding]:
    """A target is independent of each token before it, or at it, that is no source of it; and one without sources, of
    pairs too."""
    free = [slot for slot in sample.slots if sample.has_sources and not slot.sizes.any()]
    declared = sample.slots if sample.truth.label_free_bystanders else free
    for slot in [declared[j] for j in spread(len(declared), _MOST_SLOTS)]:
        last = int(slot.positions.max()) + 1
        seen = np.arange(last) <= slot.positions[:, None]
        tokens, others = slot.tokens[:, :last], seen & ~slot.is_source[:, :last]
        for bit in (0, 1):
            signs = _signs(tokens, others, bit)
            for of_label in (0, 1):
                label = _centered((slot.label_index >> of_label) & 1)
                subject = f"{slot.name}bit {bit} of a position, bit {of_label} of the label"
                yield from _largest("bystanders", subject, *_sums(signs, label))
                # Where targets move, the token at the target is at no one position often.
                here = np.take_along_axis(signs, slot.positions[:, None], axis=1)
                subject = f"{slot.name}bit {bit} at the target, bit {of_label} of the label"
                yield from _largest("bystanders", subject, *_sums(here, label))
                if not slot.sizes.any():
                    subject = f"{slot.name}bit {bit} of two positions, bit {of_label} of the label"
                    yield from _pairs("bystanders", subject, signs, label)


def noise(sample: DrawnSequences) -> Iterator[Finding]:
    """Whether a label is replaced is independent of all that the sequence holds, and by which other one, uniform."""
    truth = sample.truth
    if truth.label_noise == 0 or truth.labels is None:
        return
    if not sample.one_target:
        yield from _noise_and_noise(sample)
    looked_at = spread(len(sample.slots), _MOST_SLOTS)
    for j, slot in enumerate(sample.slots):
        if len(slot.answered) == 0:
            continue
        replaced = slot.answers != slot.targets[slot.answered]
        if len(truth.labels) > 2 and replaced.any():
            shift = (slot.label_index[slot.answered] - slot.index_of(slot.answers))[replaced]
            counts = np.bincount(shift % len(truth.labels), minlength=len(truth.labels))
            expected = np.full(len(truth.labels), replaced.sum() / (len(truth.labels) - 1))
            expected[0] = 0.0
            yield from chi_square("noise", f"{slot.name}the label put instead", counts, expected)
        of_noise = replaced.astype(np.int64)
        for fold in (2, _BUCKETS):  # few cells see more where noise is rare
            subject = f"{slot.name}replacement and the rule's answer mod {fold}"
            yield from contingency("noise", subject, of_noise, slot.answers % fold)
        if not sample.one_target and j in looked_at:
            seen = np.arange(slot.tokens.shape[1]) <= slot.positions[slot.answered, None]
            for bit in (0, 1):
                signs = _signs(slot.tokens[slot.answered], seen, bit)
                subject = f"{slot.name}replacement and a position before, bit {bit}"
                yield from _largest("noise", subject, *_sums(signs, _centered(of_noise)))
        if truth.independent_values and sample.one_target:
            yield from _noise_and_sequence(slot, of_noise)


def _noise_and_noise(sample: DrawnSequences) -> Iterator[Finding]:
    """Replacements of targets of one sequence are independent, whatever their distance."""
    answered = np.flatnonzero(sample.answers >= 0)
    replaced = (sample.answers != sample.targets).astype(np.int64)
    for apart in range(1, min(_ENDS, int(sample.counts.max(initial=0)) - 1) + 1):
        first = answered[answered + apart < len(replaced)]
        second = first + apart
        both = (sample.answers[second] >= 0) & (sample.rows[first] == sample.rows[second])
        subject = f"replacements {apart} targets apart"
        yield from contingency("noise", subject, replaced[first[both]], replaced[second[both]])


def _noise_and_sequence(slot: Slot, replaced: Ints) -> Iterator[Finding]:
    yield from contingency(
        "noise", "replacement and the first place", replaced, _terciles(slot.sources[slot.answered, 0])
    )
    if replaced.sum() >= _ENOUGH:
        for bit in (0, 1):
            signs = _signs(slot.tokens[slot.answered], slot.free[slot.answered], bit)
            weight = _centered(replaced)
            yield from _largest("noise", f"replacement and a position, bit {bit}", *_sums(signs, weight))
            yield from _pairs("noise", f"replacement and two positions, bit {bit}", signs, weight)


def _terciles(places: Ints) -> Ints:
    """Few cells, so that a slight trend shows."""
    return np.asarray(np.searchsorted(np.quantile(places, [1 / 3, 2 / 3]), places))


def _centered(values: Ints | NDArray[np.bool_]) -> Floats:
    return np.asarray(values - values.mean())


def _signs(tokens: Ints, free: NDArray[np.bool_], bit: int) -> Floats:
    """(N, T): a bit of each token that is free, centered by position; 0 where it is not free."""
    bits = ((tokens >> bit) & 1).astype(np.float64)
    means = (bits * free).sum(axis=0) / np.maximum(free.sum(axis=0), 1)
    return np.asarray((bits - means) * free)


def _sums(signs: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each position: sum of signs times weight, root of its sum of squares, and number of summands."""
    return weight @ signs, np.sqrt(weight**2 @ signs**2), (signs != 0).sum(axis=0).astype(np.float64)


def _pairs(check: str, subject: str, signs: Floats, weight: Floats) -> Iterator[Finding]:
    """The largest dependence of a product of two signs and a weight."""
    if signs.shape[1] > 2 * _ENDS:
        signs = np.concatenate([signs[:, :_ENDS], signs[:, -_ENDS:]], axis=1)
    sums = (signs * weight[:, None]).T @ signs
    spread = np.sqrt((signs**2 * weight[:, None] ** 2).T @ signs**2)
    present = (signs != 0).astype(np.float64)
    upper = np.triu_indices(signs.shape[1], 1)
    yield from _largest(check, subject, sums[upper], spread[upper], (present.T @ present)[upper])


def _largest(check: str, subject: str, sums: Floats, spread: Floats, count: Floats) -> Iterator[Finding]:
    """One finding from many sums: the largest in units of its spread."""
    usable = (count >= _ENOUGH) & (spread > 1e-9)
    if usable.any():
        z = float(np.abs(sums[usable] / spread[usable]).max())
        yield Finding(check, subject, z, float(min(1.0, 2 * stats.norm.sf(z) * usable.sum())))


def _beside_sources(slot: Slot, signs: Floats, label: Floats, bit: int) -> Iterator[Finding]:
    """Background tokens within two places of a source know neither its value nor the label."""
    T = signs.shape[1]
    found = []
    for j in range(slot.sources.shape[1]):
        rows = np.flatnonzero(slot.sizes > j)
        value = _centered(slot.source_tokens[rows, j] % 2)
        for offset in (-2, -1, 1, 2):
            place = slot.sources[rows, j] + offset
            near = np.where((place >= 0) & (place < T), signs[rows, place.clip(0, T - 1)], 0.0)[:, None]
            found += [_sums(near, value), _sums(near, label[rows])]
    sums, scale, count = (np.concatenate(part) for part in zip(*found, strict=True))
    yield from _largest("background", f"beside a source, bit {bit}", sums, scale, count)


def slices(sample: DrawnSequences) -> Iterator[Finding]:
    """A sequence is the same in whatever batch it is drawn."""
    stream = Stream(seed=sample.seed, name=CERTIFICATE)
    count = min(1000, len(sample.tokens))
    drawn = int(np.random.default_rng(sample.seed).integers(1, count + 1))
    for size in (1, 2, 7, 32, 64, drawn):
        start = count - size
        batch = sample.task.sample(stream, start, size, sample.length)
        same = _same(batch, sample, start)
        yield certain("slices", f"batch of {size}", same)


def _same(batch: Batch, sample: DrawnSequences, start: int) -> bool:
    rows = slice(start, start + len(batch))
    whole = (sample.rows >= start) & (sample.rows < start + len(batch))
    return (
        np.array_equal(batch.tokens.numpy(), sample.tokens[rows])
        and np.array_equal(batch.targets[batch.scored].numpy(), sample.targets[whole])
        and np.array_equal(batch.scored.nonzero()[:, 1].numpy(), sample.positions[whole])
        and (batch.sources is None or np.array_equal(batch.sources[batch.scored].numpy(), sample.sources[whole]))
        and (batch.position_ids is None) == (sample.position_ids is None)
        and (
            batch.position_ids is None
            or sample.position_ids is None
            or np.array_equal(batch.position_ids.numpy(), sample.position_ids[rows])
        )
    )


def independence(sample: DrawnSequences) -> Iterator[Finding]:
    """Sequence i of one seed, name or length tells nothing of sequence i of another, nor of the next sequence or of
    one far on in the stream."""
    most = min(_MOST_PAIRED, len(sample.tokens) - 1)
    stream = Stream(seed=sample.seed, name=CERTIFICATE)
    others = {
        "another seed": (replace(stream, seed=sample.seed + 1), 0, most, sample.length),
        "another name": (replace(stream, name="another certificate"), 0, most, sample.length),
    }
    for length, count in zip(_other_lengths(sample), (most, min(_MOST_FAR, most)), strict=False):
        others[f"length {length}"] = (stream, 0, count, length)
    for power in _FAR:
        others[f"2^{power} sequences on"] = (stream, 2**power, min(_MOST_FAR, most), sample.length)
    first = sample.targets[np.cumsum(sample.counts)[: most + 1] - sample.counts[: most + 1]]
    pairs = {"the next sequence": (sample.tokens[1 : most + 1], first[1:])}
    for name, (stream, start, count, length) in others.items():
        batch = sample.task.sample(stream, start, count, length)
        scored, targets = batch.scored.int().argmax(dim=1), batch.targets
        pairs[name] = (batch.tokens.numpy(), targets[np.arange(count), scored].numpy())
    all_have_one = bool((sample.counts > 0).all())
    for name, (tokens, targets) in pairs.items():
        count, T = len(tokens), min(sample.tokens.shape[1], tokens.shape[1])
        # What starts anew does so at all positions, so a few of them show it.
        looked_at = 8 if count <= _MOST_FAR else 32
        for t in range(0, T, max(1, T // looked_at)):
            mine, theirs = sample.tokens[:count, t] % _BUCKETS, tokens[:, t] % _BUCKETS
            yield from contingency("independence", f"{name}, position {t}", mine, theirs)
        if all_have_one:
            yield from contingency(
                "independence", f"{name}, label", first[:count] % _LABEL_BUCKETS, targets % _LABEL_BUCKETS
            )


def _other_lengths(sample: DrawnSequences) -> list[int]:
    """The next length, or where there is none the one before; and the next but one."""
    near = [step for step in (1, -1) if _has_length(sample.task, sample.length + step)]
    far = [step for step in (2,) if _has_length(sample.task, sample.length + step)]
    return [sample.length + step for step in near[:1] + far]


def _has_length(task: Task, length: int) -> bool:
    try:
        task.check_length(length)
    except SettingError:
        return False
    return True
