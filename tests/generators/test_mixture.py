"""Mixture: its components, its exact predictor, and what is refused."""

import numpy as np
import pytest
import torch

from sparsity_lab.generators import (
    IGNORE,
    Majority,
    Mixture,
    NotComputable,
    Planted,
    SelectiveCopy,
    SparseMarkov,
    SparseParity,
    Stream,
    certify,
)
from sparsity_lab.settings import SettingError

KS = Mixture(tasks=(Planted(k=1), Planted(k=2), Planted(k=4)), shares=(0.2, 0.3, 0.5))


def test_each_sequence_is_that_of_its_component() -> None:
    batch = KS.sample(Stream(), 10, 3000, 12)
    which = KS.component(Stream(), 10, 3000, 12)
    planted = (batch.tokens < 2).sum(dim=1).numpy()
    assert (planted == np.array([1, 2, 4])[which]).all()
    assert batch.sources is not None
    assert ((batch.sources[:, -1] >= 0).sum(dim=1).numpy() == planted).all()
    for c, task in enumerate(KS.tasks):
        own = task.sample(Stream(), 10, 3000, 12)
        assert torch.equal(own.tokens[which == c], batch.tokens[which == c])
        assert torch.equal(own.targets[which == c], batch.targets[which == c])


def test_a_mixture_within_a_mixture_picks_for_itself() -> None:
    """Shares 1/4, 1/4, 1/2; each within six standard deviations of 4000 draws."""
    task = Mixture(tasks=(Mixture(tasks=(Planted(k=1), Planted(k=2))), Planted(k=4)))
    planted = (task.sample(Stream(), 0, 4000, 12).tokens < 2).sum(dim=1)
    counts = np.array([int((planted == k).sum()) for k in (1, 2, 4)])
    assert (abs(counts - [1000, 1000, 2000]) < 6 * np.sqrt([750, 750, 1000])).all()


def test_components_that_the_tokens_tell_have_their_mean_optimum() -> None:
    task = Mixture(tasks=(Planted(noise=0.1, k=1), Planted(noise=0.3, k=2)), shares=(0.25, 0.75))
    assert task.truth(12).bayes_accuracy == pytest.approx(0.25 * 0.9 + 0.75 * 0.7)
    assert certify(task, sequences=3000, lengths=(12,), effort="quick").passed


def test_the_posterior_weighs_what_the_tokens_do_not_tell() -> None:
    """Of one alphabet, k = 1 and k = 2 look alike: the predictor is the mean of both, by shares."""
    parts = tuple(Planted(k=k, marking="position", noise=0.1) for k in (1, 2))
    task = Mixture(tasks=parts, shares=(0.2, 0.8))
    batch = task.sample(Stream(), 0, 500, 40)
    expected = 0.2 * parts[0].log_posterior(batch).exp() + 0.8 * parts[1].log_posterior(batch).exp()
    assert torch.allclose(task.log_posterior(batch).exp(), expected, atol=1e-12)
    assert task.truth(40).bayes_accuracy is None


def test_the_posterior_by_enumeration() -> None:
    """SparseParity with k up to 2, and from 2: two planted bits are as likely under each as their laws say."""
    parts = (SparseParity(max_k=2), SparseParity(min_k=2, max_k=3))
    task = Mixture(tasks=parts, shares=(0.6, 0.4))
    batch = task.sample(Stream(), 0, 400, 6)
    two = (batch.tokens < 2).sum(dim=1) == 2
    likelihood = torch.stack([part.log_likelihood(batch) for part in parts], dim=1).exp()
    # Each: 1/2 for k, 1/C(6, 2) for the set, 2^-6 for the bits.
    assert likelihood[two].unique().tolist() == pytest.approx([0.5 / 15 / 64])
    assert certify(task, sequences=3000, lengths=(12,), effort="quick").passed
    exact = SparseParity(max_k=3).log_posterior(batch).exp()
    assert torch.allclose(task.log_posterior(batch).exp(), exact, atol=1e-12)


@pytest.mark.parametrize("task", [Planted(k=2), Planted(k=2, marking="cue"), SparseParity(max_k=2)], ids=str)
def test_likelihoods_sum_to_one(task: Planted) -> None:
    """Over all sequences of length 4 that can be written with the task's tokens."""
    small = task.replace(vocab_size=5) if isinstance(task, Planted) else task
    V = small.vocabulary.size
    inner = torch.cartesian_prod(*[torch.arange(V)] * 4)
    ends = small.sample(Stream(), 0, 1, 4).tokens[0]
    tokens = torch.cat([ends[:1].expand(len(inner), 1), inner, ends[-1:].expand(len(inner), 1)], dim=1)
    batch = type(small.sample(Stream(), 0, 1, 4))(tokens, torch.full_like(tokens, IGNORE))
    assert float(small.log_likelihood(batch).exp().sum()) == pytest.approx(1.0)


def test_mixtures_of_dense_tasks_have_no_predictor() -> None:
    task = Mixture(tasks=(SparseMarkov(), SparseMarkov(lag_seed=1)))
    with pytest.raises(NotComputable, match="targets before the last position"):
        task.log_posterior(task.sample(Stream(), 0, 2, 30))
    task = Mixture(tasks=(Planted(coupled=True, marking="position"), Planted(k=2, coupled=True, marking="position")))
    with pytest.raises(NotComputable, match="the coupled position IDs reveal more"):
        task.log_posterior(task.sample(Stream(), 0, 2, 40))


def test_chance_of_unequal_labels() -> None:
    task = Mixture(tasks=(Planted(k=2, rule=Majority()), Planted()), shares=(0.5, 0.5))
    assert task.truth(12).chance_accuracy == pytest.approx(0.5 * 0.75 + 0.5 * 0.5)
    assert certify(task, sequences=3000, lengths=(12,), effort="quick").passed


def test_refusals() -> None:
    with pytest.raises(SettingError, match="tasks: expected at least one task"):
        Mixture(tasks=())
    with pytest.raises(SettingError, match=r"tasks\[1\]: expected a task with the vocabulary of Planted"):
        Mixture(tasks=(Planted(), Planted(vocab_size=20)))
    with pytest.raises(SettingError, match=r"tasks\[1\]: expected a task with 16 positions at length"):
        Mixture(tasks=(SelectiveCopy(num_tokens=3), SelectiveCopy(num_tokens=4)))
    with pytest.raises(SettingError, match="shares: expected 2 numbers"):
        Mixture(tasks=(Planted(), Planted(k=2)), shares=(1.0,))
    with pytest.raises(SettingError, match="shares: expected positive numbers that sum to 1"):
        Mixture(tasks=(Planted(), Planted(k=2)), shares=(0.5, 0.6))
    with pytest.raises(SettingError, match=r"length: expected at least 4"):
        KS.sample(Stream(), 0, 1, 3)
