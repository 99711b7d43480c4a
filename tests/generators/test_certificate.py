"""Every check of the certificate catches a mutant that breaks just its property.

Mutants of all tasks are in ``mutants``; those here are of ``Planted`` and its like, and finer. Seeds are fixed.
A correct task fails with probability 1e-6 (Bonferroni over all tests of its certificate).
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from generators.mutants import batch_dependent, every, ignores_its_stream, mutant, rebuilt, repeats_sequences
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sparsity_lab.generators import (
    AssociativeRecall,
    Batch,
    Geometric,
    InductionHeads,
    Majority,
    MultipleAddition,
    PaddedMixture,
    Planted,
    PowerLaw,
    SparseParity,
    Step,
    Stream,
    SumMod,
    Task,
    Truth,
    VariableAssignment,
    certify,
)
from sparsity_lab.generators.certify.learned import learned
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.settings import SettingError


def parts(task: Task, stream: Stream, start: int, count: int, length: int) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """Copies to be changed: batch, tokens, the one target, its sources. And the stream index decides who changes."""
    batch = task.sample(stream, start, count, length)
    assert batch.sources is not None
    return batch, batch.tokens.clone(), batch.targets.clone(), batch.sources.clone()


def biased_background(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    tokens[(tokens == 5) & every(10, start, count)[:, None]] = 6
    return rebuilt(tokens, targets, sources)


def biased_labels(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The rule holds, but some sequences of label 0 get one planted bit flipped, and label 1."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = (every(10, start, count) & (targets[:, -1] == 0)).nonzero()[:, 0]
    place = sources[rows, -1, 0]
    tokens[rows, place] = 1 - tokens[rows, place]
    targets[rows, -1] = 1
    return rebuilt(tokens, targets, sources)


def repeated_source(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = every(500, start, count).nonzero()[:, 0]
    sources[rows, -1, 1] = sources[rows, -1, 0]
    return rebuilt(tokens, targets, sources)


def fewer_sources(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """k mixed with slightly wrong shares: some sequences of k = 1 .. 4 come from k = 1 alone."""
    odd = SparseParity(min_k=1, max_k=1).sample(stream, start, count, length)
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    assert odd.sources is not None
    rows = every(10, start, count)
    tokens[rows], targets[rows] = odd.tokens[rows], odd.targets[rows]
    sources[rows] = -1
    sources[rows, :, :1] = odd.sources[rows]
    return rebuilt(tokens, targets, sources)


def another_law(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    assert isinstance(task, Planted)
    return task.replace(locality=PowerLaw(alpha=0.2)).sample(stream, start, count, length)


def paired_places(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """{2, 9} becomes {2, 10} and {3, 10} becomes {3, 9}: each source keeps its own law, the pair does not."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    for old, new in [((2, 9), (2, 10)), ((3, 10), (3, 9))]:
        rows = (every(2, start, count) & (sources[:, -1] == torch.tensor(old)).all(dim=1)).nonzero()[:, 0]
        kept, moved = tokens[rows, old[1]].clone(), tokens[rows, new[1]].clone()
        tokens[rows, old[1]], tokens[rows, new[1]] = moved, kept
        sources[rows, -1] = torch.tensor(new)
    return rebuilt(tokens, targets, sources)


