"""Needles: read by hand from the tokens' names, laws by enumeration, and mutants."""

import itertools

import numpy as np
import pytest
import torch
from generators.mutants import catches, edited, mutant
from torch import Tensor

from sparsity_lab.generators import Batch, Needles, Stream, Task
from sparsity_lab.settings import SettingError

MANY = Needles(num_keys=3, values_per_key=2, key_vocab=5, value_vocab=7, filler_vocab=3)


@pytest.mark.parametrize("task", [Needles(), MANY, Needles(num_keys=1, key_vocab=1)], ids=str)
def test_the_answers_are_the_values_behind_the_key_in_their_order(task: Needles) -> None:
    n, m, length = task.num_keys, task.values_per_key, 2 * task.num_keys * task.values_per_key + 9
    batch = task.sample(Stream(seed=4), 0, 200, length)
    assert batch.sources is not None
    for tokens, targets, sources in zip(
        batch.tokens.tolist(), batch.targets.tolist(), batch.sources.tolist(), strict=True
    ):
        names = [task.vocabulary.names[token] for token in tokens]
        assert (names[0], names[length + 2]) == ("BOS", "=")
        needles = [(t, names[t]) for t in range(1, length + 1) if names[t][0] == "k"]
        assert len({key for _, key in needles}) == n
        own = [t for t, key in needles if key == names[length + 1]]
        assert len(own) == m
        answers = [task.vocabulary.names[targets[length + 2 + j]] for j in range(m)]
        assert answers == [names[t + 1] for t in own]
        assert names[length + 3 :] == answers[:-1]
        assert [sources[length + 2 + j] for j in range(m)] == [[t, t + 1, length + 1] for t in own]


def test_laws_by_enumeration() -> None:
    """Two needles of one key and two of another among six items: each set, and each share of it, as likely."""
    task = Needles(num_keys=2, values_per_key=2, key_vocab=3, value_vocab=2, filler_vocab=2)
    length = 10
    truth = task.truth(length)
    assert isinstance(truth.position_law, tuple)
    expected = np.zeros((2, task.sequence_length(length)))
    cases = list(itertools.product(itertools.combinations(range(6), 4), itertools.combinations(range(4), 2)))
    for items, own in cases:
        for j, r in enumerate(own):
            expected[j, 1 + items[r] + r] += 1 / len(cases)
    for law, first in zip(truth.position_law, expected, strict=True):
        assert law.order_pmf()[0] == pytest.approx(first)
        assert law.order_pmf()[1] == pytest.approx(np.append(0.0, first[:-1]))
        assert law.order_pmf()[2][length + 1] == pytest.approx(1.0)
    marginals = truth.token_marginals
    assert marginals is not None
    assert marginals.sum(axis=1) == pytest.approx(np.ones(len(marginals)))


def test_refusals() -> None:
    for make, message in [
        (lambda: Needles(num_keys=20), "num_keys: expected at most key_vocab = 16, got 20"),
        (lambda: Needles(values_per_key=0), "values_per_key: expected a whole number of at least 1, got 0"),
        (lambda: Needles(key_vocab=5000), "key_vocab: expected at most 4096, got 5000"),
        (lambda: MANY.truth(11), "length: expected at least 12 for Needles"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def test_other_tokens_are_refused() -> None:
    for place, name in ((3, "="), (-3, "w0"), (-2, "v1")):
        batch = MANY.sample(Stream(), 0, 5, 20)
        batch.tokens[2, place] = MANY.vocabulary.token(name)
        with pytest.raises(ValueError, match="expected sequences of Needles"):
            MANY.log_posterior(Batch(batch.tokens, batch.targets))
    with pytest.raises(ValueError, match="needles"):
        MANY.draws(torch.zeros((1, 24), dtype=torch.int64).numpy(), "train")


@edited
def values_of_another_key(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """The first needle of all has the value that is answered, in half of the sequences."""
    assert isinstance(task, Needles)
    is_key = (tokens >= task.value_vocab) & (tokens < task.value_vocab + task.key_vocab)
    first = is_key.int().argmax(dim=1)
    index = torch.arange(len(tokens))[rows]
    tokens[index, first[rows] + 1] = targets[index, -1]


@edited
def last_first(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    """The answers come in the opposite order."""
    targets[rows, -2:] = targets[rows, -2:].flip(1)
    tokens[rows, -1] = targets[rows, -2]


def test_mutants() -> None:
    assert catches("products", mutant(MANY, values_of_another_key)) or catches(
        "targets", mutant(MANY, values_of_another_key)
    )
    assert catches("rule", mutant(MANY, last_first))
