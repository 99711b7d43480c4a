"""The checks of a certificate: each is a function from a sample to findings.

A check that does not apply to the task's declarations finds nothing.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import xlogy

from sparsity_lab.generators.findings import Finding, certain, chi_square, contingency
from sparsity_lab.generators.stream import Stream
from sparsity_lab.generators.task import Batch, NotComputable, Task, Truth

__all__ = ["Sample"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ENUMERABLE_SETS = 20_000
_BUCKETS = 8  # tokens are compared modulo this, so that no table gets too many cells
_ONE_BY_ONE = 20_000  # sequences looked at in plain Python


@dataclass(frozen=True)
class Sample:
    """The sequences a certificate looks at.

    Attributes:
        tokens: (N, T).
        targets: (M,) scored targets in row-major order, M = N for tasks with one target.
        rows: (M,) the sequence of each target.
        sources: (M, K), padded with -1.
    """

    task: Task
    truth: Truth
    seed: int
    length: int
    tokens: Ints
    targets: Ints
    rows: Ints
    sources: Ints
    position_ids: Ints | None

    @classmethod
    def draw(cls, task: Task, seed: int, sequences: int, length: int) -> "Sample":
        """Draw in slices, so that the sources of all positions never stand in memory at once."""
        parts: list[tuple[Ints, Ints, Ints, Ints, Ints | None]] = []
        for start in range(0, sequences, 8192):
            batch = task.sample(Stream(seed=seed, name="certificate"), start, min(8192, sequences - start), length)
            scored = batch.scored
            assert batch.sources is not None
            batch_ids = None if batch.position_ids is None else batch.position_ids.numpy()
            rows = start + scored.nonzero()[:, 0].numpy()
            parts.append(
                (batch.tokens.numpy(), batch.targets[scored].numpy(), rows, batch.sources[scored].numpy(), batch_ids)
            )
        tokens = np.concatenate([part[0] for part in parts])
        targets = np.concatenate([part[1] for part in parts])
        rows = np.concatenate([part[2] for part in parts])
        sources = np.concatenate([part[3] for part in parts])
        position_ids = [part[4] for part in parts if part[4] is not None]
        ids = np.concatenate(position_ids) if position_ids else None
        return cls(task, task.truth(length), seed, length, tokens, targets, rows, sources, ids)

    @cached_property
    def sizes(self) -> Ints:
        """(M,) number of sources of each target."""
        return np.asarray((self.sources >= 0).sum(axis=1))

    @cached_property
    def label_index(self) -> Ints:
        """(M,) index of each target in the declared labels; L for a target that is not declared."""
        labels = np.asarray(self.truth.labels)
        position = np.searchsorted(labels, self.targets).clip(0, len(labels) - 1)
        return np.where(labels[position] == self.targets, position, len(labels))

    @cached_property
    def source_tokens(self) -> Ints:
        """(M, K) tokens at the sources, -1 where padded."""
        gathered = self.tokens[self.rows[:, None], np.maximum(self.sources, 0)]
        return np.where(self.sources >= 0, gathered, -1)

    @cached_property
    def answers(self) -> Ints:
        """(M,) the task's own definition applied to the source tokens."""
        unique, inverse = np.unique(self.source_tokens, axis=0, return_inverse=True)
        defined = [self.task.answer(tuple(t for t in row if t >= 0)) for row in unique.tolist()]
        return np.asarray(defined, dtype=np.int64)[inverse.reshape(-1)]


def token_marginals(sample: Sample) -> Iterator[Finding]:
    """The tokens at each position against their declared probabilities."""
    marginals = sample.truth.token_marginals
    if marginals is None:
        return
    for t, probability in enumerate(marginals):
        counts = np.bincount(sample.tokens[:, t], minlength=len(probability))
        yield chi_square("token_marginals", f"position {t}", counts, probability * len(sample.tokens))


def label_balance(sample: Sample) -> Iterator[Finding]:
    """The targets against their declared probabilities."""
    declared = sample.truth.label_distribution
    if declared is not None:
        counts = np.bincount(sample.targets, minlength=len(declared))
        yield chi_square("label_balance", "targets", counts, declared * len(sample.targets))


def source_counts(sample: Sample) -> Iterator[Finding]:
    """Sources are distinct, ascending, inside the sequence, and as many as declared."""
    padded = np.where(sample.sources >= 0, sample.sources, np.iinfo(np.int64).max)
    ascending = (np.diff(padded, axis=1) > 0) | (padded[:, 1:] == np.iinfo(np.int64).max)
    wrong = ~ascending.all(axis=1) | (sample.sources >= sample.tokens.shape[1]).any(axis=1)
    yield certain("source_counts", "distinct and ascending", not wrong.any(), float(wrong.sum()))
    if sample.truth.position_law is not None:
        at_least = np.append(sample.truth.position_law.order_pmf().sum(axis=1), 0.0)
        expected = np.append(1.0, at_least[:-1]) - at_least
        counts = np.bincount(sample.sizes, minlength=len(expected))
        expected = np.where(np.abs(expected) < 1e-9, 0.0, expected)
        yield chi_square("source_counts", "number of sources", counts, expected * len(sample.sizes))


