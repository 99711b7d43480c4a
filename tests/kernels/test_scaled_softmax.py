"""Softmax attention with a scale for each row: its formulas, its identities, and what counts as visible."""

import math

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import make_position, padding
from torch import Tensor

from sparsity_lab.kernels import (
    BiasPosition,
    CosineSoftmax,
    EntropyInvariantSoftmax,
    Kernel,
    LogNSoftmax,
    Softmax,
    SSMax,
)
from sparsity_lab.kernels.parts.profile import PROFILES
from sparsity_lab.kernels.parts.unit_rows import unit_rows
from sparsity_lab.settings import SettingError

B, H, D = 2, 3, 8
EVERY = [LogNSoftmax(), EntropyInvariantSoftmax(trained_length=6), SSMax(initial=0.25), CosineSoftmax()]
every_kernel = pytest.mark.parametrize("kernel", EVERY, ids=str)

TILE_ROWS = PROFILES["cpu"].softmax_rows


def scale_of(kernel: Kernel, n: int) -> float:
    """c of a row that sees n keys, with scores divided by sqrt(D), as the sheet writes it."""
    match kernel:
        case LogNSoftmax():
            return math.log(n)
        case EntropyInvariantSoftmax():
            return math.log(n) / math.log(6)
        case SSMax():
            return 0.25 * math.log(n)
    return math.log(D) * math.log(n)


def params_of(kernel: Kernel) -> torch.nn.Module | None:
    params = kernel.build(H, D, seed=0)
    return None if params is None else params.double()


@every_kernel
@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
def test_reference_by_loops(kernel: Kernel, kind: str | None, causal: bool) -> None:
    """Every row by its own plain sum; n is the number of keys that the row sees, of padded sequences too."""
    T = 7
    q, k, v = (x.detach() for x in random_rows(B, H, T, D))
    position, key_mask = make_position(kind, T), padding(T)
    got = kernel.attend(q, k, v, causal=causal, position=position, key_mask=key_mask, params=params_of(kernel))
    turned = [x if position is None else position.rotate(x) for x in (q, k)]
    bias = None if position is None else position.bias(slice(0, T), slice(0, T))
    for b in range(B):
        for h in range(H):
            for i in range(T):
                seen = [j for j in range(i + 1 if causal else T) if key_mask[b, j]]
                expected = torch.zeros(D, dtype=torch.float64)
                terms = []
                for j in seen:
                    x, y = turned[0][b, h, i], turned[1][b, h, j]
                    size = float(x.norm() * y.norm()) if isinstance(kernel, CosineSoftmax) else math.sqrt(D)
                    score = scale_of(kernel, len(seen)) * float(x @ y) / size
                    terms.append(math.exp(score + (0.0 if bias is None else float(bias[b % len(bias), h, i, j]))))
                for term, j in zip(terms, seen, strict=True):
                    expected += term / sum(terms) * v[b, h, j]
                assert_close(f"row {b}, {h}, {i}", got[b, h, i], expected, 1e-12)


def row_weights(kernel: Kernel, q: Tensor, k: Tensor, row: int) -> Tensor:
    return kernel.weights(q[:, :, row : row + 1], k, query_start=row, params=params_of(kernel))[:, :, 0]


@pytest.mark.parametrize(
    ("kernel", "n"),
    [(EntropyInvariantSoftmax(trained_length=9), 9), (SSMax(initial=1 / math.log(5)), 5)],
    ids=str,
)
def test_plain_softmax_where_the_scale_is_one(kernel: Kernel, n: int) -> None:
    """log_m(n) = 1 at n = m, and s log n = 1; nowhere else."""
    q, k, _ = (x.detach() for x in random_rows(B, H, 12, D))
    for row in range(12):
        own, plain = row_weights(kernel, q, k, row), row_weights(Softmax(), q, k, row)
        # s is kept in float32.
        assert torch.allclose(own, plain, atol=1e-7) == (row + 1 in (1, n)), row


def test_relations_between_the_scales() -> None:
    """log n = log m log_m n; SSMax with s = 1 is log n; unit rows make cosine softmax of log n softmax."""
    q, k, v = (x.detach() for x in random_rows(B, H, 11, D))
    log_n = LogNSoftmax().attend(q, k, v)
    entropy = EntropyInvariantSoftmax(trained_length=7).attend(math.log(7) * q, k, v)
    assert_close("entropy-invariant", entropy, log_n, 1e-13)
    s = SSMax(initial=1.0)
    assert_close("SSMax", s.attend(q, k, v, params=s.build(H, D, seed=0).double()), log_n, 1e-13)
    factor = math.log(D) * math.sqrt(D)
    cosine = LogNSoftmax().attend(factor * unit_rows(q), unit_rows(k), v)
    assert_close("cosine", CosineSoftmax().attend(q, k, v), cosine, 1e-12)


def test_constant_cosine_scale_is_that_of_its_length() -> None:
    q, k, _ = (x.detach() for x in random_rows(B, H, 12, D))
    fixed = CosineSoftmax(log_n=False, trained_length=9)
    for row in range(12):
        same = torch.allclose(row_weights(fixed, q, k, row), row_weights(CosineSoftmax(), q, k, row), atol=1e-12)
        assert same == (row + 1 in (1, 9)), row


