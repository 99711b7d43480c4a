"""Decoding of adaptive sparse attention over many blocks: the same blocks as a pass over all, near-ties included."""

import copy
import ctypes
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import rotary
from kernels.trained import trained
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse, AuxiliaryOutputs
from sparsity_lab.kernels.adaptive import native
from sparsity_lab.kernels.parts.compiler import COMPILER, NEEDED, library
from sparsity_lab.settings import SettingError

B, G, D, BLOCK, NUM_BLOCKS, BUDGET = 2, 3, 64, 4, 60, 3
LENGTH = BLOCK * NUM_BLOCKS
BETAS = [(0.0, 0.0), (1.0, 0.0), (0.7, 0.4)]
SCORES = [{"beta": beta} for beta in BETAS] + [{"rank": 4}]


compiled = pytest.mark.skipif(not COMPILER, reason=f"the native form is NOT TESTED without {NEEDED}")


def decoders(kernel: AdaptiveSparse) -> list[str]:
    """What a state of the kernel may decode with, where the numbers of blocks allow the compiled form."""
    fits = COMPILER and kernel.mode == "topk" and not kernel.rho_min and not kernel.rank
    return ["auto", "native"] if fits else ["auto"]


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
    return q.squeeze(3), (blocks + 30 * across).flatten(2, 3)


def names() -> Tensor:
    """Values that name their block: coordinate j of an output is the weight of block j."""
    return torch.eye(D)[:NUM_BLOCKS].repeat_interleave(BLOCK, 0).expand(B, G, -1, -1).contiguous()


def decoded(kernel: AdaptiveSparse, q: Tensor, k: Tensor, params: Any, key_mask: Tensor | None = None) -> Any:
    """The last row by decoding in every form, and the codes of its audit."""
    state, v, auxiliary = kernel.init_state(B, G, D, LENGTH), names(), AuxiliaryOutputs()
    before = None if key_mask is None else key_mask[:, :-1]
    kernel.prefill(
        k[:, :, :-1], k[:, :, :-1], v[:, :, :-1], state=state, key_mask=before, params=params, position=None
    )
    step, outs = (q, k[:, :, -1:], v[:, :, -1:]), []
    for form in decoders(kernel):
        own = copy.deepcopy(state)
        own.implementation = form
        outs.append(kernel.decode(*step, state=own, params=params, auxiliary=auxiliary))
    return outs, auxiliary.records[0]["codes"]


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_same_blocks_at_near_ties(score: dict[str, Any]) -> None:
    """Copies that differ by rounding, or by a little more, compete for the budget. The choice is that of all rows at
    once, and of float64 rows; float32 scores would choose otherwise."""
    kernel = AdaptiveSparse(block_size=BLOCK, n_sink=1, n_local=2, k_free=BUDGET, **score)
    params, wrong = trained(kernel, G, D) if kernel.rank else None, 0
    wide = trained(kernel, G, D, torch.float64) if kernel.rank else None
    last = torch.full((B, 1), LENGTH - 1)
    for seed in range(4):
        for copies in (0, BUDGET + 3, BUDGET + 17):
            for digits in (0, 1, 2, 3, 5, 12):
                q, k = near_ties(seed, copies, digits)
                outs, codes = decoded(kernel, q, k, params)
                queries = q.expand_as(k)
                whole = kernel.audit(queries.double(), k.double(), rows=last, params=wide).codes
                case = f"{seed}, {copies}, {digits}"
                assert torch.equal(codes, whole), case
                assert torch.equal(codes, kernel.audit(queries, k, rows=last, params=params).codes), case
                for out in outs:
                    assert torch.equal(out[:, :, 0, :NUM_BLOCKS] > 0, whole[:, :, 0] > 0), case
                if not kernel.rank:
                    means = k.unflatten(2, (NUM_BLOCKS, BLOCK)).mean(3)[:, :, 1:-2] @ q.mT / D**0.5
                    best = means.squeeze(-1).topk(BUDGET, dim=-1).indices + 1
                    wrong += int((whole[:, :, 0].gather(-1, best) == 0).any())
    assert kernel.rank or wrong


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
def test_same_blocks_at_every_size(size: float, masked: bool) -> None:
    """Rows that are tiny or large beside log n, blocks with fewer keys, and blocks without."""
    for score in SCORES:
        kernel = AdaptiveSparse(block_size=BLOCK, n_sink=1, n_local=2, k_free=BUDGET, k_slack=1, **score)
        params = trained(kernel, G, D) if kernel.rank else None
        generator = torch.Generator().manual_seed(0)
        q, k = size * torch.randn(2, B, G, LENGTH, D, generator=generator)
        key_mask = None
        if masked:
            key_mask = torch.rand(B, LENGTH, generator=generator) < 0.5
            key_mask[:, 8:20] = False
            key_mask[:, [0, -1]] = True
            key_mask[:, -2 * BLOCK] = True
        for row in range(0, 20, 4):
            queries = q[:, :, row : row + 1]
            _, codes = decoded(kernel, queries, k, params, key_mask)
            last = torch.full((B, 1), LENGTH - 1)
            whole = kernel.audit(queries.expand_as(k), k, rows=last, key_mask=key_mask, params=params).codes
            assert torch.equal(codes, whole), f"{score}, row {row}"


