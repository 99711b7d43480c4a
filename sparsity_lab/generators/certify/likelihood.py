"""Checks of a declared likelihood: the sampler draws each sequence with that probability.

Take a sequence and a neighbor: its image under an exchange that is its own inverse. Their two likelihoods give the
probability that the sampler drew this one of the two. So the observed minus the expected count is a martingale over
sequences with known variance. Its sums in blocks of the stream show any drift, and its sums by position and token
show where an error comes from. This needs no normalizing constant of the law, and no list of its sets.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from sparsity_lab.generators.batch import IGNORE, Batch
from sparsity_lab.generators.certify.checks import listed_sets
from sparsity_lab.generators.certify.findings import Finding, certain, largest, mean
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.generators.stream import Floats, Ints
from sparsity_lab.generators.task import NotComputable, Truth

_BATCH = 8192  # sequences
_BLOCKS = (1, 2, 4, 8, 16)  # of the stream: of all sequences, of each half, of each quarter ..


def likelihood(sample: DrawnSequences) -> Iterator[Finding]:
    """The log-likelihood has the mean and variance of the declared law. A sequence and its neighbors occur as often
    as their likelihoods say: in blocks of the stream, at each position and for each token."""
    try:
        own = _log_likelihood(sample, sample.tokens)
    except NotComputable:
        return
    except ValueError:
        own = np.full(len(sample.tokens), -np.inf)
    impossible = int((own == -np.inf).sum())
    subject = "sequences that have a probability"
    yield certain("likelihood", subject, impossible == 0, impossible, len(own))
    if impossible:
        return
    yield from _moments(sample, own)
    rng, (N, T) = sample.generator(), sample.tokens.shape
    first = rng.integers(T, size=(N,))
    for what, second in (("the next token", np.minimum(first + 1, T - 1)), ("any other", rng.integers(T, size=(N,)))):
        yield from _neighbors(sample, own, _swapped(sample.tokens, first, second), f"a token swapped with {what}")
    yield from _neighbors(sample, own, _replaced(sample, first, rng), "one token replaced")


def _log_likelihood(sample: DrawnSequences, tokens: Ints) -> Floats:
    parts = [torch.from_numpy(tokens[i : i + _BATCH]) for i in range(0, len(tokens), _BATCH)]
    batches = (Batch(part, torch.full_like(part, IGNORE)) for part in parts)
    return np.concatenate([sample.task.log_likelihood(batch).numpy() for batch in batches])


def _swapped(tokens: Ints, first: Ints, second: Ints) -> Ints:
    other, index = tokens.copy(), np.arange(len(tokens))
    other[index, first], other[index, second] = tokens[index, second], tokens[index, first]
    return other


def _replaced(sample: DrawnSequences, place: Ints, rng: np.random.Generator) -> Ints:
    """Replace one token of each sequence by another of the same role: number i of n by c - i mod n, its own
    inverse."""
    roles, of_role = np.unique(np.array(sample.task.vocabulary.roles), return_inverse=True)
    size = np.bincount(of_role)[of_role]
    members = np.argsort(of_role, kind="stable")
    start = np.searchsorted(of_role[members], np.arange(len(roles)))[of_role]
    rank = np.empty(len(members), np.int64)
    rank[members] = np.arange(len(members)) - start[members]
    other, index = sample.tokens.copy(), np.arange(len(sample.tokens))
    old = sample.tokens[index, place]
    turned = (rng.integers(1 << 30, size=len(old)) - rank[old]) % size[old]
    other[index, place] = members[start[old] + turned]
    return other


def _neighbors(sample: DrawnSequences, own: Floats, other: Ints, how: str) -> Iterator[Finding]:
    place = (sample.tokens != other).argmax(axis=1)
    index = np.arange(len(own))
    old, new = sample.tokens[index, place], other[index, place]
    theirs = _log_likelihood(sample, other)
    told = np.flatnonzero((old != new) & (theirs > -np.inf))
    lower = old[told] < new[told]
    chance = 1 / (1 + np.exp((theirs - own)[told].clip(-700, 700)))  # of this one, among the two
    excess = np.where(lower, 1 - chance, chance - 1)
    variance = chance * (1 - chance)
    of = "correlation with the odds that the likelihood gives"
    groups = {"at each place": (place[told],), "of each token": (np.minimum(old, new)[told],)}
    for name, parts in ({"in blocks of the stream": _blocks(told, len(own))} | groups).items():
        number = np.concatenate([np.bincount(part) for part in parts]).astype(np.float64)
        total, square = (
            np.concatenate([np.bincount(part, weights=one) for part in parts]) for one in (excess, variance)
        )
        used = square > 1
        bound = np.sqrt(number[used] / square[used])
        z = total[used] / np.sqrt(square[used])
        yield from largest("likelihood", f"{how}, {name}", z, bound, number[used], of)


def _blocks(index: Ints, N: int) -> tuple[Ints, ...]:
    """The block of the stream that each sequence is in, for several sizes of blocks."""
    return tuple(index * number // N for number in _BLOCKS)


def _moments(sample: DrawnSequences, own: Floats) -> Iterator[Finding]:
    """The mean and variance of the log-likelihood. The mean is minus the entropy of the declared law."""
    declared = _declared_entropy(sample.truth, sample)
    if declared is None:
        return
    entropy, variance = declared
    surprise, subject = -own, "mean against the entropy"
    if np.ptp(surprise) < 1e-9:
        # All are equal. A steep law has other values too, but N sequences can easily miss them.
        error = abs(float(surprise.mean()) - entropy)
        most = 30 / len(own) * max(1.0, math.log(len(own)))
        yield certain("likelihood", subject, error <= most, int(error > most), len(own))
        return
    yield from mean("likelihood", subject, surprise, entropy)
    if variance is not None:
        square = (surprise - entropy) ** 2
        yield from mean("likelihood", "variance against that of the law", square, variance)
    size = float(surprise.std())
    if size > 1e-9:
        off, blocks = surprise - entropy, _blocks(np.arange(len(own)), len(own))
        number = np.concatenate([np.bincount(block) for block in blocks]).astype(np.float64)
        total = np.concatenate([np.bincount(block, weights=off) for block in blocks])
        z, bound = total / (size * np.sqrt(number)), np.full(number.shape, float(np.abs(off).max()) / size)
        subject = "mean in blocks of the stream"
        yield from largest("likelihood", subject, z, bound, number, "mean over sequences, standard deviations")


def _declared_entropy(truth: Truth, sample: DrawnSequences) -> tuple[float, float | None] | None:
    """Mean and variance of the surprise, from the laws of the source set, the values and all other tokens. None
    unless these are declared independent and the sets can be listed. There is no variance if the size of the set
    varies and the other tokens have other laws."""
    law, values, marginals = truth.position_law, truth.value_distribution, truth.token_marginals
    if not truth.independent_values or values is None or marginals is None or law is None or isinstance(law, tuple):
        return None
    listed = listed_sets(law, sample.tokens.shape[1], varying=bool((sample.sources < 0).any()))
    if listed is None:
        return None
    sets, probability = listed
    sets, probability = sets[probability > 0], probability[probability > 0]
    sizes = (sets >= 0).sum(axis=1)
    log_p = np.log(probability)
    planted = np.zeros(len(marginals))
    order = law.order_pmf().sum(axis=0)
    planted[: len(order)] = order
    roles = np.array([role in ("background", "data", "planted") for role in sample.task.vocabulary.roles])
    others = np.where(roles, marginals - planted[:, None] * values, 0.0).clip(0)  # (T, V): neither source nor mark
    share = others.sum(axis=1)
    laws = others / np.maximum(share, 1e-300)[:, None]
    of_value, of_others = _moments_of(values), _moments_of(laws)
    expected = -float(probability @ log_p) + float(probability @ sizes) * float(of_value[0])
    expected += float(share @ of_others[0])
    # The number of other tokens may depend on the size of the set. Then all tokens must have equal entropy.
    free = share > 1e-9
    alike = (
        bool(np.ptp(np.append(of_others[0][free], of_value[0])) < 1e-9) and "cue" not in sample.task.vocabulary.roles
    )
    if np.ptp(sizes) > 0 and not alike:
        return expected, None
    variance = float(probability @ (log_p - probability @ log_p) ** 2)
    variance += float(probability @ sizes) * float(of_value[1]) + float(share @ of_others[1])
    return expected, variance


def _moments_of(law: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of -log p under p, along the last axis."""
    surprise = -np.log(np.where(law > 0, law, 1.0))
    entropy = (law * surprise).sum(axis=-1)
    return entropy, (law * (surprise - entropy[..., None]) ** 2).sum(axis=-1)
