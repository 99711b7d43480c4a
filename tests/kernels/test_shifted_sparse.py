"""Shifted sparse attention: the sheet's tables and numbers, masks by a plain definition, what leaks and how far it
reaches, the fast form against the reference over ragged lengths, refusals."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import make_position, padding
from torch import Tensor

from sparsity_lab.kernels import ShiftedSparse, Softmax
from sparsity_lab.kernels.parts.profile import PROFILES
from sparsity_lab.settings import SettingError, from_text

TILE_ROWS = PROFILES["cpu"].window_rows


VARIANTS = ["split", "wrap_causal", "wrap_rolled"]
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_implementation = pytest.mark.parametrize("implementation", ["reference", "fused"])


def pattern(kernel: ShiftedSparse, length: int, num_heads: int = 2, **options: Any) -> Tensor:
    """(H, T, T) bool: which weights are not zero."""
    zeros = torch.zeros(1, num_heads, length, 1)
    return kernel.weights(zeros, zeros, **options)[0] > 0


def seen_by_loops(
    length: int, group: int, variant: str, head: int, *, num_heads: int = 2, causal: bool = True, roll: int = -1
) -> Tensor:
    """(T, T) bool, as LongLoRA's code does it: tokens and pads are rolled, cut into groups, and masked there; or, for
    ``split``, cut at borders 0, g, g + G, g + 2 G and so on.

    Args:
        roll: -1 by -G/2 along tokens, +1 by +G/2.
    """
    g, padded = group // 2, math.ceil(length / group) * group
    order = list(range(padded))
    borders = list(range(0, padded + 1, group))
    if head >= num_heads // 2 and variant == "split":
        borders = [0, *range(g, padded, group), padded]
    elif head >= num_heads // 2:
        order = order[g:] + order[:g] if roll < 0 else order[-g:] + order[:-g]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for start, stop in pairwise(borders):
        members = order[start:stop]
        for row_place, i in enumerate(members):
            for key_place, j in enumerate(members):
                if i < length and j < length:
                    earlier = key_place <= row_place if variant == "wrap_rolled" else j <= i
                    seen[i, j] = earlier or not causal
    return seen


# --- the sheet's numbers: N = 8, G = 4, two heads

UNSHIFTED = ["0", "01", "012", "0123", "4", "45", "456", "4567"]
SHIFTED = {
    "wrap_rolled": ["067", "0167", "2", "23", "234", "2345", "6", "67"],
    "wrap_causal": ["0", "01", "2", "23", "234", "2345", "016", "0167"],
    "split": ["0", "01", "2", "23", "234", "2345", "6", "67"],
}


@every_variant
@pytest.mark.parametrize("kernel", [{"group": 4}, {"ratio": 0.5}], ids=str)
def test_allowed_keys(kernel: dict[str, Any], variant: str) -> None:
    for head, expected in enumerate((UNSHIFTED, SHIFTED[variant])):
        got = pattern(ShiftedSparse(variant=variant, **kernel), 8)[head]
        assert ["".join(str(j) for j in range(8) if row[j]) for row in got] == expected, f"head {head}"


@every_variant
def test_without_shift_all_heads_are_unshifted(variant: str) -> None:
    """So none leaks, one head is enough, and nothing moves from group to group at any depth."""
    kernel = ShiftedSparse(group=4, variant=variant, shift=False)
    for num_heads in (1, 3):
        for head in pattern(kernel, 8, num_heads):
            assert ["".join(str(j) for j in range(8) if row[j]) for row in head] == UNSHIFTED
    assert not kernel.leaks
    rows = random_rows(1, 3, 8, 5)
    out, shifted = (one.attend(*rows, implementation="fused") for one in (kernel, ShiftedSparse(group=4)))
    assert_close("the first head", out[:, :1], shifted[:, :1], 1e-12)
    assert (out[:, 1:] - shifted[:, 1:]).abs().max() > 1e-3


@every_variant
@pytest.mark.parametrize(("length", "pairs", "split_pairs"), [(8, 20, 16), (12, 30, 26)])
def test_pair_counts(variant: str, length: int, pairs: int, split_pairs: int) -> None:
    """N (G + 1) / 2, and (G / 2)² fewer where the wrap group is split."""
    counts = pattern(ShiftedSparse(group=4, variant=variant), length).sum((1, 2)).tolist()
    assert counts == [pairs, split_pairs if variant == "split" else pairs]
    dense = pattern(ShiftedSparse(group=4, variant=variant), length, training=False)
    assert dense.sum((1, 2)).tolist() == [length * (length + 1) // 2] * 2


def test_future_pairs() -> None:
    """The published variant's leak is exactly this; the others have none."""
    future = {
        variant: [
            tuple(pair) for pair in pattern(ShiftedSparse(group=4, variant=variant), 8).triu(1).nonzero().tolist()
        ]
        for variant in VARIANTS
    }
    leaking = [(1, 0, 6), (1, 0, 7), (1, 1, 6), (1, 1, 7)]
    assert future == {"split": [], "wrap_causal": [], "wrap_rolled": leaking}
    assert [ShiftedSparse(group=4, variant=variant).leaks for variant in VARIANTS] == [False, False, True]
    assert "wrap_rolled" in str(ShiftedSparse(group=4, variant="wrap_rolled"))


