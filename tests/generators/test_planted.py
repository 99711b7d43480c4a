"""Planted and SparseParity: layout, fixed sets, coupling, Bayes and refusals."""

import dataclasses

import numpy as np
import pytest
import torch

from sparsity_lab.generators import (
    IGNORE,
    Anchored,
    Batch,
    Geometric,
    Lookup,
    Majority,
    Parity,
    Planted,
    PowerLaw,
    Recent,
    SparseParity,
    Stream,
    SumMod,
    Task,
    Uniform,
    Window,
)
from sparsity_lab.settings import SettingError, from_text


def test_layout() -> None:
    task = Planted(k=2, vocab_size=8)
    batch = task.sample(Stream(), 0, 500, 10)
    assert (batch.tokens[:, 0] == task.bos).all()
    assert (batch.tokens[:, -1] == task.query).all()
    assert (batch.targets[:, :-1] == IGNORE).all()
    assert batch.sources is not None
    assert (batch.sources[:, :-1] == -1).all()
    planted = batch.tokens.gather(1, batch.sources[:, -1])
    assert torch.equal(planted.sum(dim=1) % 2, batch.targets[:, -1])
    assert ((batch.tokens[:, 1:-1] < 2).sum(dim=1) == 2).all()
    assert task.vocabulary.names == ("0", "1", "a", "b", "c", "d", "=", "BOS")
    assert len(task.vocabulary) == task.vocabulary.size == 8


@pytest.mark.parametrize("law", [Recent(width=8), PowerLaw(alpha=1.0), Geometric(scale=6.0), Uniform()], ids=str)
def test_position_marking_keeps_distances(law: Recent) -> None:
    task = Planted(marking="position", locality=law)
    sets = {length: task.sample(Stream(), 0, 1, length).sources[0, -1] for length in (32, 50, 400)}  # type: ignore[index]
    distances = {length: (length + 1 - places).tolist() for length, places in sets.items()}
    assert distances[32] == distances[50] == distances[400]
    assert len(set(distances[32])) == 3


def test_position_marking_keeps_places_of_an_anchored_set() -> None:
    task = Planted(marking="position", locality=Anchored(width=8))
    sets = [task.sample(Stream(seed=s), 0, 1, n).sources[0, -1].tolist() for s, n in [(0, 32), (5, 400)]]  # type: ignore[index]
    assert sets[0] == sets[1]
    assert max(sets[0]) <= 8


def test_position_seed_moves_the_set_and_the_stream_does_not() -> None:
    sets = {
        Planted(marking="position", position_seed=seed).sample(Stream(), 0, 1, 40).sources[0, -1] for seed in range(8)
    }  # type: ignore[index]
    assert len({tuple(places.tolist()) for places in sets}) > 4


def test_cue_stands_before_each_planted_token_and_nowhere_else() -> None:
    task = Planted(marking="cue", k=3, locality=Window(width=4))
    batch = task.sample(Stream(), 0, 2000, 9)
    assert batch.sources is not None
    cues = batch.tokens.gather(1, batch.sources[:, -1] - 1)
    assert (cues == task.cue).all()
    assert ((batch.tokens == task.cue).sum(dim=1) == 3).all()
    # In slots the law is Window(4) among 9 - 3 places.
    slots = batch.sources[:, -1] - torch.arange(1, 4)
    assert int((slots[:, -1] - slots[:, 0]).max()) == 3
    assert int(slots.max()) == 6


def test_coupled_ids_by_hand() -> None:
    task = Planted(k=2, coupled=True)
    batch = task.sample(Stream(), 0, 3, 6)
    assert batch.position_ids is not None
    assert batch.sources is not None
    for row in range(3):
        expected = [0] * 8
        for j, place in enumerate(batch.sources[row, -1].tolist()):
            expected[place] = j + 1
        expected[-1] = 3
        assert batch.position_ids[row, 0].tolist() == expected
    assert task.largest_position_id(6) == 3
    assert Planted(k=2).sample(Stream(), 0, 3, 6).position_ids is None


