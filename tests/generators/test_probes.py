"""AssociativeRecall, Passkey, InductionHeads and SelectiveCopy: layout, laws, and mutants that only they can have."""

import numpy as np
import pytest
import torch
from generators.mutants import catches, every, mutant, rebuilt

from sparsity_lab.generators import (
    AssociativeRecall,
    Batch,
    InductionHeads,
    Passkey,
    PowerLaw,
    Recent,
    SelectiveCopy,
    Stream,
    Task,
    Uniform,
)
from sparsity_lab.settings import SettingError


def test_recall_by_hand() -> None:
    task = AssociativeRecall(num_pairs=3, vocab_size=12)
    batch = task.sample(Stream(seed=1), 0, 200, 21)
    assert batch.tokens.shape == (200, 21)
    assert batch.sources is not None
    for row in range(200):
        tokens = batch.tokens[row].tolist()
        keys, values = tokens[0:6:2], tokens[1:6:2]
        assert len(set(keys)) == 3
        assert max(keys) < 6 <= min(values)
        places = [t for t in range(6, 21) if tokens[t] in keys]
        assert sorted(tokens[t] for t in places) == sorted(keys)
        assert all(t % 2 == 0 for t in places)
        assert batch.scored[row].nonzero()[:, 0].tolist() == places
        for t in places:
            pair = keys.index(tokens[t])
            assert tokens[t + 1] == values[pair] == int(batch.targets[row, t])
            assert batch.sources[row, t].tolist() == [2 * pair, 2 * pair + 1]


def test_the_gap_of_one_pair_is_an_exact_power_law() -> None:
    """P(gap = g) = g^-alpha / sum, by hand; chi-square at 1e-6."""
    task = AssociativeRecall(num_pairs=1, vocab_size=8, gaps=PowerLaw(alpha=1.5))
    length, count = 42, 40_000
    expected = np.arange(1, 21) ** -1.5
    expected /= expected.sum()
    law = task.truth(length).target_law
    assert law is not None
    assert law.order_pmf()[0, 2::2] == pytest.approx(expected)
    gaps = (task.sample(Stream(), 0, count, length).scored.int().argmax(dim=1).numpy() - 2) // 2 + 1
    counts = np.bincount(gaps, minlength=21)[1:]
    assert ((counts - count * expected) ** 2 / (count * expected)).sum() < 65  # chi-square, 19 degrees of freedom


def test_as_many_pairs_as_keys() -> None:
    task = AssociativeRecall(num_pairs=4, vocab_size=8)
    tokens = task.sample(Stream(), 0, 500, 16).tokens
    assert (tokens[:, 0:8:2].sort(dim=1).values == torch.arange(4)).all()
    assert {tuple(row) for row in tokens[:, 0:8:2].tolist()} > {(0, 1, 2, 3), (3, 2, 1, 0)}


def test_selective_copy_by_hand() -> None:
    task = SelectiveCopy(num_tokens=3, data_vocab=4, noise_vocab=2)
    batch = task.sample(Stream(), 0, 100, 10)
    assert batch.tokens.shape == (100, 14)
    assert batch.sources is not None
    for row in range(100):
        tokens = batch.tokens[row].tolist()
        places = [t for t in range(1, 11) if tokens[t] < 4]
        answer = [tokens[t] for t in places]
        assert (tokens[0], tokens[11], tokens[12:]) == (7, 6, answer[:-1])
        assert batch.targets[row, 11:].tolist() == answer
        assert batch.sources[row, 11:, 0].tolist() == places


def test_passkey_by_hand() -> None:
    task = Passkey(num_digits=3, depth=0.5, distractors=1, filler_vocab=2)
    batch = task.sample(Stream(), 0, 300, 20)
    names = task.vocabulary.names
    assert batch.sources is not None
    starts = set()
    for row in range(300):
        words = [names[token] for token in batch.tokens[row].tolist()]
        assert (words.count("#"), words.count("!"), words.count("=")) == (1, 1, 1)
        mark = words.index("#")
        starts.add(mark)
        assert all(word.isdigit() for word in words[words.index("!") + 1 : words.index("!") + 4])
        digits = words[mark + 1 : mark + 4]
        assert [names[token] for token in batch.targets[row, 21:].tolist()] == digits
        assert batch.sources[row, 21:, 0].tolist() == [mark + 1, mark + 2, mark + 3]
    # 14 items; round(0.5 * 13) = 6 is the passkey's, and a distractor before it takes three positions more.
    assert starts == {7, 10}


