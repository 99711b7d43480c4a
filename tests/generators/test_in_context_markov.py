"""InContextMarkov: predictor and levels beside the probability of all short sequences, and mutants."""

import itertools
from math import exp, lgamma, log

import numpy as np
import pytest
import torch
from generators.mutants import catches, mutant

from sparsity_lab.generators import Batch, InContextMarkov, Stream
from sparsity_lab.settings import SettingError


def probability(x: tuple[int, ...], alpha: float, states: int = 2) -> float:
    """Of a sequence with its transitions integrated out: a Dirichlet-multinomial for each state's steps."""
    steps = list(itertools.pairwise(x))
    total = -log(states)
    for state in range(states):
        counts = [steps.count((state, following)) for following in range(states)]
        total += lgamma(states * alpha) - lgamma(states * alpha + sum(counts))
        total += sum(lgamma(alpha + count) - lgamma(alpha) for count in counts)
    return exp(total)


@pytest.mark.parametrize(
    ("alpha", "states", "length"), [(1.0, 2, 7), (0.5, 2, 7), (3.0, 2, 7), (1.0, 3, 4), (0.5, 4, 3)]
)
def test_predictor_and_levels_by_enumeration(alpha: float, states: int, length: int) -> None:
    task = InContextMarkov(alpha=alpha, num_states=states)
    words = list(itertools.product(range(states), repeat=length + 1))
    shares = np.array([probability(word, alpha, states) for word in words])
    assert shares.sum() == pytest.approx(1)
    every = torch.tensor(words)
    predicted = task.log_posterior(Batch(every[:, :-1], every[:, 1:])).exp().view(len(words), length, -1).numpy()
    for word, rows in zip(words, predicted, strict=True):
        for t, row in enumerate(rows):
            begun = [probability((*word[: t + 1], following), alpha, states) for following in range(states)]
            assert row == pytest.approx(np.array(begun) / sum(begun))
    truth = task.truth(length)
    if states > 2:
        assert truth.bayes_accuracy is None
        return
    loss = -(shares[:, None, None] * predicted * np.log(predicted)).sum(axis=(0, 2))
    assert truth.bayes_loss_by_slot == pytest.approx(loss)
    assert truth.bayes_accuracy == pytest.approx((shares[:, None] * predicted.max(axis=2)).sum(axis=0).mean())


@pytest.mark.parametrize(("alpha", "states"), [(1.0, 2), (0.5, 3), (1.0, 3)])
def test_sampled_sequences_have_these_probabilities(alpha: float, states: int) -> None:
    task, count = InContextMarkov(alpha=alpha, num_states=states), 40_000
    batch = task.sample(Stream(seed=5), 0, count, 3)
    words = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1)
    seen = np.bincount((words @ (states ** torch.arange(3, -1, -1))).numpy(), minlength=states**4)
    expected = count * np.array(
        [probability(word, alpha, states) for word in itertools.product(range(states), repeat=4)]
    )
    # Chi-square with at most 80 degrees of freedom exceeds 170 once in 10^8 times.
    assert ((seen - expected) ** 2 / expected).sum() < 170


def test_long_sequences_have_no_declared_optimum() -> None:
    assert InContextMarkov().truth(512).bayes_loss is not None
    assert InContextMarkov().truth(4096).bayes_loss is None
    assert InContextMarkov(num_states=8).sample(Stream(), 0, 2, 4096).tokens.max() == 7


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
        (lambda: InContextMarkov(num_states=9), "num_states: expected from 2 to 8, got 9"),
        (lambda: InContextMarkov().truth(4097), r"length: expected from 1 to 4096 for InContextMarkov\(\), got 4097"),
        (lambda: InContextMarkov().check_length(0), "length: expected from 1 to 4096"),
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
    assert catches("bayes", counting_from_nothing(InContextMarkov(num_states=4)))
