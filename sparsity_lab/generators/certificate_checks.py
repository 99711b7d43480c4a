"""Checks of what a task declares: each is a function from a sample to findings.

A check that does not apply to the task's declarations finds nothing.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import xlogy

from sparsity_lab.generators.certificate_sample import CERTIFICATE, Sample
from sparsity_lab.generators.findings import Finding, certain, chi_square, contingency
from sparsity_lab.generators.stream import Stream
from sparsity_lab.generators.task import NotComputable

__all__ = [
    "bayes",
    "declared_levels",
    "label_balance",
    "position_ids",
    "position_shortcut",
    "rule",
    "second_answer",
    "source_counts",
    "source_places",
    "source_sets",
    "subset_shortcut",
    "token_marginals",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ENUMERABLE_SETS = 60_000
_MOST_SUBSETS = 254  # all of them up to k = 8
_ONE_BY_ONE = 20_000  # sequences looked at in plain Python


def token_marginals(sample: Sample) -> Iterator[Finding]:
    """The tokens at each position against their declared probabilities."""
    marginals = sample.truth.token_marginals
    if marginals is None:
        return
    for t, probability in enumerate(marginals):
        counts = np.bincount(sample.tokens[:, t], minlength=len(probability))
        yield from chi_square("token_marginals", f"position {t}", counts, probability * len(sample.tokens))


def label_balance(sample: Sample) -> Iterator[Finding]:
    """The targets against their declared probabilities."""
    declared = sample.truth.label_distribution
    if declared is not None:
        counts = np.bincount(sample.targets, minlength=len(declared))
        yield from chi_square("label_balance", "targets", counts, declared * len(sample.targets))


def source_counts(sample: Sample) -> Iterator[Finding]:
    """Sources are distinct, ascending, inside the sequence, and as many as declared."""
    padded = np.where(sample.sources >= 0, sample.sources, np.iinfo(np.int64).max)
    ascending = (np.diff(padded, axis=1) > 0) | (padded[:, 1:] == np.iinfo(np.int64).max)
    wrong = ~ascending.all(axis=1) | (sample.sources >= sample.tokens.shape[1]).any(axis=1)
    yield certain("source_counts", "distinct and ascending", not wrong.any(), float(wrong.sum()))
    if sample.truth.k is not None:
        most = int(sample.sizes.max())
        yield certain("source_counts", "largest number of sources", most == sample.truth.k, most)
    if sample.truth.position_law is not None:
        at_least = np.append(sample.truth.position_law.order_pmf().sum(axis=1), 0.0)
        expected = np.append(1.0, at_least[:-1]) - at_least
        counts = np.bincount(sample.sizes, minlength=len(expected))
        expected = np.where(np.abs(expected) < 1e-9, 0.0, expected)
        yield from chi_square("source_counts", "number of sources", counts, expected * len(sample.sizes))


def source_places(sample: Sample) -> Iterator[Finding]:
    """The j-th smallest source against its declared law."""
    if sample.truth.position_law is None:
        return
    for j, probability in enumerate(sample.truth.position_law.order_pmf()):
        places = sample.sources[sample.sizes > j, j]
        counts = np.bincount(places, minlength=len(probability))
        share = probability / max(probability.sum(), 1e-300)
        yield from chi_square("source_places", f"source {j + 1}", counts, share * len(places))


def source_sets(sample: Sample) -> Iterator[Finding]:
    """The whole source set against its declared law, where the sets can be listed."""
    law = sample.truth.position_law
    if law is None:
        return
    order = law.order_pmf()
    possible = np.flatnonzero(order.sum(axis=0) > 0).tolist()
    K = len(order)
    sizes = range(1, K + 1) if (sample.sizes < K).any() else range(K, K + 1)
    if sum(math.comb(len(possible), k) for k in sizes) > _ENUMERABLE_SETS:
        return
    sets = np.array(
        [chosen + (-1,) * (K - k) for k in sizes for chosen in itertools.combinations(possible, k)], dtype=np.int64
    ).reshape(-1, K)
    probability = law.pmf(sets)
    code = (sets + 1) @ _radix(sample.tokens.shape[1] + 1, K)
    seen = (sample.sources + 1) @ _radix(sample.tokens.shape[1] + 1, K)
    order_of_codes = np.argsort(code)
    position = np.searchsorted(code[order_of_codes], seen).clip(0, len(code) - 1)
    unlisted = code[order_of_codes][position] != seen
    yield certain("source_sets", "only sets of the law", not unlisted.any(), float(unlisted.sum()))
    counts = np.bincount(order_of_codes[position[~unlisted]], minlength=len(sets))
    yield certain("source_sets", "probabilities sum to one", abs(probability.sum() - 1) < 1e-9)
    positive = probability[probability > 0]
    # A probability that is too small for a float is no set less.
    matches = len(positive) == law.support_size() or (len(positive) < law.support_size() and positive.min() < 1e-250)
    yield certain("source_sets", "size of the support", matches, law.support_size())
    yield from chi_square("source_sets", "sets", counts, probability * len(sample.sources))


def _radix(base: int, digits: int) -> Ints:
    return base ** np.arange(digits, dtype=np.int64)


def rule(sample: Sample) -> Iterator[Finding]:
    """The target is the rule's answer on the source tokens, but for the declared noise (exact binomial)."""
    wrong = int((sample.answers != sample.targets).sum())
    noise = sample.truth.label_noise
    test = stats.binomtest(wrong, len(sample.targets), noise)
    yield Finding("rule", "targets that differ from the rule", wrong, float(test.pvalue))


