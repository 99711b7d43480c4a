"""Attention by an elementwise function of scores: formulas by loops, identities, underflow, memory."""

import math
from collections.abc import Callable

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import make_position, padding

from sparsity_lab.kernels import (
    BiasPosition,
    Kernel,
    NormalizedActivation,
    ReLUAttention,
    ShiftedSparse,
    Sigmoid,
    SlidingWindow,
    Softmax,
)
from sparsity_lab.kernels.parts.profile import PROFILES
from sparsity_lab.settings import SettingError

B, H, D = 2, 3, 8

TILE_ROWS = PROFILES["cpu"].activation_rows


PHI: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    "softplus": lambda u: math.log1p(math.exp(u)),
    "sigmoid": lambda u: 1 / (1 + math.exp(-u)),
    "relu": lambda u: max(u, 0.0),
}

Formula = Callable[[list[float]], list[float]]


def formula(kernel: Kernel) -> Formula:
    """Weights of a row from its visible scores, as the sheet writes them."""

    def weights(u: list[float]) -> list[float]:
        n = len(u)
        match kernel:
            case Sigmoid(trained_length=length):
                return [PHI["sigmoid"](x - math.log(n if length is None else length)) for x in u]
            case ReLUAttention():
                return [max(x, 0.0) / n for x in u]
            case NormalizedActivation(phi=phi, l1=l1, mean=mean):
                f = [PHI[phi](x) for x in u]
                divisor = sum(f) if l1 else n if mean else 1
                return [x / divisor if divisor else 0.0 for x in f]
        raise AssertionError(kernel)

    return weights


EVERY = [
    Sigmoid(),
    Sigmoid(trained_length=5),
    ReLUAttention(),
    *(
        NormalizedActivation(phi=phi, l1=l1, mean=mean)
        for phi in PHI
        for l1, mean in ((True, True), (False, True), (False, False))
    ),
]


