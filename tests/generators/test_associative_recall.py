"""AssociativeRecall's dials as zoology has them: gaps, hidden answers, fillers, pairs by length; and mutants."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from generators.mutants import catches, edited, mutant
from torch import Tensor

from sparsity_lab.generators import AssociativeRecall, PowerLaw, Stream, SuccessivePower, Task, Uniform
from sparsity_lab.settings import SettingError

PUBLISHED = AssociativeRecall(
    vocab_size=64, gaps=SuccessivePower(), answers="hidden", filler="blank", tokens_per_pair=16
)


def in_some_order(law: SuccessivePower, places: tuple[int, ...], length: int) -> float:
    """Probability of a set, as the sum over the orders in which its places can be drawn."""
    weights = [(length + 1 - place) ** (law.power_a - 1) for place in range(1, length + 1)]
    total = 0.0
    for order in itertools.permutations(places):
        left, chance = sum(weights), 1.0
        for place in order:
            chance *= weights[place - 1] / left
            left -= weights[place - 1]
        total += chance
    return total


@pytest.mark.parametrize("power_a", [0.01, 1.0, -2.5, 3.0])
@pytest.mark.parametrize(("k", "length"), [(1, 6), (2, 5), (3, 7), (4, 4), (4, 6)])
def test_successive_draws_by_enumeration(power_a: float, k: int, length: int) -> None:
    law = SuccessivePower(power_a=power_a)
    sets = list(itertools.combinations(range(1, length + 1), k))
    exact = np.array([in_some_order(law, places, length) for places in sets])
    assert exact.sum() == pytest.approx(1)
    assert np.exp(law.log_pmf(np.array(sets), length)) == pytest.approx(exact, abs=1e-12)
    by_order = np.zeros((k, length))
    for places, share in zip(sets, exact, strict=True):
        by_order[range(k), np.array(places) - 1] += share
    assert law.order_pmf(k, length) == pytest.approx(by_order, abs=1e-12)
    assert law.support_size(k, length) == math.comb(length, k)


def test_successive_draws_are_drawn_by_their_law() -> None:
    """Chi-square with 34 degrees of freedom exceeds 110 once in 10^9 times."""
    law = SuccessivePower()
    drawn = Counter(map(tuple, law.draw(Stream().words("places", 7, 0, 40_000, 3), 7).tolist()))
    expected = {places: 40_000 * in_some_order(law, places, 7) for places in itertools.combinations(range(1, 8), 3)}
    assert set(drawn) <= set(expected)
    assert sum((drawn[places] - mean) ** 2 / mean for places, mean in expected.items()) < 110


def test_successive_draws_are_uniform_at_one_and_favor_far_places_less_than_a_product() -> None:
    assert SuccessivePower(power_a=1.0).order_pmf(4, 50) == pytest.approx(Uniform().order_pmf(4, 50))
    # A product of the same weights takes all k near ones more often.
    near = [law.order_pmf(8, 60).sum(axis=0)[-4:].sum() for law in (SuccessivePower(power_a=0.0), PowerLaw())]
    assert near[0] != pytest.approx(near[1], rel=0.01)


def test_published_form() -> None:
    """64 tokens hold 4 pairs, 128 hold 8; after a query stands a blank, and every other token is one too."""
    for length, n in ((64, 4), (128, 8), (130, 8)):
        assert PUBLISHED.pairs(length) == n
        batch = PUBLISHED.sample(Stream(seed=1), 0, 50, length)
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            pairs = dict(zip(tokens[: 2 * n : 2], tokens[1 : 2 * n : 2], strict=True))
            assert len(pairs) == n
            assert 0 not in pairs
            scored = {at: target for at, target in enumerate(targets) if target >= 0}
            assert {tokens[at]: target for at, target in scored.items()} == pairs
            assert all((at - 2 * n) % 2 == 0 for at in scored)
            assert all(token == 0 for at, token in enumerate(tokens) if at >= 2 * n and at not in scored)


def test_hidden_answers_are_shown_to_people_behind_their_query() -> None:
    batch = PUBLISHED.sample(Stream(), 0, 1, 64)
    views = batch.view(0)
    behind = [views[i - 1].position for i, view in enumerate(views) if view.after]
    assert behind == batch.scored[0].nonzero()[:, 0].tolist()
    assert {view.part for view in views if view.after} == {"answer"}


def test_shown_answers_are_the_same_sequences_as_ever() -> None:
    """The dials at their defaults change no token; a hidden answer changes no other one."""
    shown, hidden = (AssociativeRecall(answers=one).sample(Stream(), 0, 20, 40) for one in ("shown", "hidden"))  # type: ignore[arg-type]
    assert torch.equal(shown.targets, hidden.targets)
    following = torch.zeros_like(shown.tokens, dtype=torch.bool)
    following[:, 1:] = shown.scored[:, :-1]
    assert torch.equal(shown.tokens[~following], hidden.tokens[~following])
    assert torch.equal(shown.tokens[:, 1:][shown.scored[:, :-1]], shown.targets[shown.scored])


def test_refusals() -> None:
    for make, message in [
        (
            lambda: AssociativeRecall(tokens_per_pair=3),
            "tokens_per_pair: expected a whole number of at least 4, got 3",
        ),
        (lambda: PUBLISHED.truth(15), "length: expected from 16 to 511 for AssociativeRecall"),
        (lambda: PUBLISHED.truth(512), "length: expected from 16 to 511 for AssociativeRecall"),
        (
            lambda: AssociativeRecall(vocab_size=8, filler="blank"),
            "num_pairs: expected at most vocab_size / 2 - 1 = 3, the number of keys",
        ),
        (lambda: SuccessivePower(power_a=40.0), "power_a: expected a number from -20 to 20, got 40"),
        (lambda: AssociativeRecall(filler="any"), "filler: expected 'random' or 'blank', got 'any'"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(SettingError, match=message):
            make()


@edited
def shown_after_all(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    """In half of the sequences the first answer follows its query."""
    first = (targets >= 0).int().argmax(dim=1)
    index = torch.arange(len(tokens))[rows]
    tokens[index, first[rows] + 1] = targets[index, first[rows]]


def test_mutants() -> None:
    short = PUBLISHED.replace(tokens_per_pair=8)
    nearer = mutant(short, lambda task, *where: short.replace(gaps=PowerLaw(alpha=1.5)).sample(*where))
    assert catches("target_places", nearer)
    assert catches("token_marginals", mutant(short, shown_after_all))
    assert catches(
        "token_marginals", mutant(short, lambda task, *where: short.replace(filler="random").sample(*where))
    )