def test_noise_replaces_labels_at_its_rate_and_bayes_knows_it() -> None:
    task = Planted(k=2, rule=SumMod(m=4), planted_vocab=4, noise=0.3)
    batch = task.sample(Stream(), 0, 40_000, 12)
    log_posterior = task.log_posterior(batch)
    targets = batch.targets[:, -1]
    chosen = log_posterior.gather(1, targets[:, None]).exp()[:, 0]
    assert set(np.round(chosen.unique().numpy(), 12)) == {0.7, 0.1}
    assert float((chosen > 0.5).double().mean()) == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / 40_000))
    truth = task.truth(12)
    assert truth.bayes_loss == pytest.approx(-0.7 * np.log(0.7) - 0.3 * np.log(0.1))
    assert truth.chance_accuracy == pytest.approx(0.25)
    assert truth.chance_loss == pytest.approx(np.log(4))


def test_biased_rules_declare_their_chance() -> None:
    """Three values of three modulo 2: residues 2/3, 1/3, so even sums have probability (1 + (1/3)^3) / 2."""
    truth = Planted(rule=Parity(), planted_vocab=3).truth(20)
    assert truth.chance_accuracy == pytest.approx((1 + (1 / 3) ** 3) / 2)
    assert not truth.label_free_subsets
    assert Planted(k=2, rule=Majority()).truth(20).chance_accuracy == pytest.approx(0.75)


def test_arms_share_their_background() -> None:
    """The task does not enter the key, so arms of an experiment see the same background."""
    near = Planted(k=2, locality=Recent(width=4)).sample(Stream(), 0, 50, 30).tokens
    far = Planted(k=2, locality=Anchored(width=4)).sample(Stream(), 0, 50, 30).tokens
    assert torch.equal(near[:, 5:27], far[:, 5:27])