def source_places(sample: Sample) -> Iterator[Finding]:
    """The j-th smallest source against its declared law."""
    if sample.truth.position_law is None:
        return
    for j, probability in enumerate(sample.truth.position_law.order_pmf()):
        places = sample.sources[sample.sizes > j, j]
        counts = np.bincount(places, minlength=len(probability))
        share = probability / max(probability.sum(), 1e-300)
        yield chi_square("source_places", f"source {j + 1}", counts, share * len(places))


def source_sets(sample: Sample) -> Iterator[Finding]:
    """The whole source set against its declared law, where the sets can be listed."""
    law = sample.truth.position_law
    if law is None:
        return
    order = law.order_pmf()
    possible = np.flatnonzero(order.sum(axis=0) > 0).tolist()
    K = len(order)
    sizes = range(1, K + 1) if (sample.sizes < K).any() else range(K, K + 1)
    binomials = sum(len(possible) ** min(k, len(possible) - k) for k in sizes)
    if binomials > 50 * _ENUMERABLE_SETS:
        return
    sets = np.array(
        [chosen + (-1,) * (K - k) for k in sizes for chosen in itertools.combinations(possible, k)], dtype=np.int64
    ).reshape(-1, K)
    probability = law.pmf(sets)
    if (probability > 0).sum() > _ENUMERABLE_SETS:
        return
    code = (sets + 1) @ _radix(sample.tokens.shape[1] + 1, K)
    seen = (sample.sources + 1) @ _radix(sample.tokens.shape[1] + 1, K)
    order_of_codes = np.argsort(code)
    position = np.searchsorted(code[order_of_codes], seen).clip(0, len(code) - 1)
    unlisted = code[order_of_codes][position] != seen
    yield certain("source_sets", "only sets of the law", not unlisted.any(), float(unlisted.sum()))
    counts = np.bincount(order_of_codes[position[~unlisted]], minlength=len(sets))
    yield certain("source_sets", "probabilities sum to one", abs(probability.sum() - 1) < 1e-9)
    yield certain(
        "source_sets", "size of the support", int((probability > 0).sum()) == law.support_size(), law.support_size()
    )
    yield chi_square("source_sets", "sets", counts, probability * len(sample.sources))


def _radix(base: int, digits: int) -> Ints:
    return base ** np.arange(digits, dtype=np.int64)


def rule(sample: Sample) -> Iterator[Finding]:
    """The target is the rule's answer on the source tokens, but for the declared noise (exact binomial)."""
    wrong = int((sample.answers != sample.targets).sum())
    noise = sample.truth.label_noise
    test = stats.binomtest(wrong, len(sample.targets), noise)
    yield Finding("rule", "targets that differ from the rule", wrong, float(test.pvalue))


def label_noise(sample: Sample) -> Iterator[Finding]:
    """A replaced label is uniform among the others."""
    labels = sample.truth.labels
    if labels is None or len(labels) < 3 or sample.truth.label_noise == 0:
        return
    replaced = sample.answers != sample.targets
    shift = (sample.targets - sample.answers)[replaced] % len(labels)
    counts = np.bincount(shift, minlength=len(labels))
    expected = np.full(len(labels), replaced.sum() / (len(labels) - 1))
    expected[0] = 0.0
    yield chi_square("label_noise", "replacement", counts, expected)


def position_shortcut(sample: Sample) -> Iterator[Finding]:
    """No position tells more of the label than declared: the joint law of its token and the label."""
    joint = sample.truth.token_label_joint
    if joint is None:
        return
    V, L = joint.shape[1:]
    for t, probability in enumerate(joint):
        cells = np.bincount(sample.tokens[sample.rows, t] * (L + 1) + sample.label_index, minlength=V * (L + 1))
        declared = np.concatenate([probability, np.zeros((V, 1))], axis=1)
        yield chi_square("position_shortcut", f"position {t}", cells, declared.reshape(-1) * len(sample.rows))


def subset_shortcut(sample: Sample) -> Iterator[Finding]:
    """Where the rule needs all its sources, every proper subset of them is independent of the label."""
    if not sample.truth.label_free_subsets:
        return
    L = len(sample.truth.labels or ())
    for k in np.unique(sample.sizes).tolist():
        rows = sample.sizes == k
        values, labels = sample.source_tokens[rows, :k], sample.label_index[rows]
        sizes = [size for size in range(1, k) if size <= 2 or size == k - 1]
        for subset in itertools.chain.from_iterable(itertools.combinations(range(k), size) for size in sizes):
            residue = values[:, subset].sum(axis=1) % L
            yield from contingency("subset_shortcut", f"k={k}, sum of sources {subset}", residue, labels)


