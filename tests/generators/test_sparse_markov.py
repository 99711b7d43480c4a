"""SparseMarkov: its rule, its floor, and mutants that only a dense task can have."""

import numpy as np
import pytest
import torch
from generators.mutants import catches, every, mutant, rebuilt

from sparsity_lab.generators import Batch, Geometric, Recent, SparseMarkov, Stream, Task, Uniform, Window
from sparsity_lab.settings import SettingError

TASK = SparseMarkov(k=2, noise=0.2, vocab_size=5)


def test_every_token_is_the_sum_of_its_sources_but_for_the_noise() -> None:
    batch = TASK.sample(Stream(), 0, 2000, 40)
    x = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1)
    assert torch.equal(batch.targets, x[:, 1:])
    longest = TASK.lags[-1]
    sums = torch.stack([sum(x[:, i - lag] for lag in TASK.lags) % 5 for i in range(longest, 41)], dim=1)
    noise = (x[:, longest:] - sums) % 5
    counts = np.bincount(noise.flatten().numpy(), minlength=5)
    expected = noise.numel() * np.array([0.8, 0.05, 0.05, 0.05, 0.05])
    assert ((counts - expected) ** 2 / expected).sum() < 35  # chi-square, 4 degrees of freedom, 1e-6
    assert batch.sources is not None
    assert (batch.sources[:, : longest - 1] == -1).all()
    assert batch.sources[0, longest - 1].tolist() == sorted(longest - lag for lag in TASK.lags)


def test_the_floor() -> None:
    truth = TASK.truth(50)
    rate = -0.8 * np.log(0.8) - 0.2 * np.log(0.05)
    assert pytest.approx(rate) == TASK.entropy_rate
    free = TASK.lags[-1] - 1
    assert truth.bayes_loss_by_slot is not None
    assert truth.bayes_loss_by_slot.tolist() == pytest.approx([np.log(5)] * free + [rate] * (50 - free))
    assert truth.bayes_loss == pytest.approx((free * np.log(5) + (50 - free) * rate) / 50)
    batch = TASK.sample(Stream(), 0, 4000, 50)
    loss = -TASK.log_posterior(batch).gather(1, batch.targets.reshape(-1, 1)).reshape(4000, 50)
    seen = loss[:, free:].mean(dim=1)
    assert float(seen.mean()) == pytest.approx(rate, abs=5 * float(seen.std()) / np.sqrt(4000))


def test_lags_come_from_their_own_seed_and_law() -> None:
    assert len({SparseMarkov(k=3, locality=Uniform(), max_lag=20, lag_seed=seed).lags for seed in range(20)}) > 15
    assert all(SparseMarkov(k=2, locality=Recent(width=3), lag_seed=seed).lags[-1] <= 3 for seed in range(20))
    assert SparseMarkov(k=8, max_lag=8).lags == tuple(range(1, 9))