@pytest.mark.parametrize(
    ("change", "num_kv_heads"),
    [
        ({}, 2),
        ({"block_size": 3, "n_sink": 0, "n_local": 1, "k_free": 1, "k_slack": 2, "beta": (0.5, 0.3)}, 2),
        ({"rank": 5}, 2),
        ({"k_slack": 2}, 1),
        ({"mode": "topp", "p": 0.6}, 2),
        ({"rho_min": 0.5, "k_esc": 5}, 1),
        ({"dense_len": 100}, 2),
        ({"k_free": 0}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
def test_long_decoding_is_attend(change: dict[str, Any], num_kv_heads: int, masked: bool) -> None:
    """Rotated, with parameters, padded or not, in pieces and token by token, over many blocks."""
    kernel = AdaptiveSparse(block_size=2, k_free=3).replace(**change)
    length, prompt = 140, 70
    q = 3 * random_rows(2, 2, length, D, count=1, dtype=torch.float32)[0].detach()
    k, v = (x.detach() for x in random_rows(2, num_kv_heads, length, D, count=2, seed=1, dtype=torch.float32))
    position, params = rotary(length, dtype=torch.float32, head_dim=D), trained(kernel, num_kv_heads, D)
    key_mask = torch.ones(2, length, dtype=torch.bool)
    if masked:
        key_mask[0, :17] = False
        key_mask[1, 30:45] = False
    options: dict[str, Any] = {"position": position, "params": params}
    expected = kernel.attend(q, k, v, training=False, key_mask=key_mask if masked else None, **options)
    for form in decoders(kernel):
        state, got = kernel.init_state(2, num_kv_heads, D, length, implementation=form), []
        for first, stop in ((0, 20), (20, prompt)):
            part = [x[:, :, first:stop] for x in (q, k, v)]
            mask = key_mask[:, first:stop] if masked else None
            got.append(kernel.prefill(*part, state=state, key_mask=mask, **options))
        for t in range(prompt, length):
            got.append(kernel.decode(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state, **options))
        assert_close(form, torch.cat(got, 2), expected, 1e-5)


@compiled
@pytest.mark.parametrize("value_dim", [5, 24])
def test_the_compiled_step_from_the_first_token_on(value_dim: int) -> None:
    """Sizes that no vector divides, fewer blocks than the budget, shared heads, and any number of threads."""
    kernel = AdaptiveSparse(block_size=3, n_sink=2, n_local=2, k_free=3, beta=(0.8, 0.3))
    q, k = (random_rows(2, heads, 60, 13, count=1, dtype=torch.float32)[0].detach() for heads in (4, 2))
    v = random_rows(2, 2, 60, value_dim, count=1, seed=2, dtype=torch.float32)[0].detach()
    rows = [x.double() for x in (q, k, v)]
    expected, threads, found = kernel.attend(*rows, training=False), torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        try:
            state = kernel.init_state(2, 2, 13, 60, value_dim=value_dim, implementation="native")
            steps = (kernel.decode(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state) for t in range(60))
            found.append(torch.cat(list(steps), 2))
        finally:
            torch.set_num_threads(threads)
    assert_close("output", found[0], expected, 2e-6)
    assert torch.equal(*found)


@compiled
def test_a_compiled_step_without_numbers_or_memory() -> None:
    kernel = AdaptiveSparse(block_size=2, k_free=2)
    state = kernel.init_state(1, 2, 8, 40, implementation="native")
    rows = torch.randn(1, 2, 39, 8, generator=torch.Generator().manual_seed(0))
    kernel.prefill(rows, rows, rows, state=state)
    assert kernel.decode(rows[:, :, :1] * torch.nan, *[rows[:, :, :1]] * 2, state=state).isnan().all()
    step = native._Step(**dict.fromkeys(("heads", "of_sequence", "M", "size", "local", "threads"), 1), length=2**50)
    assert library(native.SOURCE).adaptive_step(ctypes.byref(step)) == 1


@compiled
@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"mode": "topp"}, {}, "mode 'topk' without rho_min and rank"),
        ({"rho_min": 0.5}, {}, "mode 'topk' without rho_min and rank"),
        ({"rank": 2}, {}, "mode 'topk' without rho_min and rank"),
        ({}, {"dtype": torch.float64}, "rows on a CPU, float32 or less"),
        ({}, {"dtype": torch.bfloat16}, "plain rows in float32"),
        ({}, {"device": "meta"}, "plain rows in float32"),
    ],
    ids=str,
)
def test_what_the_compiled_step_refuses(change: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=f"^implementation: expected {words}"):
        AdaptiveSparse(**change).init_state(1, 2, 8, 4, implementation="native", **options)


def test_a_state_decodes_with_what_it_was_made_for() -> None:
    kernel = AdaptiveSparse(block_size=2, k_free=1)
    with pytest.raises(SettingError, match="^implementation: expected an implementation of AdaptiveSparse"):
        kernel.init_state(1, 2, 8, 4, implementation="fused")
    q, k, v = (x.detach() for x in random_rows(1, 2, 30, 8, dtype=torch.float32))
    expected = kernel.attend(q, k, v, training=False)
    for form in kernel.implementations:
        state = kernel.init_state(1, 2, 8, 30, implementation=form)
        steps = [kernel.decode(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state) for t in range(30)]
        assert_close(form, torch.cat(steps, 2), expected, 1e-5)