def source_values(sample: Sample) -> Iterator[Finding]:
    """Source tokens are independent of each other and of where they stand."""
    if not sample.truth.independent_values:
        return
    K = sample.sources.shape[1]
    for j in range(K):
        rows = sample.sizes > j
        values = sample.source_tokens[rows, j] % _BUCKETS
        # Terciles of the place: few cells, so that a slight trend shows.
        place = sample.sources[rows, j]
        tercile = np.searchsorted(np.quantile(place, [1 / 3, 2 / 3]), place)
        yield from contingency("source_values", f"source {j + 1} and its place", values, tercile)
    for i, j in itertools.combinations(range(K), 2):
        rows = sample.sizes > j
        first, second = sample.source_tokens[rows, i] % _BUCKETS, sample.source_tokens[rows, j] % _BUCKETS
        yield from contingency("source_values", f"sources {i + 1} and {j + 1}", first, second)


def background(sample: Sample) -> Iterator[Finding]:
    """Tokens that are neither sources nor marks are independent of their neighbours and of where the sources are."""
    if not sample.truth.independent_values or len(sample.rows) != len(sample.tokens):
        return
    roles = np.array([role in ("background", "data") for role in sample.task.vocabulary.roles])
    free = roles[sample.tokens]
    for j in range(sample.sources.shape[1]):
        rows = np.flatnonzero(sample.sizes > j)
        free[rows, sample.sources[rows, j]] = False
    middle = np.median(sample.sources[:, 0])
    for t in range(1, sample.tokens.shape[1] - 1):
        both = free[:, t] & free[:, t + 1]
        here = sample.tokens[:, t] % _BUCKETS
        if both.any():
            beside = sample.tokens[both, t + 1] % _BUCKETS
            yield from contingency("background", f"positions {t} and {t + 1}", here[both], beside)
        early = (sample.sources[free[:, t], 0] <= middle).astype(np.int64)
        if len(early):
            yield from contingency("background", f"position {t} and the first source", here[free[:, t]], early)


def second_answer(sample: Sample) -> Iterator[Finding]:
    """The sources found from the tokens alone are the true ones: nothing else could be taken for them."""
    count = min(_ONE_BY_ONE, len(sample.tokens))
    if len(sample.rows) != len(sample.tokens):
        return
    batch = sample.task.sample(Stream(seed=sample.seed, name="certificate"), 0, count, sample.length)
    true = [[t for t in row if t >= 0] for row in sample.sources[:count].tolist()]
    found = sample.task.observed_sources(batch.tokens)
    differing = sum(a != b for a, b in zip(true, found, strict=True))
    yield certain("second_answer", "sources seen in the tokens", differing == 0, differing)


def bayes(sample: Sample) -> Iterator[Finding]:
    """The exact predictor is normalised and reaches the declared accuracy and loss."""
    count = min(50_000, len(sample.tokens))
    batch = sample.task.sample(Stream(seed=sample.seed, name="certificate"), 0, count, sample.length)
    try:
        log_posterior = sample.task.log_posterior(batch).numpy()
    except NotComputable:
        return
    except ValueError:
        yield certain("bayes", "sequences that the predictor can read", False)
        return
    targets = batch.targets[batch.scored].numpy()
    total = np.exp(log_posterior).sum(axis=1)
    yield certain("bayes", "normalised", bool(np.abs(total - 1).max() < 1e-9), float(np.abs(total - 1).max()))
    truth, n = sample.truth, len(targets)
    best = log_posterior.max(axis=1, keepdims=True)
    is_best = np.abs(log_posterior - best) < 1e-9
    # With ties the predictor may choose any of them, so a hit counts its share.
    hits = (is_best[np.arange(n), targets] / is_best.sum(axis=1)).sum()
    if truth.bayes_accuracy is not None:
        if np.allclose(is_best.sum(axis=1), 1):
            test = stats.binomtest(round(hits), n, min(1.0, truth.bayes_accuracy))
            yield Finding("bayes", "accuracy", float(hits / n), float(test.pvalue))
        else:
            yield certain("bayes", "accuracy of a tied predictor", bool(abs(hits / n - truth.bayes_accuracy) < 0.05))
    top = np.exp(best[:, 0])
    spread = np.sqrt((top * (1 - top)).sum())
    if spread > 1e-6 and not (is_best.sum(axis=1) > 1).any():
        z = (hits - top.sum()) / spread
        yield Finding(
            "bayes", "calibration of the likeliest label", float(top.mean()), float(2 * stats.norm.sf(abs(z)))
        )
    if truth.bayes_loss is not None:
        losses = -log_posterior[np.arange(n), targets]
        if not np.isfinite(losses).all():
            yield certain("bayes", "possible targets", False, float((~np.isfinite(losses)).sum()))
        elif losses.std() < 1e-12:
            yield certain("bayes", "loss", bool(abs(losses[0] - truth.bayes_loss) < 1e-9), float(losses[0]))
        else:
            z = (losses.mean() - truth.bayes_loss) / (losses.std() / np.sqrt(n))
            yield Finding("bayes", "loss", float(losses.mean()), float(2 * stats.norm.sf(abs(z))))