@pytest.mark.parametrize("kernel", EVERY, ids=str)
@pytest.mark.parametrize("kind", [None, "bias"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
def test_weights_by_loops(kernel: Kernel, kind: str | None, causal: bool) -> None:
    """Every row by its own plain formula, in padded sequences; and both implementations are these weights."""
    T = 7
    q, k, v = (x.detach() for x in random_rows(B, H, T, D))
    position, key_mask = make_position(kind, T), padding(T)
    got = kernel.weights(q, k, causal=causal, position=position, key_mask=key_mask)
    bias = None if position is None else position.bias(slice(0, T), slice(0, T))
    expected = torch.zeros_like(got)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                seen = [j for j in range(i + 1 if causal else T) if key_mask[b, j]]
                u = [float(q[b, h, i] @ k[b, h, j]) / math.sqrt(D) for j in seen]
                if bias is not None:
                    u = [x + float(bias[b % len(bias), h, i, j]) for x, j in zip(u, seen, strict=True)]
                if seen:
                    expected[b, h, i, seen] = torch.tensor(formula(kernel)(u), dtype=torch.float64)
    assert_close("weights", got, expected, 1e-13)
    for implementation in kernel.implementations:
        out = kernel.attend(
            q, k, v, causal=causal, position=position, key_mask=key_mask, implementation=implementation
        )
        assert_close(implementation, out, expected @ v, 1e-13)


@pytest.mark.parametrize("implementation", ["reference", "tiled"])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_exp_with_l1_is_softmax(implementation: str, size: float) -> None:
    q, k, v = random_rows(B, H, 41, D)
    q = size * q
    out = NormalizedActivation(phi="exp").attend(q, k, v, key_mask=padding(41), implementation=implementation)
    expected = Softmax().attend(q, k, v, key_mask=padding(41))
    assert_close("output", out, expected, 1e-12)
    grad = torch.ones_like(out)
    for name, x, y in zip(
        "kv", torch.autograd.grad(out, (k, v), grad), torch.autograd.grad(expected, (k, v), grad), strict=True
    ):
        assert_close(f"gradient of {name}", x, y, 1e-10)


@pytest.mark.parametrize("phi", ["softplus", "sigmoid"])
@pytest.mark.parametrize("implementation", ["reference", "tiled"])
def test_positive_functions_far_below_zero_are_exp(phi: str, implementation: str) -> None:
    """Where all scores of a row lie so low that the function itself is 0 in float32, the row still sums to one: it is
    softmax's, in value and gradient. Other rows of the same tile stay as they are."""
    T = 9
    q, k, v = (x.detach().float() for x in random_rows(B, H, T, D))
    # Keys have one sign, so that the sign of a query decides the sign of its scores.
    k = k.abs()
    low, high = -300 * (q.abs() + 0.1), q.abs()
    mixed = torch.where(torch.arange(T)[:, None] % 2 == 0, low, high).requires_grad_()
    kernel = NormalizedActivation(phi=phi)
    out = kernel.attend(mixed, k, v, implementation=implementation)
    (gradient,) = torch.autograd.grad(out, mixed, torch.ones_like(out))
    for other, rows in ((Softmax(), slice(0, None, 2)), (kernel, slice(1, None, 2))):
        wide = mixed.detach().double().requires_grad_()
        expected = other.attend(wide, k.double(), v.double())
        (other_gradient,) = torch.autograd.grad(expected, wide, torch.ones_like(expected))
        assert_close("output", out[:, :, rows], expected[:, :, rows], 1e-4)
        assert_close("gradient", gradient[:, :, rows], other_gradient[:, :, rows], 1e-3)


def test_relu_rows_without_a_positive_score() -> None:
    """Zeros in value and gradient, with l1 and without, but other rows learn."""
    q = torch.tensor([[[[1.0], [-1.0], [1.0]]]])
    k, v = torch.tensor([[[[1.0], [2.0], [3.0]]]]), torch.ones(1, 1, 3, 1)
    for kernel in (ReLUAttention(), NormalizedActivation(phi="relu")):
        for implementation in kernel.implementations:
            rows = q.clone().requires_grad_()
            out = kernel.attend(rows, k, v, implementation=implementation)
            # Without l1: (1 + 2 + 3) / 3.
            assert out.flatten().tolist() == pytest.approx([1.0, 0.0, 2.0 if kernel == ReLUAttention() else 1.0])
            out.backward(torch.tensor([[[[1.0], [1.0], [1.0]]]]))
            assert rows.grad is not None
            assert rows.grad.isfinite().all()
            assert rows.grad[0, 0, 1] == 0


@pytest.mark.parametrize("implementation", ["reference", "tiled"])
def test_exp_without_l1_has_a_ceiling(implementation: str) -> None:
    """exp(min(u, 20)), flat beyond; with l1 there is none."""
    q = torch.tensor([[[[19.0], [21.0], [1e6]]]]).requires_grad_()
    k = v = torch.ones(1, 1, 3, 1)
    out = NormalizedActivation(phi="exp", l1=False).attend(q, k, v, implementation=implementation)
    assert out.flatten().tolist() == pytest.approx([math.exp(19), math.exp(20), math.exp(20)], rel=1e-5)
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.flatten().tolist() == pytest.approx([math.exp(19), 0, 0], rel=1e-5)
    weights = NormalizedActivation(phi="exp").weights(
        torch.tensor([[[[1.0]]]]), torch.tensor([[[[30.0], [33.0]]]]), query_start=1
    )
    assert float(weights[0, 0, 0, 1]) == pytest.approx(1 / (1 + math.exp(-3)))


def test_relations_between_the_mechanisms() -> None:
    """ReLU attention is ReLU without l1; a fixed bias of the trained length is the row's own there, and only there;
    for large n the sigmoid of u - log n is exp(u) / n."""
    q, k, v = (x.detach() for x in random_rows(B, H, 12, D))
    relu = NormalizedActivation(phi="relu", l1=False).attend(q, k, v)
    assert_close("ReLU", ReLUAttention().attend(q, k, v), relu, 1e-14)
    own, fixed = Sigmoid().weights(q, k), Sigmoid(trained_length=8).weights(q, k)
    for row in range(12):
        assert torch.allclose(own[:, :, row], fixed[:, :, row], atol=1e-12) == (row + 1 == 8)
    n = 4000
    q, k, v = (x.detach() for x in random_rows(1, 1, n, 2))
    last = Sigmoid().weights(q[:, :, -1:], k, query_start=n - 1)
    exp = NormalizedActivation(phi="exp", l1=False).weights(q[:, :, -1:], k, query_start=n - 1)
    assert_close("sigmoid", last, exp, 2e-2)


@pytest.mark.parametrize("kernel", [Sigmoid(), NormalizedActivation(), NormalizedActivation(phi="exp")], ids=str)
@pytest.mark.parametrize("kind", [None, "bias"])
def test_tiles_are_the_reference(kernel: Kernel, kind: str | None) -> None:
    """Outputs and all gradients over several tiles, the last one short."""
    T = 2 * TILE_ROWS + 13
    rows = random_rows(B, H, T, D, dtype=torch.float32)
    wide = tuple(x.detach().double().requires_grad_() for x in rows)
    for causal in (True, False):
        common = {"causal": causal, "key_mask": padding(T)}
        got = kernel.attend(*rows, position=make_position(kind, T, dtype=torch.float32), **common)
        reference = kernel.attend(*wide, position=make_position(kind, T), implementation="reference", **common)
        grad = random_rows(B, H, T, D, count=1, seed=1)[0].detach()
        assert_close("output", got, reference, 2e-5)
        for name, x, y in zip(
            "qkv",
            torch.autograd.grad(got, rows, grad.float()),
            torch.autograd.grad(reference, wide, grad),
            strict=True,
        ):
            assert_close(f"gradient of {name}", x, y, 2e-5)


def test_memory_is_linear() -> None:
    T = 16 * TILE_ROWS
    rows = random_rows(1, 1, T, D, dtype=torch.float32)
    for kernel in (Sigmoid(), NormalizedActivation()):
        for position in (None, BiasPosition(torch.arange(T)[None], torch.tensor([0.1]))):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):  # noqa: B023
                kernel.attend(*rows, position=position)
            assert kept
            assert max(kept) <= T * D


@pytest.mark.parametrize("kernel", [Sigmoid(), SlidingWindow(width=3), ShiftedSparse(group=4)], ids=str)
def test_a_bias_that_wants_a_gradient_is_refused(kernel: Kernel) -> None:
    """Tiles with a backward pass of their own give it none; the reference does."""
    q, k, v = (x.detach() for x in random_rows(1, 2, 12, D))
    slopes = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
    position = BiasPosition(torch.arange(12)[None], slopes)
    fast = kernel.implementations[-1]
    with pytest.raises(SettingError, match=f"implementation: .*reference., since the bias requires .*got '{fast}'"):
        kernel.attend(q, k, v, position=position, implementation=fast)
    kernel.attend(q, k, v, position=position, implementation="reference").sum().backward()
    assert slopes.grad is not None
    assert slopes.grad.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sigmoid(trained_length=0), "trained_length: expected at least 1, or None, got 0"),
        (lambda: NormalizedActivation(phi="gelu"), "phi: expected .*got 'gelu'"),
    ],
)
def test_refusals(make: Callable[[], Kernel], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