def test_borders_of_split() -> None:
    """Where groups of the shifted head start: 0, 2, 6 (and 8, the end)."""
    together = pattern(ShiftedSparse(group=4), 8, causal=False)[1]
    assert [t for t in range(8) if t == 0 or not together[t, t - 1]] == [0, 2, 6]


PINNED = {
    "unshifted": [0, 0.6667, 1.3333, 2, 4, 4.5455, 5.1111, 5.6923],
    "wrap_rolled": [6.125, 5.5556, 2, 2.5714, 3.1667, 3.7778, 6, 6.5333],
    "wrap_causal": [0, 0.6667, 2, 2.5714, 3.1667, 3.7778, 4.4, 5.5556],
    "split": [0, 0.6667, 2, 2.5714, 3.1667, 3.7778, 6, 6.5333],
    "dense": [0, 0.6667, 1.3333, 2, 2.6667, 3.3333, 4, 4.6667],
}


@pytest.mark.committed
@every_variant
@every_implementation
def test_pinned_outputs(variant: str, implementation: str) -> None:
    """D = 1, q = 1, k_j = ln(j + 1), v_j = j: weights are as j + 1."""
    places = torch.arange(8.0)
    q, k, v = (x.expand(1, 2, 8).unsqueeze(-1) for x in (torch.ones(8), (places + 1).log(), places))
    kernel = ShiftedSparse(group=4, variant=variant)
    got = kernel.attend(q, k, v, implementation=implementation)[0, :, :, 0]
    expected = torch.tensor([PINNED["unshifted"], PINNED[variant]])
    assert (got - expected).abs().max() < 6e-5
    dense = kernel.attend(q, k, v, training=False, implementation=implementation)[0, :, :, 0]
    assert (dense - torch.tensor(PINNED["dense"])).abs().max() < 6e-5


# --- masks

LENGTHS = (1, 2, 3, 5, 8, 11, 13, 16, 24)


@every_variant
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
def test_masks_by_loops(variant: str, causal: bool) -> None:
    """Any length, longer and shorter than a group, against rolling, cutting and masking in plain Python; rolling the
    other way is the same."""
    for group in (2, 4, 6, 10, 16, 30):
        for length in LENGTHS:
            got = pattern(ShiftedSparse(group=group, variant=variant), length, 3, causal=causal)
            for head in range(3):
                for roll in (-1, 1):
                    expected = seen_by_loops(length, group, variant, head, num_heads=3, causal=causal, roll=roll)
                    assert torch.equal(got[head], expected), f"G={group}, T={length}, head {head}, roll {roll}"