REFUSALS = [
    (lambda: Planted(k=0), "k: expected a whole number of at least 1, got 0"),
    (lambda: Planted(k="3"), "k: expected an integer, got '3'"),
    (lambda: Planted(k=4, locality=Recent(width=3)), r"locality.width: expected enough room for k=4, got 3"),
    (lambda: Planted(k=4, locality=Window(width=3)), r"locality.width: expected enough room for k=4, got 3"),
    (lambda: Planted(k=40, marking="position"), "reference_length: expected at least k=40 positions, got 32"),
    (lambda: Planted(marking="position", locality=Window(width=8)), "locality: expected a law that fixes positions"),
    (lambda: Planted(marking="places"), "marking: expected 'token', 'position' or 'cue', got 'places'"),
    (lambda: Planted(noise=0.51), r"noise: expected a number from 0 to 1 - 1/2 = 0.5, got 0.51"),
    (lambda: Planted(noise=-0.1), "noise: expected a number from 0"),
    (lambda: Planted(noise=float("nan")), "noise: expected a finite number, got nan"),
    (lambda: Planted(vocab_size=4), "vocab_size: expected a vocabulary of at least 5"),
    (lambda: Planted(rule=SumMod(m=20)), "vocab_size: expected a vocabulary of at least 22"),
    (lambda: Planted(planted_vocab=1), "planted_vocab: expected a whole number of at least 2, got 1"),
    (lambda: Planted(rule=Lookup(), planted_vocab=13, k=6), r"rule: expected a Lookup table"),
    (lambda: Planted(rule=Majority(), planted_vocab=3), "planted_vocab: expected 2"),
    (lambda: Planted(k=1, rule=Lookup(seed=0)), "rule.seed: expected a seed whose Lookup table is not constant"),
    (
        lambda: Planted(marking="cue", rule=SumMod(m=5), vocab_size=7),
        "vocab_size: expected a vocabulary of at least 8",
    ),
    (lambda: Planted(k=3_000_000, rule=Lookup(), planted_vocab=3), "rule: expected a Lookup table"),
    (lambda: Stream(seed=1.0), "seed: expected a whole number, got 1.0"),
    (lambda: Stream(seed=True), "seed: expected a whole number, got True"),
    (lambda: Planted().sample(Stream(), -1, 2, 10), "start: expected a whole number of at least 0, got -1"),
    (lambda: Planted().sample(Stream(), 0, 2.0, 10), "count: expected a whole number of at least 0, got 2.0"),
    (lambda: SparseParity(min_k=0), "min_k: expected a whole number of at least 1, got 0"),
    (lambda: SparseParity(min_k=5), "max_k: expected a whole number of at least min_k=5, got 4"),
    (lambda: Planted().sample(Stream(), 0, 1, 2), "length: expected at least 3"),
    (lambda: Planted(marking="cue").sample(Stream(), 0, 1, 5), "length: expected at least 6"),
    (lambda: SparseParity().sample(Stream(), 0, 1, 3), "length: expected at least max_k=4"),
    (lambda: from_text(Task, "Plantd(k=2)"), r"kind: expected a task .*, got 'Plantd'; did you mean 'Planted'\?"),
    (lambda: from_text(Task, "Planted(locality=Recnt())"), r"locality.kind: .* did you mean 'Recent'\?"),
    (lambda: from_text(Task, "Planted(rule=Majorty)"), r"rule.kind: .* did you mean 'Majority'\?"),
    (
        lambda: from_text(Task, "Planted(localty=Recent)"),
        r"localty: expected a field of Planted .* did you mean 'locality'",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_too_short_for_the_fixed_set() -> None:
    task = Planted(marking="position")
    with pytest.raises(SettingError, match=f"length: expected at least {task.shortest_length}"):
        task.sample(Stream(), 0, 1, task.shortest_length - 1)
    assert len(task.sample(Stream(), 0, 2, task.shortest_length)) == 2


def test_the_widest_noise_makes_chance_of_the_optimum() -> None:
    truth = Planted(noise=0.5).truth(10)
    assert truth.bayes_accuracy == truth.chance_accuracy == 0.5
    assert truth.bayes_loss == pytest.approx(np.log(2))
    assert dataclasses.asdict(Planted())["k"] == 3


def test_streams_reach_far_without_wrapping() -> None:
    far = Planted().sample(Stream(), np.int64(2**61), 2, 10)
    assert torch.equal(far.tokens, Planted().sample(Stream(), 2**61, 2, 10).tokens)
    assert not torch.equal(far.tokens, Planted().sample(Stream(), 0, 2, 10).tokens)


@pytest.mark.parametrize("marking", ["token", "position", "cue"])
def test_other_tokens_are_not_judged(marking: str) -> None:
    task = Planted(marking=marking)  # type: ignore[arg-type]
    batch = task.sample(Stream(), 0, 3, 40)
    batch.tokens[:, 1:-1] = task.vocabulary.size - 1
    with pytest.raises(ValueError, match="not sequences of"):
        task.log_posterior(batch)


def test_a_wide_window_has_room() -> None:
    assert Planted(locality=Recent(width=2**21), k=2**20 + 1, vocab_size=8).k == 2**20 + 1


def test_the_predictor_refuses_marks_out_of_place() -> None:
    """A cue that nothing can follow, and one that no planted token follows."""
    task = Planted(k=1, marking="cue")
    batch = task.sample(Stream(), 0, 1, 6)
    cue, background = task.vocabulary.token("!"), task.vocabulary.token("a")
    for place in (6, int(batch.sources[0, -1, 0])):
        tokens = batch.tokens.clone()
        tokens[0, place] = cue if place == 6 else background
        with pytest.raises(ValueError, match="not sequences of"):
            task.log_posterior(Batch(tokens, batch.targets))
