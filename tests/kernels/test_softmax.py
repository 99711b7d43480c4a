"""Softmax attention: the reference against its formula, the fused form against the reference, decoding, refusals."""

import math

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import make_position, padding, rotary

from sparsity_lab.kernels import BiasPosition, Softmax
from sparsity_lab.kernels.parts.profile import PROFILES
from sparsity_lab.settings import SettingError

B, H, D = 2, 3, 8

TILE_ROWS = PROFILES["cpu"].softmax_rows


def test_weights_by_hand() -> None:
    q, k = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]]), torch.tensor([[[[math.sqrt(2), 0.0], [0.0, math.sqrt(2)]]]])
    weights = Softmax().weights(q, k)
    second = math.exp(2) / (1 + math.exp(2))
    assert_close("weights", weights, torch.tensor([[[[1.0, 0.0], [1 - second, second]]]]), 1e-6)
    both = Softmax().weights(q, k, causal=False)
    assert_close("first row", both[0, 0, 0], torch.tensor([math.e, 1.0]) / (1 + math.e), 1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
def test_reference_by_loops(kind: str, masked: bool) -> None:
    """Every row by its own plain sum."""
    T = 6
    q, k, v = (x.detach() for x in random_rows(B, H, T, D))
    position, key_mask = make_position(kind, T), padding(T) if masked else None
    got = Softmax().attend(q, k, v, position=position, key_mask=key_mask, implementation="reference")
    turned = (q, k) if position is None else (position.rotate(q), position.rotate(k))
    bias = None if position is None else position.bias(slice(0, T), slice(0, T))
    for b in range(B):
        for h in range(H):
            for i in range(T):
                seen = [j for j in range(i + 1) if key_mask is None or key_mask[b, j]]
                expected = torch.zeros(D, dtype=torch.float64)
                terms = [
                    math.exp(
                        float(turned[0][b, h, i] @ turned[1][b, h, j]) / math.sqrt(D)
                        + (0.0 if bias is None else float(bias[b % len(bias), h, i, j]))
                    )
                    for j in seen
                ]
                for term, j in zip(terms, seen, strict=True):
                    expected += term / sum(terms) * v[b, h, j]
                assert_close(f"row {b}, {h}, {i}", got[b, h, i], expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
@pytest.mark.parametrize("T", [7, 2 * TILE_ROWS + 45])
def test_fused_is_the_reference(T: int, kind: str, causal: bool, masked: bool, dtype: torch.dtype) -> None:
    """Outputs and all gradients, against the float64 reference on the very same numbers."""
    rows = random_rows(B, H, T, D, dtype=dtype)
    wide = tuple(x.detach().double().requires_grad_() for x in rows)
    key_mask = padding(T) if masked else None
    common = {"causal": causal, "key_mask": key_mask}
    narrow = torch.float32  # a bias is in float32 also for bfloat16 rows
    got = Softmax().attend(*rows, position=make_position(kind, T, dtype=narrow), implementation="fused", **common)
    reference = Softmax().attend(*wide, position=make_position(kind, T), implementation="reference", **common)
    assert got.dtype == dtype
    grad = random_rows(B, H, T, D, count=1, seed=1)[0].detach()
    got.backward(grad.to(dtype))
    reference.backward(grad.to(dtype).double())
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    assert_close("output", got, reference, tolerance)
    for name, x, y in zip("qkv", rows, wide, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        # One row alone has weight one: q and k get no gradient but rounding.
        if T > 1 or name == "v":
            assert_close(f"gradient of {name}", x.grad, y.grad, tolerance)
    if masked and causal:
        assert torch.equal(got[0, :, : min(3, T)], torch.zeros_like(got[0, :, : min(3, T)])), "rows without keys"


@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
def test_weights_of_a_tile(kind: str) -> None:
    """A tile's weights are the rows of the whole, and times values they are the output, in any dtype."""
    T, start, stop = 10, 3, 7
    q, k, v = (x.detach() for x in random_rows(B, H, T, D))
    position, key_mask = make_position(kind, T), padding(T)
    whole = Softmax().weights(q, k, position=position, key_mask=key_mask)
    tile = Softmax().weights(q[:, :, start:stop], k, query_start=start, position=position, key_mask=key_mask)
    assert_close("tile", tile, whole[:, :, start:stop], 1e-14)
    assert_close("output", whole @ v, Softmax().attend(q, k, v, position=position, key_mask=key_mask), 1e-13)
    assert_close("sums", whole.sum(-1)[0, :, 3:], torch.ones(H, T - 3, dtype=torch.float64), 1e-13)
    assert not whole[0, :, :3].any(), "a row that sees no key has weights"
    half = Softmax().weights(q.bfloat16(), k.bfloat16(), position=position, key_mask=key_mask)
    assert half.dtype == torch.bfloat16
    assert_close("bfloat16", half, whole, 2e-2)


def test_memory_is_linear_with_a_bias() -> None:
    """No tensor of T x T entries is kept for the backward pass, where there is a bias."""
    T = 8 * TILE_ROWS
    rows = random_rows(1, 1, T, D, dtype=torch.float32)
    position = BiasPosition(torch.arange(T)[None], torch.tensor([0.1]))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        Softmax().attend(*rows, position=position)
    assert max(kept, default=0) <= T * D


def test_odd_strides_rotate_alike() -> None:
    """Rows that are no plain memory layout are rotated as their copies are."""
    storage = torch.randn(1 + 2 * 3 * 4 * 9, generator=torch.Generator().manual_seed(0))
    odd = storage[1:].view(2, 3, 4, 9)[..., :8]
    assert_close("rotated", rotary(4).rotate(odd), rotary(4).rotate(odd.contiguous()), 0.0)


def test_names_what_runs() -> None:
    q = torch.zeros(1, 1, 2, 4)
    assert Softmax().implementation(q) == "fused"
    assert Softmax().implementation(q.bfloat16()) == "fused"
    assert Softmax().implementation(q.double()) == "reference"


ROWS = torch.zeros(2, 3, 4, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"implementation": "fussed"},
            r"implementation: .*auto, reference, fused\), got 'fussed'; .* 'fused'",
        ),
        ({"q": ROWS[:, :, :0], "k": ROWS[:, :, :0], "v": ROWS[:, :, :0]}, r"q: expected shape .*got \(2, 3, 0, 8\)"),
        ({"q": ROWS[0]}, r"q: expected shape \(B, H, T, D\).*got \(3, 4, 8\)"),
        ({"k": ROWS[:, :, :3]}, r"v: expected shape \(2, 3, 3, 8\), got \(2, 3, 4, 8\)"),
        ({"k": ROWS[:, :, :3], "v": ROWS[:, :, :3]}, r"query_start: expected the position of the first of 4 queries"),
        ({"v": ROWS[:, :, :3]}, r"v: expected shape \(2, 3, 4, 8\), got \(2, 3, 3, 8\)"),
        ({"v": ROWS.double()}, r"v: expected the dtype of q, torch.float32, got torch.float64"),
        ({"q": ROWS.long()}, r"q: expected float16, .*got torch.int64"),
        ({"key_mask": torch.ones(2, 5, dtype=torch.bool)}, r"key_mask: expected shape \(2, 4\), got \(2, 5\)"),
        ({"key_mask": torch.ones(2, 4)}, r"key_mask: expected bool.*got torch.float32"),
        ({"position": rotary(3)}, r"position: expected indices of at least 4 positions, got 3"),
        (
            {"position": BiasPosition(torch.zeros(3, 4).long(), torch.ones(3))},
            r"position: .* 1 or 2 sequences, got 3",
        ),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    arguments = {"q": ROWS, "k": ROWS, "v": ROWS} | change
    with pytest.raises(SettingError, match=message):
        Softmax().attend(**arguments)


def test_refuses_a_state_of_another_batch() -> None:
    state = Softmax().init_state(4, 3, 8, 10)
    with pytest.raises(SettingError, match="state: expected rows of"):
        Softmax().decode(*[ROWS[:1, :, :1]] * 3, state=state)