@every_variant
@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
def test_weights_are_softmax_weights_of_what_is_seen(variant: str, kind: str | None) -> None:
    """Rotations, biases of each head and padding, by true positions: softmax attention's weights on all keys, with
    those that a row does not see taken away, and the rest made to sum to one."""
    length, group = 11, 4
    q, k, _ = (x.detach() for x in random_rows(2, 3, length, 8))
    options: dict[str, Any] = {"position": make_position(kind, length), "key_mask": padding(length)}
    seen = torch.stack([seen_by_loops(length, group, variant, head, num_heads=3) for head in range(3)])
    expected = Softmax().weights(q, k, causal=False, **options) * seen
    expected = expected / expected.sum(-1, keepdim=True).clamp(min=1e-30)
    got = ShiftedSparse(group=group, variant=variant).weights(q, k, **options)
    assert_close("weights", got, expected, 1e-13)


def test_heads_are_halved() -> None:
    """The first H // 2 heads are unshifted."""
    for num_heads in (2, 3, 5):
        seen = pattern(ShiftedSparse(group=4), 8, num_heads)
        shifted = [not torch.equal(head, seen[0]) for head in seen]
        assert shifted == [head >= num_heads // 2 for head in range(num_heads)]


def test_group_sizes_of_a_ratio() -> None:
    """The least even number not below ratio times T, so that there are at most 1 / ratio groups."""
    quarter = ShiftedSparse(ratio=0.25)
    assert [quarter.group_size(n) for n in (1, 2, 7, 8, 9, 15, 16, 17, 2047, 2048)] == [
        *(2, 2, 2, 2, 4, 4, 4, 6, 512, 512),
    ]
    assert ShiftedSparse(ratio=1.0).group_size(7) == 8
    assert ShiftedSparse(ratio=0.1).group_size(1020) == 102  # although 0.1 * 1020 / 2 is no whole float
    assert ShiftedSparse(group=6).group_size(1) == 6
    for length in range(1, 200):
        for ratio in (0.1, 0.25, 0.3, 1 / 3, 0.5):
            size = ShiftedSparse(ratio=ratio).group_size(length)
            assert size % 2 == 0
            assert size == 2 or size - 2 < ratio * length <= size + 1e-6


def test_one_group_is_dense_on_unshifted_heads() -> None:
    q, k, v = random_rows(2, 4, 10, 8)
    dense = Softmax().attend(q, k, v)
    for kernel in (ShiftedSparse(ratio=1.0), ShiftedSparse(group=10), ShiftedSparse(group=64)):
        got = kernel.attend(q, k, v)
        assert_close("unshifted", got[:, :2], dense[:, :2], 1e-13)
    # A wrap group that is the whole sequence is dense too; a split one is not.
    wrapped = ShiftedSparse(group=10, variant="wrap_causal").attend(q, k, v)
    assert_close("shifted", wrapped, dense, 1e-13)
    assert (ShiftedSparse(group=10).attend(q, k, v)[:, 2:] - dense[:, 2:]).abs().max() > 0.1


@every_variant
def test_dense_at_inference(variant: str) -> None:
    """Whatever the training pattern; and with `sparse_at_inference` the pattern of training."""
    q, k, v = random_rows(2, 4, 21, 8, dtype=torch.float32)
    kernel = ShiftedSparse(ratio=0.25, variant=variant)
    dense = Softmax().attend(q, k, v)
    assert torch.equal(kernel.attend(q, k, v, training=False), dense)
    in_training = kernel.attend(q, k, v)
    assert (in_training - dense).abs().max() > 0.1
    kept = kernel.replace(sparse_at_inference=True)
    assert torch.equal(kept.attend(q, k, v, training=False), in_training)


# --- what reaches what through layers


def reached(variant: str, length: int, group: int, depth: int, implementation: str = "reference") -> Tensor:
    """(T, T) bool: whether the gradient of output i with respect to input j is not exactly zero, through ``depth``
    attention layers whose heads are mixed between them. The fast form in float32, in which it runs in use."""
    dtype = torch.float64 if implementation == "reference" else torch.float32
    generator = torch.Generator().manual_seed(depth)
    num_heads, head_dim = 2, 4
    width = num_heads * head_dim
    draws = torch.randn(depth, 4, width, width, generator=generator, dtype=torch.float64) / 3
    weights = list(draws.to(dtype))
    x = torch.randn(length, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    kernel = ShiftedSparse(group=group, variant=variant)
    hidden = x
    for layer in weights:
        q, k, v = ((hidden @ w).view(1, length, num_heads, head_dim).transpose(1, 2) for w in layer[:3])
        mixed = kernel.attend(q, k, v, implementation=implementation).transpose(1, 2).reshape(length, width)
        hidden = torch.nn.functional.layer_norm(hidden + mixed @ layer[3], (width,))
    rows = []
    for i in range(length):
        (grad,) = torch.autograd.grad(hidden[i, 0], x, retain_graph=True)
        rows.append((grad != 0).any(-1))
    return torch.stack(rows)


@every_implementation
@pytest.mark.parametrize(("variant", "whole_past_from"), [("split", 7), ("wrap_causal", 6)])
def test_reach_by_depth(variant: str, whole_past_from: int, implementation: str) -> None:
    """G = N / 4: the last token depends on min(N, G + (d - 1) G / 2) tokens after d layers, its whole past from 7
    layers on; where the last half sees the first, from 6 on. Nothing depends on the future at any depth."""
    length, group = 16, 4
    for depth in range(1, 9):
        seen = reached(variant, length, group, depth, implementation)
        assert not seen.triu(1).any(), f"depth {depth}: the future"
        assert bool(seen[-1].all()) == (depth >= whole_past_from), f"depth {depth}"
        if variant == "split":
            assert int(seen[-1].sum()) == min(length, group + (depth - 1) * group // 2), f"depth {depth}"


@every_implementation
def test_leak_by_depth(implementation: str) -> None:
    """The published variant: no row sees the token that it must predict up to 6 layers, 7 of 15 do at 7, all at 8."""
    length, group = 16, 4
    leaks = {depth: reached("wrap_rolled", length, group, depth, implementation) for depth in (1, 6, 7, 8)}
    assert {depth: int(seen.diagonal(1).sum()) for depth, seen in leaks.items()} == {1: 0, 6: 0, 7: 7, 8: 15}
    assert leaks[1].triu(1).any(), "it sees later tokens from the first layer on"


# --- the fast form

WIDE, RAGGED = {"group": TILE_ROWS + 50}, {"group": 30}


@every_variant
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("kernel", [{"ratio": 0.25}, WIDE, RAGGED], ids=str)
@pytest.mark.parametrize("length", [2 * TILE_ROWS, 2 * TILE_ROWS + 93], ids=["even", "ragged"])
def test_fused_is_the_reference(length: int, kernel: dict[str, Any], causal: bool, variant: str) -> None:
    """Outputs and all gradients over several tiles and groups, without and with padding and bias."""
    sparse = ShiftedSparse(variant=variant, **kernel)
    grad = random_rows(2, 3, length, 4, count=1, seed=1, dtype=torch.float32)[0].detach()
    for kind, masked in ((None, False), ("rotate", True), ("bias", False)):
        narrow = random_rows(2, 3, length, 4, dtype=torch.float32)
        wide = tuple(x.detach().double().requires_grad_() for x in narrow)
        options = {"causal": causal, "key_mask": padding(length) if masked else None}
        position = make_position(kind, length, head_dim=4, dtype=torch.float32)
        got = sparse.attend(*narrow, position=position, implementation="fused", **options)
        position = make_position(kind, length, head_dim=4)
        expected = sparse.attend(*wide, position=position, implementation="reference", **options)
        got.backward(grad)
        expected.backward(grad.double())
        assert_close(f"output, {kind}", got, expected, 2e-5)
        for name, x, y in zip("qkv", narrow, wide, strict=True):
            assert x.grad is not None
            assert y.grad is not None
            assert_close(f"gradient of {name}, {kind}", x.grad, y.grad, 2e-5)


@every_variant
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "padded"])
def test_no_large_tensor(variant: str, masked: bool) -> None:
    """Nothing of more than T rows of all heads is made or kept, in any layout of the rows."""
    length, num_heads, head_dim = 4 * TILE_ROWS, 2, 8
    contiguous = random_rows(1, num_heads, length, head_dim, dtype=torch.float32)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in contiguous]
    key_mask = padding(length)[1:] if masked else None
    for rows in (contiguous, strided):
        sizes = LargestTensor()
        with sizes:
            out = ShiftedSparse(ratio=0.25, variant=variant).attend(*rows, key_mask=key_mask)
            torch.autograd.grad(out, rows, torch.ones_like(out))
        largest_mask = TILE_ROWS * length  # a tile's, were a row to see all keys
        assert sizes.largest <= max(num_heads * length * head_dim, largest_mask if masked else 0)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the number of entries of the largest tensor made inside."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.largest = max(self.largest, *(x.numel() for x in made if isinstance(x, Tensor)), 0)
        return result