def flipped_targets(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = every(1000, start, count)
    targets[rows, -1] = 1 - targets[rows, -1]
    return rebuilt(tokens, targets, sources)


def too_little_noise(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    assert isinstance(task, Planted)
    return task.replace(noise=0.17).sample(stream, start, count, length)


def one_sided_noise(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    assert isinstance(task, Planted)
    clean = task.replace(noise=0.0).sample(stream, start, count, length)
    noisy, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = noisy.targets[:, -1] != clean.targets[:, -1]
    targets[rows, -1] = (clean.targets[rows, -1] + 1) % 3
    return rebuilt(tokens, targets, sources)


def telltale_position(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Where position 5 holds token 4 or 5, which of the two it is follows the label; its marginal stays."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = (tokens[:, 5] == 4) | (tokens[:, 5] == 5)
    tokens[rows, 5] = 4 + targets[rows, -1]
    return rebuilt(tokens, targets, sources)


def two_bits_suffice(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The third planted bit is 0 more often than 1, so the first two predict the parity."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    place = sources[:, -1, 2]
    rows = (every(5, start, count) & (tokens.gather(1, place[:, None])[:, 0] == 1)).nonzero()[:, 0]
    tokens[rows, place[rows]] = 0
    targets[rows, -1] = 1 - targets[rows, -1]
    return rebuilt(tokens, targets, sources)


def like_its_first(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The second planted value follows the first a little too often; the rule still holds."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = every(15, start, count).nonzero()[:, 0]
    first, second = sources[rows, -1, 0], sources[rows, -1, 1]
    tokens[rows, second] = tokens[rows, first]
    targets[rows, -1] = (tokens.gather(1, sources[:, -1]).sum(dim=1) * 2 > 3).long()[rows]
    return rebuilt(tokens, targets, sources)


def ones_come_early(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Early first bits are 1 a little more often, late ones 0; the rule holds, and each value has its law."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = every(12, start, count).nonzero()[:, 0]
    place = sources[rows, -1, 0]
    tokens[rows, place] = (place <= length // 3).long()
    targets[rows, -1] = (tokens.gather(1, sources[:, -1]).sum(dim=1) * 2 > 3).long()[rows]
    return rebuilt(tokens, targets, sources)


def tied_places(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Sources 1 and 2 move together within pairs of places; from far, each keeps its own law."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    first, second = sources[:, -1, 0], sources[:, -1, 1]
    # Swap the second with its right neighbor where parities differ and the neighbor is background.
    right = (second + 1).clamp(max=length)
    rows = ((first % 2 != second % 2) & (right < sources[:, -1, 2]) & (right > second)).nonzero()[:, 0]
    old, new = second[rows], right[rows]
    kept = tokens[rows, old].clone()
    tokens[rows, old] = tokens[rows, new]
    tokens[rows, new] = kept
    sources[rows, -1, 1] = new
    return rebuilt(tokens, targets, sources)


def last_is_the_sum_of_two(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The last planted bit is the parity of the two before it, so a subset of the others gives the label."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    values = tokens.gather(1, sources[:, -1])
    values[:, -1] = (values[:, -2] + values[:, -3]) % 2
    tokens.scatter_(1, sources[:, -1], values)
    targets[:, -1] = values.sum(dim=1) % 2
    return rebuilt(tokens, targets, sources)


def telltale_pair(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Where positions 5 and 8 are both background, the parity of the two is the label."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = (tokens[:, 5] > 1) & (tokens[:, 5] < 8) & (tokens[:, 8] > 1) & (tokens[:, 8] < 8) & every(3, start, count)
    wrong = rows & ((tokens[:, 5] + tokens[:, 8] + targets[:, -1]) % 2 == 1)
    tokens[wrong, 8] = tokens[wrong, 8] ^ 1
    return rebuilt(tokens, targets, sources)


def telltale_neighbor(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The background token left of the first source tells its value."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    place = sources[:, -1, 0]
    index = torch.arange(count)
    rows = (place > 1) & every(5, start, count)
    left = tokens[index, place - 1]
    told = (left & ~1) | tokens[index, place]
    tokens[index[rows], place[rows] - 1] = told[rows]
    return rebuilt(tokens, targets, sources)


def noise_from_the_background(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The noise has its rate, but comes only where positions 3 and 9 have an even sum."""
    assert isinstance(task, Planted)
    clean = task.replace(noise=0.0).sample(stream, start, count, length)
    double = task.replace(noise=2 * task.noise).sample(stream, start, count, length)
    even = (clean.tokens[:, 3] + clean.tokens[:, 9]) % 2 == 0
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    targets[:, -1] = torch.where(even, double.targets[:, -1], clean.targets[:, -1])
    return rebuilt(tokens, targets, sources)


def rarely_swapped_ids(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Late in the stream, some sequences have two IDs swapped."""
    batch, tokens, targets, sources = parts(task, stream, start, count, length)
    assert batch.position_ids is not None
    ids = batch.position_ids.clone()
    rows = every(100, start, count) & (torch.arange(start, start + count) > 8000)
    ids[rows] = torch.where(ids[rows] == 1, 2, torch.where(ids[rows] == 2, 1, ids[rows]))
    return rebuilt(tokens, targets, sources, ids)


def fails_when_long(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    if length > 100:
        targets[:, -1] = 0
    return rebuilt(tokens, targets, sources)


def echoing_background(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Some background tokens repeat the one before them."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = every(12, start, count) & (tokens[:, 6] > 1) & (tokens[:, 7] > 1)
    tokens[rows, 7] = tokens[rows, 6]
    return rebuilt(tokens, targets, sources)


def background_that_knows(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Where position 9 holds token 4 or 5, which of the two tells whether the first source is early."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = ((tokens[:, 9] == 4) | (tokens[:, 9] == 5)) & every(2, start, count)
    tokens[rows, 9] = 4 + (sources[rows, -1, 0] <= length // 4).long()
    return rebuilt(tokens, targets, sources)


def unlisted_planted_token(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    rows = (every(1000, start, count) & (tokens[:, 7] > 1)).nonzero()[:, 0]
    tokens[rows, 7] = 0
    return rebuilt(tokens, targets, sources)


def shifted_ids(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    batch, tokens, targets, sources = parts(task, stream, start, count, length)
    assert batch.position_ids is not None
    ids = batch.position_ids.clone()
    rows = every(300, start, count)
    ids[rows] = ids[rows].roll(1, dims=2)
    return rebuilt(tokens, targets, sources, ids)


def drifting_law(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Up to the ten thousandth sequence places come from one law, then from another: together they are nearly as
    declared."""
    assert isinstance(task, Planted)
    near, far = (task.replace(locality=PowerLaw(alpha=alpha)) for alpha in (0.7, 1.3))
    one, other = near.sample(stream, start, count, length), far.sample(stream, start, count, length)
    late = torch.arange(start, start + count) >= 10_000
    assert one.sources is not None
    assert other.sources is not None
    return rebuilt(
        torch.where(late[:, None], one.tokens, other.tokens),
        torch.where(late[:, None], one.targets, other.targets),
        torch.where(late[:, None, None], one.sources, other.sources),
    )


class LengthParity(Stream):
    """Words that depend on whether the length is odd, not on the length."""

    def words(self, purpose: str, length: int, start: int, count: int, per_sequence: int) -> NDArray[np.uint64]:
        return super().words(purpose, length % 2, start, count, per_sequence)


def same_at_the_next_length_but_one(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    return task.sample(LengthParity(seed=stream.seed, name=stream.name), start, count, length)


def last_is_zero(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The last planted bit is 0, so all sources but one give the label."""
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    tokens.scatter_(1, sources[:, -1, -1:], 0)
    targets[:, -1] = tokens.gather(1, sources[:, -1]).sum(dim=1) % 2
    return rebuilt(tokens, targets, sources)


def lacks_its_last(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    _, tokens, targets, sources = parts(task, stream, start, count, length)
    return rebuilt(tokens, targets, sources[:, :, :-1])


def solve_without_the_last(self: Planted, tokens: tuple[int, ...]) -> tuple[Step, ...]:
    return tuple(step._replace(sources=step.sources[:-1]) for step in Planted.solve(self, tokens))


def broken_in_batches(size: range, task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Batches of some sizes come from another stream."""
    return task.sample(Stream(seed=99) if count in size else stream, start, count, length)


def misjudged_noise(self: Planted, batch: Batch) -> Tensor:
    return Planted.log_posterior(self.replace(noise=0.15), batch)


def credulous(self: InductionHeads, batch: Batch) -> Tensor:
    """Takes any tokens for a sequence of the task."""
    try:
        return InductionHeads.log_posterior(self, batch)
    except ValueError:
        return torch.full((int(batch.scored.sum()), self.vocabulary.size), -np.log(self.vocabulary.size))


def miscounted_truth(self: Planted, length: int) -> Truth:
    return dataclasses.replace(Planted.truth(self, length), k=7)


def boastful_truth(self: Planted, length: int) -> Truth:
    return dataclasses.replace(Planted.truth(self, length), chance_accuracy=0.45)


PARITY = Planted(vocab_size=10)
MUTANTS: list[tuple[str, Task]] = [
    ("token_marginals", mutant(PARITY, biased_background)),
    ("label_balance", mutant(PARITY, biased_labels)),
    ("source_counts", mutant(PARITY, repeated_source)),
    ("source_counts", mutant(SparseParity(), fewer_sources)),
    ("source_places", mutant(PARITY, another_law)),
    ("source_sets", mutant(PARITY.replace(k=2), paired_places)),
    ("rule", mutant(PARITY, flipped_targets)),
    ("rule", mutant(PARITY.replace(noise=0.2), too_little_noise)),
    ("noise", mutant(PARITY.replace(rule=SumMod(m=3), planted_vocab=3, noise=0.2), one_sided_noise)),
    ("position_shortcut", mutant(PARITY, telltale_position)),
    ("subset_shortcut", mutant(PARITY, two_bits_suffice)),
    ("source_counts", mutant(PARITY, truth=miscounted_truth)),
    ("source_sets", mutant(PARITY, tied_places)),
    ("values", mutant(PARITY.replace(k=6), last_is_the_sum_of_two)),
    ("targets", mutant(PARITY, telltale_pair)),
    ("near_sources", mutant(PARITY, telltale_neighbor)),
    ("products", mutant(PARITY.replace(noise=0.2), noise_from_the_background)),
    ("position_ids", mutant(PARITY.replace(coupled=True), rarely_swapped_ids)),
    ("products", mutant(PARITY.replace(rule=Majority()), like_its_first)),
    ("products", mutant(PARITY.replace(rule=Majority()), ones_come_early)),
    ("products", mutant(PARITY, echoing_background)),
    ("products", mutant(PARITY, background_that_knows)),
    ("second_answer", mutant(PARITY, unlisted_planted_token)),
    ("bayes", mutant(PARITY.replace(noise=0.1), log_posterior=misjudged_noise)),
    ("declared_levels", mutant(PARITY, truth=boastful_truth)),
    ("likelihood", mutant(PARITY.replace(locality=PowerLaw(alpha=1.0)), drifting_law)),
    ("position_ids", mutant(PARITY.replace(coupled=True), shifted_ids)),
    ("bayes", mutant(InductionHeads(), log_posterior=credulous)),
    ("determined", mutant(PARITY, lacks_its_last, solve=solve_without_the_last)),
    ("subset_shortcut", mutant(PARITY.replace(k=10), last_is_zero)),
    ("slices", mutant(PARITY, batch_dependent)),
    ("slices", mutant(PARITY, functools.partial(broken_in_batches, range(2, 3)))),
    ("slices", mutant(PARITY, functools.partial(broken_in_batches, range(32, 33)))),
    ("slices", mutant(PARITY, functools.partial(broken_in_batches, range(65, 1001)))),
    ("slices", mutant(PARITY, functools.partial(broken_in_batches, range(201, 202)))),
    ("streams", mutant(PARITY, ignores_its_stream)),
    ("repeats", mutant(PARITY, repeats_sequences)),
    ("streams", mutant(PARITY, same_at_the_next_length_but_one)),
]


def _first_of_each_check_is_quick(mutants: list[tuple[str, Task]]) -> list[Any]:
    checks = [check for check, _ in mutants]
    return [
        pytest.param(check, task, id=f"{check}-{i}", marks=[pytest.mark.slow] if check in checks[:i] else [])
        for i, (check, task) in enumerate(mutants)
    ]


# One mutant of each of these checks breaks just its property. What it cannot help failing along with it are checks
# that see the same counts from elsewhere: the token's marginal is part of its joint law with the label, and so on.
ALONE = {
    biased_background: {"position_shortcut", "products", "near_sources"},  # the stream's index decides
    paired_places: set(),
    flipped_targets: {"bayes"},
    one_sided_noise: set(),
    noise_from_the_background: {"targets"},
    telltale_position: {"targets", "near_sources"},
    telltale_pair: set(),
    echoing_background: {"position_shortcut", "token_marginals"},
    rarely_swapped_ids: set(),
    shifted_ids: set(),
}


@pytest.mark.parametrize(("check", "task"), _first_of_each_check_is_quick(MUTANTS))
def test_every_mutant_is_caught_by_its_check(check: str, task: Task) -> None:
    """By its own check, and where ``ALONE`` has it, by no other than those that see the same counts."""
    failed = set(certify(task, sequences=20_000, lengths=(12,), effort="quick").failed_checks)
    assert check in failed
    edit = getattr(task, "edit", None)
    assert edit not in ALONE or failed - {check} <= ALONE[edit]


def test_a_task_that_fails_only_when_long_is_caught() -> None:
    broken = mutant(PARITY, fails_when_long)
    assert certify(broken, sequences=3000, lengths=(12, 33), effort="quick").passed
    assert "rule" in certify(broken, sequences=3000, lengths=(12, 240), effort="quick").failed_checks


@pytest.mark.parametrize(
    ("task", "sequences"),
    [
        pytest.param(Planted(vocab_size=6, noise=1e-6), 100_000, marks=pytest.mark.slow),
        (Planted(vocab_size=6, noise=1e-4), 1000),
        (Planted(vocab_size=6, noise=1e-3), 5000),
        (Planted(locality=Geometric(scale=0.05)), 5000),
        (Planted(locality=PowerLaw(alpha=90.0)), 5000),
        pytest.param(Planted(vocab_size=5, locality=Geometric(scale=2.0)), 30_000, marks=pytest.mark.slow),
        pytest.param(Planted(marking="cue", k=2, locality=Geometric(scale=2.0)), 30_000, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_extreme_but_sound_tasks_pass(task: Task, sequences: int) -> None:
    """Rare noise and steep laws leave cells nearly empty; that must not be taken for an error."""
    for seed in range(2):
        certificate = certify(task, seed=seed, sequences=sequences, lengths=(12,), effort="quick")
        assert certificate.passed, certificate.frame().filter(~certificate.frame()["passed"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        AssociativeRecall(vocab_size=32, answers="hidden", filler="blank", tokens_per_pair=8),
        PaddedMixture(tasks=(MultipleAddition(num_operands=2, base=3), MultipleAddition(base=3)), power=2.0),
    ],
    ids=["order and values give a target", "sizes decide which digits there are"],
)
def test_the_network_tells_nothing_of_a_sound_task(task: Task) -> None:
    """Of each of these it once did: 30,000 sequences and 200 steps were enough."""
    sample = DrawnSequences.draw(task, 0, 30_000, task.certified_lengths[0], steps=200)
    p_values = [finding.p_value for finding in learned(sample)]
    assert len(p_values) > 4
    assert min(p_values) > 1e-6


@pytest.mark.slow
def test_p_values_of_a_sound_task_are_uniform() -> None:
    """Over 24 seeds: none fails, and p-values lie below 1 % about one time in a hundred (binomial, 1e-6)."""
    certificates = [
        certify(Planted(noise=0.1), seed=seed, sequences=4000, lengths=(12,), effort="quick") for seed in range(24)
    ]
    assert all(certificate.passed for certificate in certificates)
    p_values = np.array([f.p_value for c in certificates for _, f in c.findings if f.p_value < 1])
    assert len(p_values) > 1000
    low = int((p_values < 0.01).sum())
    assert stats.binomtest(low, len(p_values), 0.01).pvalue > 1e-6


def test_what_a_certificate_says() -> None:
    certificate = certify(PARITY, sequences=2000, lengths=(12,))
    assert "passed" in repr(certificate)
    assert certificate.frame().columns == [
        *("length", "check", "subject", "statistic", "p_value", "passed", "effect", "of")
    ]
    assert certificate.threshold == pytest.approx(1e-6 / len(certificate.findings))
    assert all("a trained network" in line for line in certificate.searched)
    broken = certify(mutant(PARITY, flipped_targets), sequences=4000, lengths=(12,), effort="quick")
    assert all("no network was trained" in line for line in broken.searched)
    assert not broken.passed
    assert "FAILED bayes, rule" in repr(broken)
    assert "FAILED" in broken._repr_html_()


@pytest.mark.parametrize(
    ("task", "length"), [(VariableAssignment(hops=2, num_names=3), 3), (VariableAssignment(num_names=9), 9)], ids=str
)
def test_a_task_without_a_next_length_passes(task: Task, length: int) -> None:
    assert certify(task, sequences=2000, lengths=(length,), effort="quick").passed


def test_too_few_sequences_are_refused() -> None:
    with pytest.raises(SettingError, match="sequences: expected a whole number of at least 1000, got 10"):
        certify(PARITY, sequences=10)


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(SettingError, match="effort: expected an effort .*, got 'quik'; did you mean 'quick'"):
        certify(PARITY, effort="quik")


def test_a_seed_may_be_negative() -> None:
    assert certify(PARITY, seed=-1, sequences=1000, lengths=(6,)).passed