@pytest.mark.parametrize(("head_dim", "n", "scale"), [(64, 2, 2.883), (64, 1024, 28.827), (128, 16, 13.453)])
def test_cosine_scale_as_pinned(head_dim: int, n: int, scale: float) -> None:
    """A key that is the query itself against orthogonal ones: log(w_own / w_other) is the scale."""
    q = torch.zeros(1, 1, 1, head_dim, dtype=torch.float64)
    q[..., 0] = 3.0
    k = torch.zeros(1, 1, n, head_dim, dtype=torch.float64)
    k[..., 1] = 0.5
    k[..., -1, 0], k[..., -1, 1] = 7.0, 0.0
    weights = CosineSoftmax().weights(q, k, query_start=n - 1)[0, 0, 0]
    assert float((weights[-1] / weights[0]).log()) == pytest.approx(scale, abs=5e-4)


def test_cosine_softmax_ignores_norms() -> None:
    """Rows scaled by anything from 1e-30 to 1e30 in float32; a zero row has cosine 0, and no gradient."""
    q, k, v = (x.detach().float() for x in random_rows(1, 1, 9, D))
    factors = torch.tensor([1e-30, 1e30, 1e-3, 2.0, 1.0, 1e5, 1e-20, 1e20, 3.0])[:, None]
    for implementation in CosineSoftmax.implementations:
        plain = CosineSoftmax().attend(q, k, v, implementation=implementation)
        scaled = CosineSoftmax().attend(q * factors, k * factors.flip(0), v, implementation=implementation)
        assert_close(implementation, scaled, plain, 1e-5)
    zero = q.clone()
    zero[:, :, 4] = 0
    zero.requires_grad_()
    out = CosineSoftmax().attend(zero, k, v)
    assert_close("uniform", out[0, 0, 4], v[0, 0, :5].mean(0), 1e-6)
    out.sum().backward()
    assert zero.grad is not None
    assert not zero.grad[0, 0, 4].any()
    assert zero.grad[0, 0, 5].any()


def test_unit_rows_gradient() -> None:
    """dx = (g - x^ <x^, g>) / ||x||."""
    x = torch.randn(1, 1, 4, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    g = torch.randn(1, 1, 4, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = unit_rows(x)
    unit.backward(g)
    norm = x.detach().norm(dim=-1, keepdim=True)
    assert_close("rows", unit, x.detach() / norm, 1e-14)
    hat = unit.detach()
    assert_close("gradient", x.grad, (g - hat * (hat * g).sum(-1, keepdim=True)) / norm, 1e-13)


@every_kernel
@pytest.mark.parametrize("kind", [None, "bias"])
def test_fused_is_the_reference_over_several_tiles(kernel: Kernel, kind: str | None) -> None:
    """Outputs and all gradients, that of a learned scale too, where the rows go in more than one tile."""
    T = TILE_ROWS + 45
    rows = random_rows(B, H, T, D, dtype=torch.float32)
    wide = tuple(x.detach().double().requires_grad_() for x in rows)
    narrow_params, wide_params = kernel.build(H, D, seed=0), params_of(kernel)
    narrow = {"position": make_position(kind, T, dtype=torch.float32), "params": narrow_params}
    got = kernel.attend(*rows, key_mask=padding(T), implementation="fused", **narrow)
    reference = kernel.attend(*wide, key_mask=padding(T), position=make_position(kind, T), params=wide_params)
    grad = random_rows(B, H, T, D, count=1, seed=1)[0].detach()
    got.backward(grad.float())
    reference.backward(grad)
    assert_close("output", got, reference, 5e-5)
    for name, x, y in zip("qkv", rows, wide, strict=True):
        assert_close(f"gradient of {name}", x.grad, y.grad, 5e-5)
    if narrow_params is not None and wide_params is not None:
        for own, other in zip(narrow_params.parameters(), wide_params.parameters(), strict=True):
            assert_close("gradient of s", own.grad, other.grad, 5e-5)


@every_kernel
def test_memory_is_linear(kernel: Kernel) -> None:
    """No tensor of T x T entries is kept for the backward pass, with a bias either."""
    T = 8 * TILE_ROWS
    rows = random_rows(1, 1, T, D, dtype=torch.float32)
    for position in (None, BiasPosition(torch.arange(T)[None], torch.tensor([0.1]))):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):  # noqa: B023
            kernel.attend(*rows, position=position, params=kernel.build(1, D, seed=0))
        assert kept
        assert max(kept) <= T * D


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EntropyInvariantSoftmax(trained_length=1), "trained_length: expected at least 2, got 1"),
        (lambda: CosineSoftmax(trained_length=0), "trained_length: expected at least 2, got 0"),
        (lambda: SSMax(initial=math.inf), "initial: expected a finite number, got inf"),
        (lambda: attend_ssmax(None), "params: expected the module that SSMax.build returns, got NoneType"),
        (lambda: attend_ssmax(SSMax().build(4, D, 0)), "params: expected a scale for each of 3 heads, got 4"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(SettingError, match=message):
        make()


def attend_ssmax(params: torch.nn.Module | None) -> Tensor:
    return SSMax().attend(*[torch.zeros(2, H, 4, D)] * 3, params=params)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
def test_scaled_queries_stay_in_float16(masked: bool) -> None:
    """Queries of 30,000 times log n would leave it; scores do not."""
    q, k, v = (x.detach() for x in random_rows(B, H, 40, D, dtype=torch.float32))
    half = (3e4 * q.clamp(-1, 1)).half(), (1e-4 * k).half(), v.half()
    key_mask = padding(40) if masked else None
    for kernel in (LogNSoftmax(), SSMax(initial=3.0)):
        params = kernel.build(H, D, seed=0)
        out = kernel.attend(*half, key_mask=key_mask, params=params)
        expected = kernel.attend(*(x.float() for x in half), key_mask=key_mask, params=params)
        assert_close(str(kernel), out, expected, 5e-3)