def position_shortcut(sample: Sample) -> Iterator[Finding]:
    """No position tells more of the label than declared: the joint law of its token and the label."""
    joint = sample.truth.token_label_joint
    if joint is None:
        return
    V, L = joint.shape[1:]
    for t, probability in enumerate(joint):
        cells = np.bincount(sample.tokens[sample.rows, t] * (L + 1) + sample.label_index, minlength=V * (L + 1))
        declared = np.concatenate([probability, np.zeros((V, 1))], axis=1)
        yield from chi_square("position_shortcut", f"position {t}", cells, declared.reshape(-1) * len(sample.rows))


def subset_shortcut(sample: Sample) -> Iterator[Finding]:
    """Where the rule needs all its sources, every proper subset of them is independent of the label."""
    if not sample.truth.label_free_subsets:
        return
    L = len(sample.truth.labels or ())
    for k in np.unique(sample.sizes).tolist():
        rows = sample.sizes == k
        values, labels = sample.source_tokens[rows, :k], sample.label_index[rows]
        subsets = itertools.chain.from_iterable(itertools.combinations(range(k), size) for size in range(1, k))
        for subset in itertools.islice(subsets, _MOST_SUBSETS):
            residue = values[:, subset].sum(axis=1) % L
            yield from contingency("subset_shortcut", f"k={k}, sum of sources {subset}", residue, labels)


def second_answer(sample: Sample) -> Iterator[Finding]:
    """The sources found from the tokens alone are the true ones: nothing else could be taken for them."""
    if len(sample.rows) != len(sample.tokens):
        return
    rows = slice(None, None, max(1, len(sample.tokens) // _ONE_BY_ONE))
    true = [[t for t in row if t >= 0] for row in sample.sources[rows].tolist()]
    found = sample.task.observed_sources(torch.from_numpy(sample.tokens[rows]))
    differing = sum(a != b for a, b in zip(true, found, strict=True))
    yield certain("second_answer", "sources seen in the tokens", differing == 0, differing)


def bayes(sample: Sample) -> Iterator[Finding]:
    """The exact predictor is normalised, calibrated, and has the declared accuracy and loss."""
    batch = sample.task.sample(
        Stream(seed=sample.seed, name=CERTIFICATE), 0, min(50_000, len(sample.tokens)), sample.length
    )
    try:
        log_posterior = sample.task.log_posterior(batch).numpy()
    except NotComputable:
        return
    except ValueError:
        yield certain("bayes", "sequences that the predictor can read", False)
        return
    truth, targets = sample.truth, batch.targets[batch.scored].numpy()
    posterior = np.exp(log_posterior)
    off = float(np.abs(posterior.sum(axis=1) - 1).max())
    yield certain("bayes", "normalised", off < 1e-9, off)
    impossible = float((posterior[np.arange(len(targets)), targets] == 0).sum())
    yield certain("bayes", "targets that it thinks possible", impossible == 0, impossible)
    # Of a predictor that is right, accuracy and loss are the means of its own confidence and entropy.
    top = posterior.max(axis=1)
    yield from _mean("bayes", "declared accuracy", top, truth.bayes_accuracy)
    yield from _mean("bayes", "declared loss", -xlogy(posterior, posterior).sum(axis=1), truth.bayes_loss)
    # Whether it is right: the likeliest label must come as often as it says. With ties any of them may be chosen.
    chosen = posterior.argmax(axis=1) == targets
    if np.ptp(top) < 1e-9:
        test = stats.binomtest(int(chosen.sum()), len(chosen), min(1.0, float(top[0])))
        yield Finding("bayes", "calibration", float(chosen.mean()), float(test.pvalue))
    else:
        spread = float(np.sqrt((top * (1 - top)).sum()))
        z = float(chosen.sum() - top.sum()) / max(spread, 1.0)
        yield Finding("bayes", "calibration", float(chosen.mean()), float(2 * stats.norm.sf(abs(z))))


def _mean(check: str, subject: str, values: Floats, declared: float | None) -> Iterator[Finding]:
    """The mean of a function of the tokens against its declared expectation; a computable one must be declared."""
    if declared is None:
        yield certain(check, f"{subject}: computable, so to be declared", False)
    elif np.ptp(values) < 1e-9:
        yield certain(check, subject, bool(abs(values[0] - declared) < 1e-9), float(values[0]))
    else:
        z = float((values.mean() - declared) / (values.std() / np.sqrt(len(values))))
        yield Finding(check, subject, float(values.mean()), float(2 * stats.norm.sf(abs(z))))


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
    # IDs are a function of the source set, so the definition is asked once for each set.
    T = sample.tokens.shape[1]
    sets, which = np.unique(sample.sources, axis=0, return_inverse=True)
    defined = [sample.task.define_position_ids(tuple(t for t in row if t >= 0), T) for row in sets.tolist()]
    wrong = (np.array(defined)[which.reshape(-1)] != sample.position_ids).any(axis=(1, 2))
    yield certain("position_ids", "definition", not wrong.any(), float(wrong.sum()))