def clinging_noise(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Noise comes with its rate, but in pairs."""
    assert isinstance(task, SparseMarkov)
    words = stream.words("clinging", length, start, count, length + 1)
    x = np.zeros((count, length + 1), dtype=np.int64)
    noisy = (words[:, ::2] % 100 < 100 * task.noise).repeat(2, axis=1)[:, : length + 1]
    shift = 1 + (words // 128 % (task.vocab_size - 1)).astype(np.int64)
    for i in range(length + 1):
        if i < task.lags[-1]:
            x[:, i] = words[:, i] // 128 % task.vocab_size
        else:
            x[:, i] = (sum(x[:, i - lag] for lag in task.lags) + noisy[:, i] * shift[:, i]) % task.vocab_size
    tokens = torch.from_numpy(x)
    return rebuilt(tokens[:, :-1], tokens[:, 1:], task.sample(stream, start, count, length).sources)


def made(task: SparseMarkov, stream: Stream, length: int, start: int, count: int, change: str) -> Batch:
    """The process step by step, with one thing changed that no pair of neighbors shows."""
    words = stream.words("made", length, start, count, 3 * (length + 1)) >> np.uint64(11)
    words = words.reshape(count, length + 1, 3)
    unit = words[:, :, 0] * 2.0**-53
    x, shift = (words[:, :, 1] % task.vocab_size).astype(np.int64), 1 + words[:, :, 2] % (task.vocab_size - 1)
    noisy, longest = unit < task.noise, task.lags[-1]
    bystander = next(j for j in range(1, longest) if j not in task.lags)
    if change == "beginning":
        x[:, 2] = (x[:, 0] + x[:, 1]) % task.vocab_size
    for i in range(longest, length + 1):
        if change == "far noise" and i % 4 >= 2:
            noisy[:, i] = noisy[:, i - 2]
        if change == "noise by a bystander":
            noisy[:, i] = (unit[:, i] < 2 * task.noise) & (x[:, i - bystander] % 2 == 0)
        sums = sum(x[:, i - lag] for lag in task.lags)
        x[:, i] = (sums + noisy[:, i] * shift[:, i].astype(np.int64)) % task.vocab_size
    tokens = torch.from_numpy(x)
    return rebuilt(tokens[:, :-1], tokens[:, 1:], task.sample(stream, start, count, length).sources)


@pytest.mark.parametrize(
    ("check", "change"),
    [("products", "far noise"), ("bystanders", "noise by a bystander"), ("products", "beginning"), ("", "nothing")],
)
def test_what_only_the_whole_past_shows(check: str, change: str) -> None:
    task = SparseMarkov(noise=0.15)
    broken = mutant(task, lambda task, stream, start, count, length: made(task, stream, length, start, count, change))  # type: ignore[arg-type]
    assert catches(check, broken) if check else not (catches("products", broken) or catches("bystanders", broken))


def more_noise(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    return task.replace(noise=0.23).sample(stream, start, count, length)


def another_lag(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Some sequences come from a process with other lags."""
    batch = task.sample(stream, start, count, length)
    other = task.replace(locality=Recent(width=2)).sample(stream, start, count, length)
    rows = every(10, start, count)[:, None]
    tokens, targets = torch.where(rows, other.tokens, batch.tokens), torch.where(rows, other.targets, batch.targets)
    return rebuilt(tokens, targets, batch.sources)


def biased_beginning(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    batch = task.sample(stream, start, count, length)
    tokens = batch.tokens.clone()
    tokens[every(10, start, count), 0] = 0
    return rebuilt(tokens, batch.targets, batch.sources)


MUTANTS = [
    ("products", mutant(TASK, clinging_noise)),
    ("rule", mutant(TASK, more_noise)),
    ("bayes", mutant(TASK, more_noise)),
    ("rule", mutant(TASK, another_lag)),
    ("token_marginals", mutant(TASK, biased_beginning)),
]


@pytest.mark.parametrize(("check", "task"), MUTANTS, ids=[f"{check}-{i}" for i, (check, _) in enumerate(MUTANTS)])
def test_fine_mutants(check: str, task: Task) -> None:
    assert catches(check, task)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseMarkov(k=17), "k: expected at most max_lag=16, got 17"),
        (lambda: SparseMarkov(noise=0.9), "noise: expected a number from 0 to 1 - 1/8, got 0.9"),
        (
            lambda: SparseMarkov(locality=Window()),
            "locality: expected a law over distances, such as PowerLaw, got 'Window'",
        ),
        (lambda: SparseMarkov(k=4, locality=Recent(width=3)), "locality.width: expected enough room for k=4, got 3"),
        (lambda: SparseMarkov(vocab_size=1), "vocab_size: expected a whole number of at least 2, got 1"),
        (lambda: SparseMarkov(locality=Geometric(scale=1e9)).sample(Stream(), 0, 1, 1), "length: expected at least"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()  # type: ignore[operator]