@every_variant
def test_an_empty_batch(variant: str) -> None:
    for implementation in ("reference", "fused"):
        rows = random_rows(0, 2, 11, 4, dtype=torch.float32)
        out = ShiftedSparse(group=4, variant=variant).attend(*rows, implementation=implementation)
        out.sum().backward()
        assert out.shape == (0, 2, 11, 4)
        assert all(x.grad is not None and x.grad.shape == x.shape for x in rows)


# --- decoding and refusals


def test_decoding_keeps_the_groups() -> None:
    """Over several groups and tiles, in float32; the groups do not depend on how many tokens are to come."""
    length = TILE_ROWS + 70
    q, k, v = (x.detach() for x in random_rows(1, 2, length, 4, dtype=torch.float32))
    kernel = ShiftedSparse(group=TILE_ROWS - 10, sparse_at_inference=True)
    state = kernel.init_state(1, 2, 4, length)
    start = length - 4
    got = [kernel.prefill(*(x[:, :, :start] for x in (q, k, v)), state=state)]
    got += [kernel.decode(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state) for t in range(start, length)]
    assert_close("decoded", torch.cat(got, 2), kernel.attend(q, k, v, training=True), 2e-6)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (
            ShiftedSparse(ratio=0.25, sparse_at_inference=True),
            r"group: expected group and variant='split', .* got None",
        ),
        (
            ShiftedSparse(group=4, variant="wrap_causal", sparse_at_inference=True),
            r"variant: expected group and variant='split', .* got 'wrap_causal'",
        ),
    ],
    ids=str,
)
def test_refuses_to_decode_what_depends_on_the_length(kernel: ShiftedSparse, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        kernel.init_state(1, 2, 4, 10)
    kernel.replace(sparse_at_inference=False).init_state(1, 2, 4, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"group: give group or ratio"),
        ({"group": 4, "ratio": 0.25}, r"group: give either group or ratio, not both"),
        ({"group": 5}, r"group: expected an even number of at least 2, got 5"),
        ({"group": 0}, r"group: expected an even number of at least 2, got 0"),
        ({"group": -2}, r"group: expected an even number of at least 2, got -2"),
        ({"group": 4.0}, r"group: expected an integer, got 4.0"),
        ({"ratio": 0.0}, r"ratio: expected a number above 0 and at most 1, got 0.0"),
        ({"ratio": -0.1}, r"ratio: expected a number above 0 and at most 1, got -0.1"),
        ({"ratio": 1.1}, r"ratio: expected a number above 0 and at most 1, got 1.1"),
        ({"ratio": float("nan")}, r"ratio: expected a finite number, got nan"),
        ({"group": 4, "variant": "wrap"}, r"variant: expected 'split', 'wrap_causal' or 'wrap_rolled', got 'wrap'"),
    ],
    ids=str,
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ShiftedSparse(**fields)


def test_one_head_has_no_halves() -> None:
    row = torch.zeros(1, 1, 4, 2)
    with pytest.raises(SettingError, match="q: expected at least 2 heads, of which half are shifted, got 1"):
        ShiftedSparse(group=2).attend(row, row, row)
    ShiftedSparse(group=2).attend(row, row, row, training=False)


def test_texts() -> None:
    for kernel in ShiftedSparse.examples():
        assert from_text(ShiftedSparse, str(kernel)) == kernel
