"""The first look at all blocks in float32: the very same blocks as by float64 scores of all, near-ties included."""

from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import rotary
from kernels.trained import trained
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse
from sparsity_lab.kernels.adaptive import decoding
from sparsity_lab.kernels.adaptive.shortlist import SPARE, ScoreTable
from sparsity_lab.kernels.adaptive.state import AdaptiveState
from sparsity_lab.kernels.context import Context

B, G, D, BLOCK, NUM_BLOCKS, BUDGET = 2, 3, 64, 4, 60, 3
BETAS = [(0.0, 0.0), (1.0, 0.0), (0.7, 0.4)]
SCORES = [{"beta": beta} for beta in BETAS] + [{"rank": 4}]


def near_ties(seed: int, copies: int, last_digits: int) -> tuple[Tensor, Tensor]:
    """A query, and keys in random blocks of which ``copies``, at random places, point along the query and are alike
    but for the last binary digits of their numbers. All have a large part across the query, which cancels in a score
    and leaves its rounding."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, G, 1, 1, D, generator=generator)
    blocks = torch.randn(B, G, NUM_BLOCKS, BLOCK, D, generator=generator)
    if copies:
        alike = torch.randperm(NUM_BLOCKS - 3, generator=generator)[:copies] + 1
        noise = torch.randint(-1, 2, (B, G, copies, BLOCK, D), generator=generator) * 2.0 ** (last_digits - 24)
        blocks[:, :, alike] = (blocks[:, :, alike[:1]] + 2 * q) * (1 + noise)
    across = torch.randn(B, G, 1, 1, D, generator=generator)
    across -= q * (q * across).sum(-1, keepdim=True) / q.square().sum(-1, keepdim=True)
    return q, (blocks + 30 * across).flatten(2, 3)


def filled(kernel: AdaptiveSparse, k: Tensor, key_mask: Tensor | None = None) -> AdaptiveState:
    state = kernel.init_state(B, G, D, k.shape[2])
    state.extend(k, k, key_mask)
    return state


@torch.no_grad()
def both_ways(kernel: AdaptiveSparse, q: Tensor, state: AdaptiveState) -> tuple[Tensor | None, Tensor]:
    """Which blocks are kept, by the first look and by the scores of all; sorted."""
    params = trained(kernel, G, D) if kernel.rank else None
    selector = kernel._selector(state.summaries, Context(implementation="gather", training=False, params=params))
    found = decoding._best_blocks(q, state, selector)
    expected, some = decoding._selected_blocks(q, state, selector)
    assert some is None
    return None if found is None else found.sort(-1).values, expected


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_same_blocks_at_near_ties(score: dict[str, Any]) -> None:
    """Copies that differ by rounding, or by a little more, compete for the budget: the choice is that of float64
    scores. What a few exact scores do not tell is left to all of them. A margin of nothing chooses wrongly."""
    kernel = AdaptiveSparse(block_size=BLOCK, n_sink=1, n_local=2, k_free=BUDGET, **score)
    left, wrong = {0: 0, BUDGET + 3: 0, BUDGET + SPARE + 9: 0}, 0
    cases = [(seed, copies, digits) for seed in range(6) for copies in left for digits in (0, 1, 2, 3, 5, 12)]
    for case in cases:
        q, k = near_ties(*case)
        state = filled(kernel, k)
        found, expected = both_ways(kernel, q, state)
        left[case[1]] += found is None
        assert found is None or torch.equal(found, expected), case
        state.table.largest, state.table.largest_count = torch.zeros(4), 0.0
        found, _ = both_ways(kernel, q, state)
        wrong += found is not None and not torch.equal(found, expected)
    none, few, many = left.values()
    assert none == few == 0
    assert 0 < many <= len(cases) // 3
    assert wrong >= 5


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
def test_same_blocks_at_every_size(size: float, masked: bool) -> None:
    """Rows that are tiny or large beside log n, blocks with fewer keys, and blocks without."""
    for score in SCORES:
        kernel = AdaptiveSparse(block_size=BLOCK, n_sink=1, n_local=2, k_free=BUDGET, k_slack=1, **score)
        generator = torch.Generator().manual_seed(0)
        q, k = size * torch.randn(2, B, G, NUM_BLOCKS * BLOCK, D, generator=generator)
        key_mask = None
        if masked:
            key_mask = torch.rand(B, k.shape[2], generator=generator) < 0.5
            key_mask[:, 8:20] = False
            key_mask[:, [0, -1]] = True
            key_mask[:, -2 * BLOCK] = True
        state, told = filled(kernel, k, key_mask), 0
        for row in range(20):
            found, expected = both_ways(kernel, q[:, :, row][:, :, None, None], state)
            told += found is not None
            assert found is None or torch.equal(found, expected), f"{score}, row {row}"
        # Where products vanish beside log n or overflow, all scores may have to decide.
        assert told == 20 or size not in (1.0, 1e3), f"{score}: {told}"


@pytest.mark.parametrize(
    "kernel",
    [
        AdaptiveSparse(block_size=2, k_free=3),
        AdaptiveSparse(block_size=3, n_sink=0, n_local=1, k_free=1, k_slack=2, beta=(0.5, 0.3)),
        AdaptiveSparse(block_size=2, k_free=3, rank=5),
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
def test_long_decoding_is_attend(kernel: AdaptiveSparse, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated, with parameters, padded or not, in pieces and token by token, over many more blocks than are looked at
    twice."""
    length, prompt, heads = 140, 70, 2
    q, k, v = (x.detach() for x in random_rows(2, heads, length, D, dtype=torch.float32))
    position, params = rotary(length, dtype=torch.float32, head_dim=D), trained(kernel, heads, D)
    key_mask = torch.ones(2, length, dtype=torch.bool)
    if masked:
        key_mask[0, :17] = False
        key_mask[1, 30:45] = False
    options: dict[str, Any] = {"position": position, "params": params}
    expected = kernel.attend(3 * q, k, v, training=False, key_mask=key_mask if masked else None, **options)
    state, found = kernel.init_state(2, heads, D, length), _counted(monkeypatch)
    got = []
    for first, stop in ((0, 20), (20, prompt)):
        part = [x[:, :, first:stop] for x in (3 * q, k, v)]
        mask = key_mask[:, first:stop] if masked else None
        got.append(kernel.prefill(*part, state=state, key_mask=mask, **options))
    for t in range(prompt, length):
        got.append(kernel.decode(*(x[:, :, t : t + 1] for x in (3 * q, k, v)), state=state, **options))
    assert_close("output", torch.cat(got, 2), expected, 1e-5)
    assert found == [True] * (length - prompt)


