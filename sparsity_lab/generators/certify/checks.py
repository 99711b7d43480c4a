"""Checks of a task's declarations on tokens, targets and sources. Each is a function from a sample to findings.

A check that does not apply to the task's declarations has no findings.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sparsity_lab.generators.certify.findings import (
    Finding,
    certain,
    chi_square,
    contingency,
    largest,
    proportion,
    spread,
)
from sparsity_lab.generators.certify.predictions import Predictions
from sparsity_lab.generators.certify.sequences import CERTIFICATE, DrawnSequences, fingerprints
from sparsity_lab.generators.mixture import Mixture
from sparsity_lab.generators.stream import Floats, Ints, Stream
from sparsity_lab.generators.task import PositionLaw

_ENUMERABLE_SETS = 60_000
_MOST_GAPS = 64
_MOST_SUBSETS = 254  # all proper subsets up to k = 8
_MOST_SLOTS_OF_SUBSETS = 8
_COMPARED = 2000  # sequences
_MOST_COUNTED = 1 << 20  # numbers of tokens at once


def token_marginals(sample: DrawnSequences) -> Iterator[Finding]:
    """Tokens have their declared probabilities, at each position and over all positions."""
    marginals = sample.truth.token_marginals
    if marginals is None:
        return
    known = np.flatnonzero(~np.isnan(marginals).any(axis=1))
    share = "share of a token at one position, relative"
    for t in known.tolist():
        probability = marginals[t]
        counts = np.bincount(sample.tokens[:, t], minlength=len(probability))
        yield from chi_square("token_marginals", f"position {t}", counts, probability * len(sample.tokens), share)
    of = "share of a token over all positions, relative"
    number, N = _numbers_of_tokens(sample.tokens[:, known], marginals.shape[1]), len(sample.tokens)
    for token, expected in enumerate(marginals[known].sum(axis=0).tolist()):
        mean, size, fewest, most = number[:, token].tolist()
        if fewest < most and expected > 0:
            # The number is independent between sequences but not within one, so its variance is measured.
            z = np.array([(mean - expected) / size * np.sqrt(N)])
            bound = np.array([max(most - expected, expected - fewest) / size])
            for finding in largest("token_marginals", f"token {token} anywhere", z, bound, np.array([float(N)]), of):
                yield replace(finding, scale=(finding.scale or 0.0) * size / expected)


def _numbers_of_tokens(tokens: Ints, V: int) -> Floats:
    """(4, V) the mean, standard deviation, minimum and maximum over sequences of the number of each token."""
    total, squares = np.zeros(V), np.zeros(V)
    fewest, most = np.full(V, np.inf), np.zeros(V)
    for start in range(0, len(tokens), size := max(1, _MOST_COUNTED // V)):
        rows = tokens[start : start + size]
        code = (rows + np.arange(len(rows))[:, None] * V).reshape(-1)
        number = np.bincount(code, minlength=len(rows) * V).reshape(len(rows), V)
        total += number.sum(axis=0)
        squares += (number**2).sum(axis=0)
        fewest, most = np.minimum(fewest, number.min(axis=0)), np.maximum(most, number.max(axis=0))
    mean = total / len(tokens)
    return np.stack([mean, np.sqrt(np.maximum(squares / len(tokens) - mean**2, 0.0)), fewest, most])


def target_counts(sample: DrawnSequences) -> Iterator[Finding]:
    """Sequences have the declared number of scored targets."""
    declared = sample.truth.num_targets
    if isinstance(declared, int):
        wrong = int((sample.counts != declared).sum())
        yield certain("target_counts", f"{declared} scored targets", wrong == 0, wrong)
    elif declared is not None:
        yield certain("target_counts", "probabilities sum to one", abs(declared.sum() - 1) < 1e-9)
        counts = np.bincount(sample.counts, minlength=len(declared))
        expected = np.append(declared, np.zeros(len(counts) - len(declared)))
        yield from chi_square("target_counts", "number of scored targets", counts, expected * len(sample.counts))


def target_places(sample: DrawnSequences) -> Iterator[Finding]:
    """The set of scored positions follows its declared law."""
    law = sample.truth.target_law
    if law is None:
        return
    most = int(sample.counts.max(initial=0))
    places = np.full((len(sample.tokens), most), -1, dtype=np.int64)
    places[sample.rows, sample.slot_of_target] = sample.positions
    yield from _places("target_places", "scored position", places, sample.counts, law)
    yield from _sets("target_places", "scored positions", places, sample.tokens.shape[1], law)
    yield from _steps("target_places", "scored positions", places, law)


def next_token(sample: DrawnSequences) -> Iterator[Finding]:
    """A scored target is the next token, if answers are shown and the sequence continues."""
    if not sample.truth.shown_answers:
        return
    inside = np.flatnonzero(sample.positions + 1 < sample.tokens.shape[1])
    if len(inside):
        following = sample.tokens[sample.rows[inside], sample.positions[inside] + 1]
        wrong = int((following != sample.targets[inside]).sum())
        yield certain("next_token", "targets that are not the next token", wrong == 0, wrong)


def label_balance(sample: DrawnSequences) -> Iterator[Finding]:
    """The targets of each slot have their declared probabilities, and all targets are declared labels."""
    if sample.truth.labels is not None:
        unlisted = int((~np.isin(sample.targets, sample.truth.labels)).sum())
        yield certain("label_balance", "targets that are not declared", unlisted == 0, unlisted)
    for slot in sample.slots:
        declared = sample.truth.labels_of_slot(slot.index)
        if declared is not None:
            counts = np.bincount(slot.targets, minlength=len(declared))
            of = "share of a label, relative"
            yield from chi_square("label_balance", f"{slot.name}labels", counts, declared * len(slot.targets), of)


def source_counts(sample: DrawnSequences) -> Iterator[Finding]:
    """Sources are distinct, ascending, not after their target, and of the declared number."""
    if not sample.has_sources:
        yield certain("source_counts", "no sources declared", sample.truth.k is None)
        return
    padded = np.where(sample.sources >= 0, sample.sources, np.iinfo(np.int64).max)
    ascending = (np.diff(padded, axis=1) > 0) | (padded[:, 1:] == np.iinfo(np.int64).max)
    wrong = ~ascending.all(axis=1) | (sample.sources > sample.positions[:, None]).any(axis=1)
    yield certain("source_counts", "distinct, ascending, in the past", not wrong.any(), float(wrong.sum()))
    if sample.truth.k is not None:
        most = int(sample.sizes.max(initial=0))
        yield certain("source_counts", "largest number of sources", most == sample.truth.k, most)
    for slot in sample.slots:
        if slot.law is not None:
            at_least = np.append(slot.law.order_pmf().sum(axis=1), 0.0)
            expected = np.append(1.0, at_least[:-1]) - at_least
            counts = np.bincount(slot.sizes, minlength=len(expected))
            expected = np.append(expected, np.zeros(len(counts) - len(expected)))
            expected = np.where(np.abs(expected) < 1e-9, 0.0, expected)
            yield from chi_square(
                "source_counts", f"{slot.name}number of sources", counts, expected * len(slot.sizes)
            )


def source_places(sample: DrawnSequences) -> Iterator[Finding]:
    """The j-th smallest source of each slot follows its declared law, and its token the law of the values."""
    for slot in sample.slots:
        if (values := sample.truth.value_distribution) is not None:
            for j, tokens in enumerate(slot.source_tokens.T):
                counts = np.bincount(tokens[tokens >= 0], minlength=len(values))
                of = "share of a value, relative"
                yield from chi_square("source_places", f"{slot.name}value {j + 1}", counts, values * counts.sum(), of)
        if slot.law is not None:
            yield from _places("source_places", f"{slot.name}source", slot.sources, slot.sizes, slot.law)


def source_sets(sample: DrawnSequences) -> Iterator[Finding]:
    """The source set of each slot follows its declared law, if the sets can be listed."""
    for slot in sample.slots:
        if slot.law is not None:
            yield from _sets("source_sets", f"{slot.name}sets", slot.sources, sample.tokens.shape[1], slot.law)
            yield from _steps("source_sets", f"{slot.name}sets", slot.sources, slot.law)


def _steps(check: str, subject: str, sets: Ints, law: PositionLaw) -> Iterator[Finding]:
    """Compare sets that differ by one step of one position. The law gives the conditional probability of each of the
    two. The test covers every gap to the preceding position, so it works for laws of any size."""
    order = law.order_pmf()
    possible = np.flatnonzero(order.sum(axis=0) > 0)
    whole = sets[(sets >= 0).all(axis=1)][:, : len(order)]
    if len(possible) < 2 or sets.shape[1] < 2 or not (np.diff(whole, axis=1) > 0).all():
        return
    step = int(np.diff(possible).min())
    whole, times = _distinct(whole)
    own = law.pmf(whole)
    found = []
    for j in range(1, whole.shape[1]):
        gap = (whole[:, j] - whole[:, j - 1]) // step
        # First gaps 1 and 2 are a pair, 3 and 4, and so on; then 2 and 3, 4 and 5, and so on.
        for first in (1, 0):
            upper = gap % 2 != first
            other = whole.copy()
            other[:, j] += np.where(upper, -step, step)
            legal = (other[:, j] > other[:, j - 1]) & (other[:, j] <= possible[-1])
            legal &= (np.diff(other, axis=1) > 0).all(axis=1)
            if not legal.any():
                continue
            others, mine = law.pmf(other[legal]), own[legal]
            both = np.maximum(others + mine, 1e-300)
            chance = np.where(upper[legal], mine, others) / both
            lower = (gap - upper)[legal].clip(0, _MOST_GAPS)
            excess = np.bincount(lower, weights=times[legal] * (upper[legal] - chance))
            variance = np.bincount(lower, weights=times[legal] * chance * (1 - chance))
            number = np.bincount(lower, weights=times[legal])
            used = variance > 1
            found.append((excess[used] / np.sqrt(variance[used]), variance[used], number[used]))
    if found:
        z, spread_of, cases = (np.concatenate(part).astype(np.float64) for part in zip(*found, strict=True))
        of = "correlation of a gap with its neighbor"
        yield from largest(check, f"{subject}: gaps of neighbors", z, np.sqrt(cases / spread_of), cases, of)


def _distinct(sets: Ints) -> tuple[Ints, Ints]:
    """The different rows and their counts."""
    _, first, times = np.unique(fingerprints(sets), return_index=True, return_counts=True)
    return sets[first], times


def _places(check: str, subject: str, sets: Ints, sizes: Ints, law: PositionLaw) -> Iterator[Finding]:
    for j, probability in enumerate(law.order_pmf()[: sets.shape[1]]):
        places = sets[sizes > j, j]
        counts = np.bincount(places, minlength=len(probability))
        share = probability / max(probability.sum(), 1e-300)
        of = "share of a place, relative"
        yield from chi_square(check, f"{subject} {j + 1}", counts, share * len(places), of)


def listed_sets(law: PositionLaw, T: int, *, varying: bool) -> tuple[Ints, Floats] | None:
    """All sets of the largest size, or of all sizes if ``varying``, with their probabilities; None if too many."""
    order = law.order_pmf()
    possible = np.flatnonzero(order.sum(axis=0) > 0).tolist()
    K = len(order)
    sizes = range(1, K + 1) if varying else range(K, K + 1)
    if sum(math.comb(len(possible), k) for k in sizes) > _ENUMERABLE_SETS or (T + 1) ** K >= 2**62:
        return None
    chosen = (one + (-1,) * (K - k) for k in sizes for one in itertools.combinations(possible, k))
    sets = np.array(list(chosen), dtype=np.int64).reshape(-1, K)
    return sets, law.pmf(sets)


def _sets(check: str, subject: str, seen_sets: Ints, T: int, law: PositionLaw) -> Iterator[Finding]:
    listed = listed_sets(law, T, varying=bool((seen_sets[:, -1] < 0).any()))
    if listed is None:
        return
    sets, probability = listed
    K = sets.shape[1]
    radix = (T + 1) ** np.arange(K, dtype=np.int64)
    code = (sets + 1) @ radix
    seen = (seen_sets[:, :K] + 1) @ radix[: seen_sets.shape[1]]
    order_of_codes = np.argsort(code)
    position = np.searchsorted(code[order_of_codes], seen).clip(0, len(code) - 1)
    unlisted = code[order_of_codes][position] != seen
    yield certain(check, f"{subject}: only those of the law", not unlisted.any(), float(unlisted.sum()))
    counts = np.bincount(order_of_codes[position[~unlisted]], minlength=len(sets))
    yield certain(check, f"{subject}: probabilities sum to one", abs(probability.sum() - 1) < 1e-9)
    positive = probability[probability > 0]
    # A set whose probability is too small for a float still belongs to the support.
    matches = len(positive) == law.support_size() or (len(positive) < law.support_size() and positive.min() < 1e-250)
    yield certain(check, f"{subject}: size of the support", matches, law.support_size())
    yield from chi_square(check, subject, counts, probability * len(seen_sets), "share of a set, relative")


def second_answer(sample: DrawnSequences) -> Iterator[Finding]:
    """The scored positions and sources that an observer finds from the tokens alone are the true ones."""
    seen, asked = sample.observed, len(sample.asked)
    if not seen.all_known:
        return
    wrong = seen.positions != sample.positions[seen.where]
    if sample.has_sources:
        true = sample.sources[seen.where]
        width = min(true.shape[1], seen.sources.shape[1])
        wrong |= (seen.sources[:, :width] != true[:, :width]).any(axis=1)
        wrong |= (seen.sources[:, width:] >= 0).any(axis=1) | (true[:, width:] >= 0).any(axis=1)
    differing = int((~seen.read).sum()) + len(np.unique(sample.rows[seen.where[wrong]]))
    yield certain("second_answer", "targets and sources seen in the tokens", differing == 0, differing, asked)


def rule(sample: DrawnSequences) -> Iterator[Finding]:
    """The target is the rule's answer, except for the declared noise (exact binomial). The observer computes the
    answer for its sequences, and the exact predictor for all."""
    rate = sample.truth.label_noise
    answered = np.flatnonzero(sample.answers >= 0)
    if len(answered):
        wrong = int((sample.answers != sample.targets)[answered].sum())
        yield proportion("rule", "targets that differ from the rule", wrong, len(answered), rate, "label noise")
    for j, column in enumerate(sample.noise.T):
        known, of = column >= 0, "label noise of one target"
        if known.any() and sample.noise.shape[1] > 1:
            subject = f"target {j + 1}: noise"
            yield proportion("rule", subject, int((column > 0).sum()), int(known.sum()), rate, of)
    if (known := sample.noise >= 0).any():
        replaced, cases = int((sample.noise > 0).sum()), int(known.sum())
        if sample.whole and isinstance(sample.predictions, Predictions):
            for batch in sample.beyond():
                ruled = (
                    slice(None) if batch.sources is None else (batch.sources[batch.scored] >= 0).any(dim=1).numpy()
                )
                chosen = Predictions.of(sample.task, [batch], sample.generator()).chosen[ruled]
                replaced, cases = replaced + int((~chosen).sum()), cases + len(chosen)
        yield proportion("rule", "noise, of all sequences", replaced, cases, rate, "label noise")


def determined(sample: DrawnSequences) -> Iterator[Finding]:
    """The tokens at the sources determine the answer: no two sequences agree in them and differ in it."""
    slots = [slot for slot in sample.slots if len(slot.answered)]
    if not sample.has_sources or not slots:
        return
    differing = 0
    for slot in slots:
        known = slot.source_tokens[slot.answered]
        order = np.lexsort((slot.answers, *known.T))  # those that agree in their tokens stand together
        agree = (np.diff(known[order], axis=0) == 0).all(axis=1)
        differing += int((agree & (np.diff(slot.answers[order]) != 0)).sum())
    yield certain("determined", "answers beyond the first to the same source tokens", differing == 0, differing)


def position_shortcut(sample: DrawnSequences) -> Iterator[Finding]:
    """No position tells more of the label than declared: the joint law of its token and the label."""
    joint = sample.truth.token_label_joint
    if joint is None or not sample.one_target:
        return
    (slot,) = sample.slots
    V, L = joint.shape[1:]
    for t, probability in enumerate(joint):
        cells = np.bincount(slot.tokens[:, t] * (L + 1) + slot.label_index, minlength=V * (L + 1))
        declared = np.concatenate([probability, np.zeros((V, 1))], axis=1)
        yield from chi_square("position_shortcut", f"position {t}", cells, declared.reshape(-1) * len(slot.rows))


def subset_shortcut(sample: DrawnSequences) -> Iterator[Finding]:
    """Where the rule needs all its sources, every proper subset of them is independent of the label."""
    if not sample.truth.label_free_subsets:
        return
    L = len(sample.truth.labels or ())
    rng = sample.generator()
    for slot in [sample.slots[j] for j in spread(len(sample.slots), _MOST_SLOTS_OF_SUBSETS)]:
        for k in np.unique(slot.sizes).tolist():
            rows = slot.sizes == k
            values, labels = slot.source_tokens[rows, :k], slot.label_index[rows]
            for subset in _proper_subsets(k, rng):
                residue = values[:, subset].sum(axis=1) % L
                subject = f"{slot.name}k={k}, sum of sources {subset}"
                yield from contingency("subset_shortcut", subject, residue, labels)


def _proper_subsets(k: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Of 0 .. k - 1: all, or where these are too many half as many as allowed, first the smallest and the largest,
    and as many again drawn from all sizes."""
    sizes = dict.fromkeys(size for small in range(1, k) for size in (small, k - small))  # 1, k - 1, 2, k - 2 ..
    subsets = itertools.chain.from_iterable(itertools.combinations(range(k), size) for size in sizes)
    if 2**k - 2 <= _MOST_SUBSETS:
        return list(subsets)
    chosen = dict.fromkeys(itertools.islice(subsets, _MOST_SUBSETS // 2))
    for i in range(_MOST_SUBSETS // 2):
        drawn = rng.choice(k, 1 + i % (k - 1), replace=False)
        chosen[tuple(sorted(drawn.tolist()))] = None
    return list(chosen)


def components(sample: DrawnSequences) -> Iterator[Finding]:
    """In a mixture, each sequence is its component's, and components occur independently with their declared
    shares."""
    task = sample.task
    if not isinstance(task, Mixture) or not sample.whole:
        return
    stream = Stream(seed=sample.seed, name=CERTIFICATE)
    which = task.component(stream, 0, len(sample.tokens), sample.length)
    counts = np.bincount(which, minlength=len(task.tasks))
    yield from chi_square("components", "shares", counts, task.probabilities * len(which))
    yield from contingency("components", "this sequence's and the next one's", which[:-1], which[1:])
    count = min(_COMPARED, len(which))
    for c, part in enumerate(task.tasks):
        batch = part.sample(stream, 0, count, sample.length)
        rows = np.flatnonzero(which[:count] == c)
        same = np.array_equal(batch.tokens.numpy()[rows], sample.tokens[rows])
        same &= np.array_equal(batch.targets.numpy()[rows], sample.every_target[rows])
        yield certain("components", f"sequences of component {c + 1}", same)


def position_ids(sample: DrawnSequences) -> Iterator[Finding]:
    """Coupled IDs equal their definition, and range from 0 to the declared largest."""
    largest = sample.truth.largest_position_id
    if sample.position_ids is None:
        yield certain("position_ids", "none declared", largest == 0, largest)
        return
    top = int(sample.position_ids.max())
    yield certain("position_ids", "largest", top == largest and int(sample.position_ids.min()) >= 0, top)
    if not sample.observed.all_known:
        return
    tokens, ids = sample.tokens[sample.asked], sample.position_ids[sample.asked]
    both = np.concatenate([tokens, ids.reshape(len(ids), -1)], axis=1)
    _, first, number = np.unique(fingerprints(both), return_index=True, return_counts=True)
    same = [_same_ids(sample, tuple(tokens[i].tolist()), ids[i].tolist()) for i in first]
    wrong = int(number[~np.array(same)].sum())
    yield certain("position_ids", "definition", wrong == 0, wrong, len(sample.asked))


def _same_ids(sample: DrawnSequences, tokens: tuple[int, ...], ids: list[list[int]]) -> bool:
    try:
        return sample.task.define_position_ids(tokens) == ids
    except (ValueError, LookupError):  # no sequence of the task
        return False
