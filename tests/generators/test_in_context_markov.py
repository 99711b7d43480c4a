"""InContextMarkov: predictor and levels beside the probability of all short sequences, and mutants."""

import itertools
from math import exp, lgamma, log

import numpy as np
import pytest
import torch
from generators.mutants import catches, mutant

from sparsity_lab.generators import Batch, InContextMarkov, Stream
from sparsity_lab.settings import SettingError


def probability(x: tuple[int, ...], alpha: float) -> float:
    """Of a sequence with its transitions integrated out: a Beta function for each state's stays and switches."""

    def log_beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    steps = list(itertools.pairwise(x))
    total = log(0.5)
    for state in (0, 1):
        stays, leaves = steps.count((state, state)), steps.count((state, 1 - state))
        total += log_beta(stays + alpha, leaves + alpha) - log_beta(alpha, alpha)
    return exp(total)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 3.0])
def test_predictor_and_levels_by_enumeration(alpha: float) -> None:
    task, length = InContextMarkov(alpha=alpha), 7
    words = list(itertools.product((0, 1), repeat=length + 1))
    shares = np.array([probability(word, alpha) for word in words])
    assert shares.sum() == pytest.approx(1)
    every = torch.tensor(words)
    predicted = task.log_posterior(Batch(every[:, :-1], every[:, 1:])).exp().view(len(words), length, 2).numpy()
    for word, rows in zip(words, predicted, strict=True):
        for t, row in enumerate(rows):
            begun = [probability((*word[: t + 1], following), alpha) for following in (0, 1)]
            assert row == pytest.approx(np.array(begun) / sum(begun))
    truth = task.truth(length)
    loss = -(shares[:, None, None] * predicted * np.log(predicted)).sum(axis=(0, 2))
    assert truth.bayes_loss_by_slot == pytest.approx(loss)
    assert truth.bayes_accuracy == pytest.approx((shares[:, None] * predicted.max(axis=2)).sum(axis=0).mean())


def test_the_loss_falls_to_the_mean_entropy_of_the_transitions() -> None:
    """Each state weighed by the share of time in it. With large alpha they are known from the start, and fair."""
    loss = InContextMarkov().truth(100).bayes_loss_by_slot
    assert loss is not None
    assert (np.diff(loss) < 1e-12).all()
    assert loss[0] == pytest.approx(log(2))
    p, q = np.meshgrid(*[(np.arange(400) + 0.5) / 400] * 2)  # to leave 0, and to leave 1
    entropy = [-x * np.log(x) - (1 - x) * np.log(1 - x) for x in (p, q)]
    rate = ((q * entropy[0] + p * entropy[1]) / (p + q)).mean()
    assert rate < loss[-1] < rate + 0.03
    assert InContextMarkov(alpha=1000.0).truth(50).bayes_loss == pytest.approx(log(2), abs=1e-3)


def test_refusals() -> None:
    for make, message in [
        (lambda: InContextMarkov(alpha=0.0), "alpha: expected a number from 0.01 to 1000, got 0"),
        (lambda: InContextMarkov().truth(513), r"length: expected from 1 to 512 for InContextMarkov\(\), got 513"),
        (lambda: InContextMarkov().check_length(0), "length: expected from 1 to 512"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()
    with pytest.raises(ValueError, match="expected sequences of InContextMarkov"):
        InContextMarkov().log_posterior(Batch(torch.full((1, 3), 2), torch.zeros((1, 3), dtype=torch.int64)))


def one_chain_for_all(task: InContextMarkov, stream: Stream, start: int, count: int, length: int) -> Batch:
    """A third of the sequences repeat their first token: their transitions are no longer from the law."""
    batch = task.sample(stream, start, count, length)
    rows = np.arange(start, start + count) % 3 == 0
    tokens, targets = batch.tokens.clone(), batch.targets.clone()
    tokens[rows] = targets[rows] = tokens[rows][:, :1].expand(-1, length)
    return Batch(tokens, targets)


def counting_from_nothing(task: InContextMarkov) -> InContextMarkov:
    """A predictor with another prior."""
    other = task.replace(alpha=0.2)
    return mutant(task, log_posterior=lambda self, batch: other.log_posterior(batch))  # type: ignore[return-value]


def test_mutants() -> None:
    assert catches("bayes", mutant(InContextMarkov(), one_chain_for_all))  # type: ignore[arg-type]
    assert catches("bayes", counting_from_nothing(InContextMarkov()))