def declared_levels(sample: Sample) -> Iterator[Finding]:
    """Chance follows from the label distribution, and the optimum is no worse than chance."""
    truth, labels = sample.truth, sample.truth.label_distribution
    if labels is None or truth.chance_accuracy is None or truth.chance_loss is None:
        return
    yield certain("declared_levels", "chance accuracy", bool(abs(labels.max() - truth.chance_accuracy) < 1e-9))
    entropy = float(-xlogy(labels, labels).sum())
    yield certain("declared_levels", "chance loss", abs(entropy - truth.chance_loss) < 1e-9)
    if truth.bayes_accuracy is not None and truth.bayes_loss is not None:
        ordered = (
            truth.bayes_accuracy >= truth.chance_accuracy - 1e-9 and truth.bayes_loss <= truth.chance_loss + 1e-9
        )
        yield certain("declared_levels", "optimum no worse than chance", ordered)


def position_ids(sample: Sample) -> Iterator[Finding]:
    """Coupled IDs are those of the definition, from 0 to the declared largest."""
    largest = sample.truth.largest_position_id
    if sample.position_ids is None:
        yield certain("position_ids", "none declared", largest == 0, largest)
        return
    top = int(sample.position_ids.max())
    yield certain("position_ids", "largest", top == largest and int(sample.position_ids.min()) >= 0, top)
    T = sample.tokens.shape[1]
    wrong = sum(
        sample.task.define_position_ids(tuple(t for t in row if t >= 0), T) != ids
        for row, ids in zip(sample.sources[:2000].tolist(), sample.position_ids[:2000].tolist(), strict=True)
    )
    yield certain("position_ids", "definition", wrong == 0, wrong)


def slices(sample: Sample) -> Iterator[Finding]:
    """A sequence is the same in whatever batch it is drawn."""
    stream = Stream(seed=sample.seed, name="certificate")
    count = min(1000, len(sample.tokens))
    for size in (1, 7, 64):
        start = count - size
        batch = sample.task.sample(stream, start, size, sample.length)
        same = _same(batch, sample, start)
        yield certain("slices", f"batch of {size}", same)


def _same(batch: Batch, sample: Sample, start: int) -> bool:
    rows = slice(start, start + len(batch))
    whole = (sample.rows >= start) & (sample.rows < start + len(batch))
    assert batch.sources is not None
    return (
        np.array_equal(batch.tokens.numpy(), sample.tokens[rows])
        and np.array_equal(batch.targets[batch.scored].numpy(), sample.targets[whole])
        and np.array_equal(batch.sources[batch.scored].numpy(), sample.sources[whole])
        and (batch.position_ids is None) == (sample.position_ids is None)
        and (
            batch.position_ids is None
            or sample.position_ids is None
            or np.array_equal(batch.position_ids.numpy(), sample.position_ids[rows])
        )
    )


def independence(sample: Sample) -> Iterator[Finding]:
    """Sequence i of one seed, name or length tells nothing of sequence i of another, nor of sequence i + 1."""
    count = min(50_000, len(sample.tokens) - 1)
    others = {
        "another seed": (Stream(seed=sample.seed + 1, name="certificate"), sample.length),
        "another name": (Stream(seed=sample.seed, name="certificate 2"), sample.length),
        "another length": (Stream(seed=sample.seed, name="certificate"), sample.length + 1),
    }
    pairs = {"the next sequence": (sample.tokens[1 : count + 1], sample.targets)}
    for name, (stream, length) in others.items():
        batch = sample.task.sample(stream, 0, count, length)
        pairs[name] = (batch.tokens.numpy(), batch.targets[batch.scored].numpy())
    one_target = len(sample.rows) == len(sample.tokens)
    for name, (tokens, targets) in pairs.items():
        for t in range(1, sample.tokens.shape[1] - 1):
            mine, theirs = sample.tokens[:count, t] % _BUCKETS, tokens[:count, t] % _BUCKETS
            yield from contingency("independence", f"{name}, position {t}", mine, theirs)
        if one_target:
            shifted = targets[1 : count + 1] if name == "the next sequence" else targets[:count]
            yield from contingency("independence", f"{name}, label", sample.targets[:count], shifted)
