"""Re-weighting after other kernels: its formula by plain loops, both tiled forms, which keys count, refusals."""

import math

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import cut_tiles, make_position, padding
from torch import Tensor

from sparsity_lab.kernels import (
    LSSA,
    LSSAR,
    AdaptiveSparse,
    Kernel,
    NormalizedActivation,
    ReLUAttention,
    Reweighted,
    ShiftedSparse,
    Sigmoid,
    SlidingWindow,
    Softmax,
    SSMax,
)
from sparsity_lab.settings import SettingError


def by_loops(weights: Tensor, seen: list[list[list[int]]], p: float) -> Tensor:
    """Stage 2 of (B, H, T, T) weights, row by row; ``seen`` is the keys of each row of each sequence."""
    result = torch.zeros_like(weights)
    for b, h, i in torch.cartesian_prod(*(torch.arange(size) for size in weights.shape[:3])).tolist():
        keys = seen[b][i]
        total = sum(float(weights[b, h, i, j]) for j in keys)
        if total == 0:
            continue
        n, o = len(keys), 0 if len(keys) <= 3 else 1
        x = {j: max(n * float(weights[b, h, i, j]) / total - o, 0.0) ** p for j in keys}
        for j in keys:
            result[b, h, i, j] = x[j] / sum(x.values())
    return result


def all_before(length: int, key_mask: Tensor | None = None) -> list[list[list[int]]]:
    masks = torch.ones(2, length, dtype=torch.bool) if key_mask is None else key_mask
    return [[[j for j in range(i + 1) if mask[j]] for i in range(length)] for mask in masks]


@pytest.mark.parametrize(
    "base", [Softmax(), Sigmoid(), ReLUAttention(), NormalizedActivation(phi="sigmoid")], ids=str
)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
def test_formula_by_loops(base: Kernel, masked: bool) -> None:
    """Weights of any sum: sigmoid weights are divided by it, and a row of zeros stays."""
    T = 9
    q, k = (x.detach() for x in random_rows(2, 2, T, 8, count=2))
    key_mask = padding(T) if masked else None
    for p in (3.0, 2.5):
        got = Reweighted(base=base, p=p).weights(q, k, key_mask=key_mask)
        expected = by_loops(base.weights(q, k, key_mask=key_mask), all_before(T, key_mask), p)
        assert_close("weights", got, expected, 1e-11)


def test_only_keys_in_the_window_count() -> None:
    """n_i of a window is at most its width, and its sinks."""
    T, width, sinks = 15, 4, 1
    base = SlidingWindow(width=width, sinks=sinks)
    q, k = (x.detach() for x in random_rows(2, 2, T, 8, count=2))
    key_mask = padding(T)
    seen = [
        [[j for j in keys if j in keys[:sinks] or j > i - width] for i, keys in enumerate(rows)]
        for rows in all_before(T, key_mask)
    ]
    assert max(len(keys) for rows in seen for keys in rows) == width + sinks
    got = Reweighted(base=base, p=3).weights(q, k, key_mask=key_mask)
    weights = base.weights(q, k, key_mask=key_mask)
    assert_close("weights", got, by_loops(weights, seen, 3), 1e-11)
    # If all keys before a row counted, the threshold would be lower.
    assert (got - by_loops(weights, all_before(T, key_mask), 3)).abs().max() > 0.01


def test_softmax_identity() -> None:
    """w = softmax(p (t + log(1 - exp(-t)))) with t = u - logsumexp(u) + log n, where t > 0."""
    q, k = (x.detach() for x in random_rows(1, 1, 30, 8, count=2))
    for p in (3.0, 15.0):
        got = Reweighted(p=p).weights(q, k)
        for i in range(3, 30):
            u = q[0, 0, i] @ k[0, 0, : i + 1].T / math.sqrt(8)
            t = u - u.logsumexp(0) + math.log(i + 1)
            z = torch.where(t > 0, p * (t + torch.log(-torch.expm1(-t.clamp_min(1e-300)))), -math.inf)
            assert_close(f"row {i}", got[0, 0, i, : i + 1], z.softmax(0), 1e-12)


def test_after_lssa_it_is_lssar() -> None:
    qkv = tuple(x.detach() for x in random_rows(2, 2, 20, 8))
    for implementation in ("reference", "tiled"):
        got = Reweighted(base=LSSA(), p=3).attend(*qkv, implementation=implementation)
        assert_close(implementation, got, LSSAR(p=3).attend(*qkv), 1e-12)


def test_a_large_power_takes_the_largest() -> None:
    q, k, v = (x.detach() for x in random_rows(1, 2, 20, 8, dtype=torch.float32))
    scores = (q @ k.mT).masked_fill(torch.ones(20, 20, dtype=torch.bool).triu(1), -math.inf)
    largest = v.take_along_dim(scores.argmax(-1, keepdim=True), dim=2)
    got = Reweighted(p=1e5).attend(q, k, v)
    assert (got - largest).abs().amax(-1).lt(1e-6).float().mean() > 0.9


@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
@pytest.mark.parametrize("base", [Softmax(), SlidingWindow(width=9, sinks=2), SSMax()], ids=str)
def test_tiles_are_the_reference(
    base: Kernel, kind: str | None, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tiled forms over several tiles, outputs and all gradients, those of the base's parameters too."""
    cut_tiles(monkeypatch, power_rows=8, weighted_rows=8)
    T = 21
    rows = random_rows(2, 3, T, 8)
    grad = random_rows(2, 3, T, 8, count=1, seed=1)[0].detach()
    kernel = Reweighted(base=base, p=3)
    params = kernel.build(3, 8, seed=0)
    parameters = () if params is None else tuple(params.double().parameters())
    results = []
    for implementation in ("tiled", "reference"):
        out = kernel.attend(
            *rows,
            position=make_position(kind, T),
            params=params,
            key_mask=padding(T) if masked else None,
            implementation=implementation,
        )
        results.append([out, *torch.autograd.grad(out, (*rows, *parameters), grad)])
    for i, (x, y) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", x, y, 1e-11)


def test_scores_of_any_size() -> None:
    """Softmax scores have no bound: the closed form takes the row's largest off first."""
    rows = random_rows(1, 2, 30, 8, dtype=torch.float32)
    rows = (*((30 * x).detach().requires_grad_() for x in rows[:2]), rows[2])
    out = Reweighted(p=3).attend(*rows)
    expected = Reweighted(p=3).attend(*(x.double() for x in rows))
    assert (rows[0] @ rows[1].mT).abs().max() > 3000
    assert_close("output", out, expected, 1e-3)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), rows))


@pytest.mark.parametrize("base", [Softmax(), SlidingWindow(width=4)], ids=str)
def test_memory_is_linear(base: Kernel) -> None:
    T = 1024
    rows = random_rows(1, 1, T, 8, dtype=torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        Reweighted(base=base).attend(*rows)
    assert max(kept) <= T * 8


def test_refusals() -> None:
    with pytest.raises(SettingError, match=r"^p: expected a number of at least 1, got 0.9"):
        Reweighted(p=0.9)
    for base in (ShiftedSparse(ratio=0.25), AdaptiveSparse(), Reweighted()):
        with pytest.raises(
            SettingError, match=rf"^base: expected a kernel whose queries attend to all .* got {base.kind}"
        ):
            Reweighted(base=base)
    rows, bias = torch.zeros(1, 3, 4, 8), make_position("bias", 4, dtype=torch.float32)
    with pytest.raises(SettingError, match="position: expected a kind of position that Reweighted supports"):
        Reweighted(base=LSSA()).attend(rows, rows, rows, position=bias)
