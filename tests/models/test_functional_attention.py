"""Sparse functional attention against its definition, written as loops over all subsets."""

from itertools import combinations
from math import comb

import pytest
import torch
from torch.nn.functional import one_hot, scaled_dot_product_attention

from sparsity_lab.generators import Planted, Stream, Window
from sparsity_lab.models import FunctionalAttention
from sparsity_lab.models.functional_attention import local_subsets
from sparsity_lab.settings import SettingError


def number_of_local_subsets(length, k, width):
    return sum(comb(min(width - 1, length - a), k - 1) for a in range(1, length + 1))


@pytest.mark.parametrize(
    ("length", "k", "width"), [(9, 1, 4), (9, 2, 3), (9, 3, 5), (6, 3, 50), (3, 3, 3), (5, 2, 1)]
)
def test_local_subsets_are_those_of_the_definition(length, k, width):
    expected = [s for s in combinations(range(length), k) if s[-1] - s[0] + 1 <= width]
    found = [tuple(row) for row in local_subsets(length, k, width).tolist()]
    assert sorted(found) == expected
    assert len(found) == number_of_local_subsets(length, k, width)


def test_local_subsets_of_fifty():
    counts = len(local_subsets(50, 3, 8)), len(local_subsets(50, 3, 50))
    assert counts == (number_of_local_subsets(50, 3, 8), comb(50, 3)) == (938, 19600)
    assert counts[0] == Window(width=8).support_size(3, 50)


def tables(k, width, vocab_size, num_labels, zeros=0.5, seed=0):
    """Random A, part of it zero, and random g."""
    generator = torch.Generator().manual_seed(seed)
    shape = (width,) * (k - 1) + (vocab_size,) * k
    kernel = torch.rand(shape, generator=generator, dtype=torch.float64)
    kernel *= torch.rand(shape, generator=generator) > zeros
    values = torch.rand((vocab_size,) * k + (num_labels,), generator=generator, dtype=torch.float64)
    return kernel, values / values.sum(-1, keepdim=True)


def members(subset, X, ids):
    """(ID, token) of each member, in order of ID; None if one has no ID."""
    pairs = sorted((ids[i], i) for i in subset)
    return None if pairs[0][0] == 0 else [(place, X[i]) for place, i in pairs]


def by_loops(kernel, values, X, ids, width):
    """h(X) and the union of all sets of positive weight."""
    k = values.ndim - 1
    above, below, seen = torch.zeros(values.shape[-1], dtype=torch.float64), 0.0, set()
    for subset in combinations(range(len(X)), k):
        found = members(subset, X, ids)
        if found is None or found[-1][0] - found[0][0] + 1 > width:
            continue
        offsets = tuple(place - found[0][0] for place, _ in found[1:])
        content = tuple(token for _, token in found)
        weight = float(kernel[offsets + content])
        above, below = above + weight * values[content], below + weight
        seen |= set(subset) if weight > 0 else set()
    return (above / below if below else above), seen


@pytest.mark.parametrize(("k", "width", "length"), [(1, 1, 6), (2, 3, 9), (3, 4, 9), (2, 12, 9), (3, 9, 9)])
def test_h_is_its_definition(k, width, length):
    kernel, values = tables(k, width, 3, 2)
    X = torch.randint(3, (8, length), generator=torch.Generator().manual_seed(1))
    h = FunctionalAttention.from_tables(kernel, values)(X)
    places = list(range(1, length + 1))
    for row, tokens in zip(h, X.tolist(), strict=True):
        torch.testing.assert_close(row, by_loops(kernel, values, tokens, places, width)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("k", "width"), [(1, 1), (2, 3), (3, 3)])
def test_h_by_position_ids_is_its_definition(k, width):
    """IDs in any order, equal ones, and tokens without."""
    kernel, values = tables(k, width, 3, 2)
    generator = torch.Generator().manual_seed(2)
    X, ids = (torch.randint(size, (12, 9), generator=generator) for size in (3, 7))
    h = FunctionalAttention.from_tables(kernel, values)(X, ids)
    assert (ids == 0).any(1).sum() > 3
    for row, tokens, numbers in zip(h, X.tolist(), ids.tolist(), strict=True):
        torch.testing.assert_close(row, by_loops(kernel, values, tokens, numbers, width)[0], rtol=1e-12, atol=0)


def test_position_ids_in_order_change_nothing():
    kernel, values = tables(3, 4, 3, 2)
    model = FunctionalAttention.from_tables(kernel, values)
    X = torch.randint(3, (5, 10), generator=torch.Generator().manual_seed(3))
    ids = torch.arange(20, 30).expand(5, -1)
    torch.testing.assert_close(model(X, ids), model(X))
    assert not torch.allclose(model(X, ids * 2), model(X))


def test_one_token_at_a_time_is_a_softmax_head():
    """k = 1 and A = exp(q·k / sqrt(D))."""
    generator = torch.Generator().manual_seed(4)
    keys, query = (torch.randn(size, 8, generator=generator) for size in (5, 1))
    values = torch.rand(5, 3, generator=generator).softmax(-1)
    X = torch.randint(5, (6, 30), generator=generator)
    head = scaled_dot_product_attention(query.expand(6, 1, 8), keys[X], values[X])[:, 0]
    model = FunctionalAttention((keys @ query[0]) / 8**0.5, values.log())
    torch.testing.assert_close(model(X), head)