@pytest.mark.parametrize(
    ("change", "num_kv_heads", "looks"),
    [
        ({}, 2, True),
        ({"k_slack": 2}, 2, True),
        ({}, 1, False),
        ({"mode": "topp"}, 2, False),
        ({"rho_min": 0.5}, 2, False),
        ({"dense_len": 200}, 2, False),
        ({"dense_len": 20}, 2, True),
        ({"k_free": 0}, 2, False),
    ],
)
def test_which_rules_look_first(
    change: dict[str, Any], num_kv_heads: int, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = AdaptiveSparse(block_size=2, k_free=3).replace(**change)
    length = 80
    q = random_rows(1, 2, length, D, count=1, dtype=torch.float32)[0].detach()
    k, v = (x.detach() for x in random_rows(1, num_kv_heads, length, D, count=2, seed=1, dtype=torch.float32))
    expected = kernel.attend(q, k, v, training=False)
    state, found = kernel.init_state(1, num_kv_heads, D, length), _counted(monkeypatch)
    kernel.prefill(*(x[:, :, :-1] for x in (q, k, v)), state=state)
    out = kernel.decode(*(x[:, :, -1:] for x in (q, k, v)), state=state)
    assert_close("output", out, expected[:, :, -1:], 1e-5)
    assert found == [True] * looks


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Filled, call by call, with whether a first look found the blocks."""
    found: list[bool] = []
    plain = ScoreTable.best

    def counted(*arguments: Any, **options: Any) -> Tensor | None:
        best = plain(*arguments, **options)
        found.append(best is not None)
        return best

    monkeypatch.setattr(ScoreTable, "best", counted)
    return found