@pytest.mark.parametrize("depth", [0.0, 1.0])
def test_passkey_at_either_end(depth: float) -> None:
    tokens = Passkey(num_digits=2, depth=depth).sample(Stream(), 0, 20, 30).tokens
    mark = Passkey().vocabulary.token("#")
    assert (tokens == mark).nonzero()[:, 1].unique().tolist() == [1 if depth == 0 else 28]


def test_induction_by_hand() -> None:
    for task in (InductionHeads(data_vocab=5), InductionHeads(data_vocab=5, trigger="any")):
        batch = task.sample(Stream(), 0, 300, 9)
        assert batch.sources is not None
        for row in range(300):
            *earlier, query = batch.tokens[row].tolist()
            assert earlier.count(query) == 1
            place = earlier.index(query)
            assert int(batch.targets[row, -1]) == earlier[place + 1]
            assert batch.sources[row, -1].tolist() == [place, place + 1]
        queries = set(batch.tokens[:, -1].tolist())
        assert queries == ({5} if task.trigger == "special" else {0, 1, 2, 3, 4})


def edit(task: Task, stream: Stream, start: int, count: int, length: int) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    batch = task.sample(stream, start, count, length)
    return batch, batch.tokens.clone(), every(20, start, count)


def filler_with_a_key(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    batch, tokens, rows = edit(task, stream, start, count, length)
    before = torch.cat([torch.zeros(count, 1, dtype=torch.bool), batch.scored[:, :-1]], dim=1)
    rows &= ~batch.scored[:, -1] & ~before[:, -1]
    tokens[rows, -1] = tokens[rows, 0]
    return rebuilt(tokens, batch.targets, batch.sources)


def first_asked_first(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """The first query asks for the first pair a little too often: it changes places with the one that does."""
    batch, tokens, _ = edit(task, stream, start, count, length)
    rows = every(5, start, count)
    targets, sources = batch.targets.clone(), batch.sources.clone()  # type: ignore[union-attr]
    for row in rows.nonzero()[:, 0].tolist():
        places = batch.scored[row].nonzero()[:, 0]
        first = int((tokens[row, places] == tokens[row, 0]).int().argmax())
        swap = torch.arange(len(places))
        swap[0], swap[first] = first, 0
        for part in (tokens[row], targets[row], sources[row]):
            part[places] = part[places[swap]].clone()
        tokens[row, places + 1] = targets[row, places]
    return rebuilt(tokens, targets, sources)


def values_that_follow_keys(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """In some sequences each value is the one with its key's number."""
    batch, tokens, _ = edit(task, stream, start, count, length)
    rows = every(5, start, count)
    n, half = task.num_pairs, task.vocabulary.size // 2  # type: ignore[attr-defined]
    told = torch.where(rows[:, None], tokens + half, tokens.roll(-1, dims=1))
    asked = batch.scored.clone()
    asked[:, : 2 * n : 2] = True
    tokens[:, 1:][asked[:, :-1]] = told[:, :-1][asked[:, :-1]]
    return rebuilt(tokens, torch.where(batch.scored, told, batch.targets), batch.sources)


def one_filler(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Some sequences have all filler alike."""
    batch, tokens, _ = edit(task, stream, start, count, length)
    rows = every(5, start, count)
    filler = torch.tensor([role == "background" for role in task.vocabulary.roles])[tokens]
    first = tokens.gather(1, filler.int().argmax(dim=1, keepdim=True))
    tokens = torch.where(filler & rows[:, None], first, tokens)
    return rebuilt(tokens, batch.targets, batch.sources)


def other_gaps(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    return task.replace(gaps=PowerLaw(alpha=0.8)).sample(stream, start, count, length)


def distractor_with_the_mark(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    batch, tokens, rows = edit(task, stream, start, count, length)
    other = task.vocabulary.token("!")
    tokens[rows[:, None] & (tokens == other)] = other - 1
    return rebuilt(tokens, batch.targets, batch.sources)


def distractor_with_the_digits(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """A distractor has the passkey's first digit, which so stands where it should not."""
    batch, tokens, _ = edit(task, stream, start, count, length)
    row, place = (tokens == task.vocabulary.token("!")).nonzero()[:: 2 * task.distractors].T  # type: ignore[attr-defined]
    mark = (tokens == task.vocabulary.token("#")).int().argmax(dim=1)
    tokens[row, place + 1] = tokens[row, mark[row] + 1]
    return rebuilt(tokens, batch.targets, batch.sources)


def trigger_again(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    batch, tokens, rows = edit(task, stream, start, count, length)
    tokens[rows, 1] = tokens[rows, -1]
    return rebuilt(tokens, batch.targets, batch.sources)


def deeper(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    return task.replace(locality=Recent(width=length - 2)).sample(stream, start, count, length)


RECALL, KEYS = AssociativeRecall(num_pairs=3, vocab_size=16), Passkey(num_digits=2, distractors=2)
MUTANTS = [
    ("second_answer", mutant(RECALL, filler_with_a_key)),
    ("source_places", mutant(RECALL, first_asked_first)),
    ("target_places", mutant(RECALL, other_gaps)),
    ("products", mutant(RECALL, values_that_follow_keys)),
    ("products", mutant(KEYS, one_filler)),
    ("products", mutant(SelectiveCopy(noise_vocab=5), one_filler)),
    ("second_answer", mutant(KEYS, distractor_with_the_mark)),
    ("products", mutant(KEYS, distractor_with_the_digits)),
    ("second_answer", mutant(InductionHeads(trigger="any"), trigger_again)),
    ("source_places", mutant(InductionHeads(locality=Uniform()), deeper)),
    ("source_places", mutant(SelectiveCopy(), deeper)),
]


@pytest.mark.parametrize(("check", "task"), MUTANTS, ids=[f"{check}-{i}" for i, (check, _) in enumerate(MUTANTS)])
def test_fine_mutants(check: str, task: Task) -> None:
    assert catches(check, task)


REFUSALS = [
    (lambda: AssociativeRecall(num_pairs=33), r"num_pairs: expected at most vocab_size / 2 = 32, the .* got 33"),
    (lambda: AssociativeRecall(num_pairs=0), "num_pairs: expected a whole number of at least 1, got 0"),
    (lambda: AssociativeRecall(vocab_size=9), "vocab_size: expected an even number of at least 4, got 9"),
    (lambda: AssociativeRecall(gaps=Recent(width=3)), "gaps.width: expected enough room for num_pairs=4, got 3"),
    (lambda: AssociativeRecall().sample(Stream(), 0, 1, 15), "length: expected at least 4 num_pairs = 16"),
    (lambda: Passkey(num_digits=0), "num_digits: expected a whole number of at least 1, got 0"),
    (lambda: Passkey(depth=1.5), "depth: expected a number from 0 to 1, or None, got 1.5"),
    (lambda: Passkey(distractors=-1), "distractors: expected a whole number of at least 0, got -1"),
    (lambda: Passkey(distractors=1).sample(Stream(), 0, 1, 9), "length: expected at least 10"),
    (lambda: InductionHeads(data_vocab=2), "data_vocab: expected a whole number of at least 3, got 2"),
    (lambda: InductionHeads().sample(Stream(), 0, 1, 1), "length: expected at least 2"),
    (lambda: SelectiveCopy(num_tokens=0), "num_tokens: expected a whole number of at least 1, got 0"),
    (lambda: SelectiveCopy(locality=Recent(width=3)), "locality.width: expected enough room for num_tokens=4, got 3"),
    (lambda: SelectiveCopy().sample(Stream(), 0, 1, 3), "length: expected at least num_tokens=4"),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("task", [RECALL, KEYS, InductionHeads(), SelectiveCopy()], ids=str)
def test_other_tokens_are_not_judged(task: Task) -> None:
    batch = task.sample(Stream(), 0, 3, 40)
    batch.tokens[:] = 0
    with pytest.raises(ValueError, match="not sequences of"):
        task.log_posterior(batch)