def test_background_outside_all_sets_of_positive_weight_may_move():
    """And tokens inside them may not, in general."""
    kernel, values = tables(2, 3, 4, 2, zeros=0.3, seed=5)
    kernel[:, 2:], kernel[:, :, 2:] = 0, 0  # tokens 2 and 3 get no weight with any other
    model = FunctionalAttention.from_tables(kernel, values)
    generator = torch.Generator().manual_seed(6)
    moved = changed = 0
    for X in torch.randint(4, (40, 10), generator=generator):
        seen = by_loops(kernel, values, X.tolist(), list(range(1, 11)), 3)[1]
        outside = [i for i in range(10) if i not in seen and X[i] >= 2]
        permuted = X.clone()
        permuted[outside] = X[outside][torch.randperm(len(outside), generator=generator)]
        torch.testing.assert_close(model(permuted[None]), model(X[None]), rtol=0, atol=0)
        moved += not torch.equal(permuted, X)
        turned = X.clone()
        turned[sorted(seen)] = X[sorted(seen)].flip(0)
        changed += not torch.allclose(model(turned[None]), model(X[None]))
    assert moved > 20
    assert changed > 20


def test_without_any_weight_there_is_no_answer():
    model = FunctionalAttention.from_tables(torch.tensor([1.0, 0.0]), torch.eye(2))
    X = torch.tensor([[0, 1], [1, 1]])
    assert model(X).tolist() == [[1, 0], [0, 0]]
    assert model(X, torch.zeros_like(X)).tolist() == [[0, 0], [0, 0]]
    model(X).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.log_kernel.grad[1] == 0


def test_zero_one_tables_are_exact():
    generator = torch.Generator().manual_seed(7)
    kernel = torch.randint(2, (3, 3, 4, 4, 4), generator=generator).float()
    values = one_hot(torch.randint(2, (4, 4, 4), generator=generator), 2).float()
    X = torch.randint(4, (20, 12), generator=generator)
    h = FunctionalAttention.from_tables(kernel, values)(X)
    for row, tokens in zip(h, X.tolist(), strict=True):
        assert torch.equal(row, by_loops(kernel, values, tokens, list(range(1, 13)), 3)[0].float())


def test_large_scores_do_not_overflow():
    log_kernel, logits = torch.tensor([300.0, 299.0]), torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    h = FunctionalAttention(log_kernel, logits)(torch.tensor([[0, 1]]))
    torch.testing.assert_close(h[0, 0], torch.tensor(1.0).sigmoid())


def test_coupled_ids_of_a_task_bring_far_tokens_together():
    """Planted tokens anywhere among 40 have IDs 1 .. k, the rest none: a kernel of width k is enough."""
    task = Planted(k=3, coupled=True)
    batch = task.sample(Stream(0), 0, 64, 40)
    parity = torch.tensor([[[(a + b + c) % 2 for c in (0, 1)] for b in (0, 1)] for a in (0, 1)])
    values = torch.full((14, 14, 14, 2), 0.5)
    values[:2, :2, :2] = one_hot(parity, 2).float()
    model = FunctionalAttention.from_tables(torch.ones(3, 3, 14, 14, 14), values)
    tokens, labels = batch.tokens[:, 1:-1], batch.targets[:, -1:]
    assert (model(tokens, batch.position_ids[:, 0, 1:-1]).gather(1, labels) == 1).all()
    assert (model(tokens).gather(1, labels) < 1).all()


def test_gradient_finds_the_pattern_and_the_rule():
    """Label: the token two places after the only 3, among random tokens 0 and 1 that look the same."""
    generator = torch.Generator().manual_seed(8)
    model = FunctionalAttention.uniform(k=2, width=3, vocab_size=4, num_labels=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(150):
        X = torch.randint(2, (32, 6), generator=generator)
        first = torch.randint(4, (32, 1), generator=generator)
        X.scatter_(1, first, 3)
        labels = X.gather(1, first + 2)
        loss = -model(X).gather(1, labels).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    used = model.log_kernel.detach()[1:].clone()
    planted = used[1, 3, :2].clone()
    used[1, 3, :2] = -torch.inf
    assert planted.min() > used.max() + 3
    assert model.value_logits.softmax(-1)[3, [0, 1], [0, 1]].min() > 0.98


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FunctionalAttention.uniform(k=4, width=8, vocab_size=2, num_labels=2), "k: expected 1 to 3"),
        (
            lambda: FunctionalAttention.uniform(k=3, width=2, vocab_size=2, num_labels=2),
            "width: expected .* 3, got 2",
        ),
        (lambda: FunctionalAttention(torch.zeros(3, 4, 5), torch.zeros(4, 4, 2)), "log_kernel: expected tables over"),
        (lambda: FunctionalAttention.from_tables(torch.tensor([-1.0]), torch.ones(1, 1)), "kernel: expected finite"),
        (lambda: FunctionalAttention.from_tables(torch.ones(1), torch.ones(1, 2)), "values: expected a distribution"),
        (
            lambda: FunctionalAttention.uniform(k=2, width=3, vocab_size=2, num_labels=2)(torch.zeros(1, 1).long()),
            "tokens: expected at least k=2 positions",
        ),
        (
            lambda: FunctionalAttention.uniform(k=2, width=3, vocab_size=2, num_labels=2)(torch.full((1, 4), 2)),
            "tokens: expected tokens 0 to 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
