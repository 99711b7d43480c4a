"""Sliding-window attention: masks and outputs by plain loops, the tiles against the reference over many tiles, the
state of constant size, memory, refusals."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import make_position, padding
from torch import Tensor

from sparsity_lab.kernels import SlidingWindow, Softmax
from sparsity_lab.kernels.parts.profile import PROFILES
from sparsity_lab.settings import SettingError, from_text

TILE_ROWS = PROFILES["cpu"].window_rows


WINDOWS = [SlidingWindow(width=1, sinks=0), SlidingWindow(width=3, sinks=0), SlidingWindow(width=4, sinks=2)]


def seen_keys(i: int, visible: list[int], window: SlidingWindow, causal: bool = True) -> list[int]:
    """Of the keys that may be seen: the first ones, and those in the window."""
    recent = range(i - window.width + 1, i + 1 if causal else i + window.width)
    first = [j for j in visible[: window.sinks] if j <= i or not causal]
    return [j for j in visible if j in first or j in recent]


def test_keys_of_rows() -> None:
    """A row sees its last four keys and the first two."""
    zeros = torch.zeros(1, 1, 8, 1)
    seen = SlidingWindow(width=4, sinks=2).weights(zeros, zeros)[0, 0] > 0
    rows = ["".join(str(j) for j in range(8) if row[j]) for row in seen]
    assert rows == ["0", "01", "012", "0123", "01234", "012345", "013456", "014567"]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
@pytest.mark.parametrize("implementation", ["reference", "tiled"])
def test_rows_by_loops(implementation: str, kind: str | None, masked: bool, causal: bool) -> None:
    """Every row by its own plain sum."""
    length, num_heads, head_dim = 9, 3, 8
    q, k, v = (x.detach() for x in random_rows(2, num_heads, length, head_dim))
    position, key_mask = make_position(kind, length), padding(length) if masked else None
    turned = (q, k) if position is None else (position.rotate(q), position.rotate(k))
    bias = None if position is None else position.bias(slice(0, length), slice(0, length))
    for window in WINDOWS:
        options = {"position": position, "key_mask": key_mask, "causal": causal}
        got = window.attend(q, k, v, implementation=implementation, **options)
        for b in range(2):
            for h in range(num_heads):
                for i in range(length):
                    visible = [j for j in range(length) if key_mask is None or key_mask[b, j]]
                    seen = seen_keys(i, visible, window, causal)
                    scores = [float(turned[0][b, h, i] @ turned[1][b, h, j]) / math.sqrt(head_dim) for j in seen]
                    if bias is not None:
                        scores = [x + float(bias[b % len(bias), h, i, j]) for x, j in zip(scores, seen, strict=True)]
                    terms = [math.exp(x) for x in scores]
                    expected = torch.zeros(head_dim, dtype=torch.float64)
                    for term, j in zip(terms, seen, strict=True):
                        expected += term / sum(terms) * v[b, h, j]
                    assert_close(f"{window}, row {b}, {h}, {i}", got[b, h, i], expected, 1e-12)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
def test_a_wide_window_is_softmax(causal: bool) -> None:
    """From width T on, or in causal attention with sinks where the window reaches them; one key less shows."""
    length = 20
    for implementation in ("reference", "tiled"):
        rows = random_rows(2, 3, length, 8, dtype=torch.float32)
        expected = Softmax().attend(*rows, causal=causal)
        for window in (SlidingWindow(width=length, sinks=0), SlidingWindow(width=50, sinks=3)):
            got = window.attend(*rows, causal=causal, implementation=implementation)
            assert_close(str(window), got, expected, 1e-6)
        reaching = SlidingWindow(width=length - 3, sinks=3).attend(
            *rows, causal=causal, implementation=implementation
        )
        error = float((reaching - expected).detach().abs().max())
        assert (error < 1e-6) == causal
        short = SlidingWindow(width=length - 4, sinks=3).attend(*rows, causal=causal, implementation=implementation)
        assert float((short - expected).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize(
    "window",
    [
        SlidingWindow(width=5, sinks=3),
        SlidingWindow(width=TILE_ROWS + 20, sinks=0),
        SlidingWindow(width=40, sinks=TILE_ROWS + 9),
        SlidingWindow(width=3, sinks=TILE_ROWS + 9),  # some sinks are beyond the window of the first tile
        SlidingWindow(width=1, sinks=0),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [2 * TILE_ROWS, 3 * TILE_ROWS + 41], ids=["even", "ragged"])
def test_tiled_is_the_reference(length: int, window: SlidingWindow, causal: bool) -> None:
    """Outputs and all gradients over several tiles, without and with padding and bias."""
    grad = random_rows(2, 2, length, 4, count=1, seed=1, dtype=torch.float32)[0].detach()
    for kind, masked in ((None, False), ("rotate", True), ("bias", False)):
        narrow = random_rows(2, 2, length, 4, dtype=torch.float32)
        wide = tuple(x.detach().double().requires_grad_() for x in narrow)
        options = {"causal": causal, "key_mask": padding(length) if masked else None}
        position = make_position(kind, length, head_dim=4, num_heads=2, dtype=torch.float32)
        got = window.attend(*narrow, position=position, implementation="tiled", **options)
        position = make_position(kind, length, head_dim=4, num_heads=2)
        expected = window.attend(*wide, position=position, implementation="reference", **options)
        got.backward(grad)
        expected.backward(grad.double())
        assert_close(f"output, {kind}", got, expected, 2e-5)
        for name, x, y in zip("qkv", narrow, wide, strict=True):
            assert x.grad is not None
            assert y.grad is not None
            if window.width > 1 or name == "v":  # one key alone has weight one: q and k get nothing but rounding
                assert_close(f"gradient of {name}, {kind}", x.grad, y.grad, 2e-5)


def test_memory_is_linear() -> None:
    """No tensor of more than a tile's scores is made, forward and backward, and nothing but the rows is kept."""
    length, head_dim = 12 * TILE_ROWS, 4
    rows = random_rows(1, 1, length, head_dim, dtype=torch.float32)
    window = SlidingWindow(width=16, sinks=4)
    kept, sizes = [], LargestTensor()
    with sizes:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            out = window.attend(*rows)
        torch.autograd.grad(out, rows, torch.ones_like(out))
    assert sizes.largest <= max(length * head_dim, TILE_ROWS * (TILE_ROWS + 20))
    assert kept == [length * head_dim] * 3


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the number of entries of the largest tensor made inside."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.largest = max(self.largest, *(x.numel() for x in made if isinstance(x, Tensor)), 0)
        return result


@pytest.mark.parametrize(
    "window",
    [SlidingWindow(width=7, sinks=3), SlidingWindow(width=1, sinks=0), SlidingWindow(width=TILE_ROWS + 5, sinks=2)],
    ids=str,
)
@pytest.mark.parametrize("kind", [None, "rotate", "bias"])
def test_decoding_in_constant_memory(window: SlidingWindow, kind: str | None) -> None:
    """A prompt longer than the window and its pieces, in one call and in two, then token by token, with keys that
    nobody may see; no more keys held than the last row sees."""
    length, prompt = 2 * TILE_ROWS + 60, 2 * TILE_ROWS + 50
    q, k, v = (x.detach() for x in random_rows(2, 2, length, 4, dtype=torch.float32))
    position = make_position(kind, length, head_dim=4, num_heads=2, dtype=torch.float32)
    key_mask = torch.ones(2, length, dtype=torch.bool)
    key_mask[0, :4] = False
    key_mask[1, prompt - 3 : prompt - 1] = False
    expected = window.attend(q, k, v, training=False, position=position, key_mask=key_mask)
    for borders in ((0, prompt), (0, 2, TILE_ROWS, prompt)):
        state = window.init_state(2, 2, 4, capacity=1)
        assert state.capacity is None
        got = []
        for start, stop in pairwise(borders):
            part = [x[:, :, start:stop] for x in (q, k, v)]
            got.append(window.prefill(*part, state=state, position=position, key_mask=key_mask[:, start:stop]))
        for t in range(prompt, length):
            part = [x[:, :, t : t + 1] for x in (q, k, v)]
            got.append(window.decode(*part, state=state, position=position))
            assert state.keys.shape[2] == state.values.shape[2] == window.sinks + window.width
        assert state.length == length
        assert_close(f"decoded, {borders}", torch.cat(got, 2), expected, 3e-6)


def test_refuses_a_state_of_another_batch() -> None:
    rows = [torch.zeros(1, 3, 1, 8)] * 3
    with pytest.raises(SettingError, match="state: expected rows of"):
        SlidingWindow().decode(*rows, state=SlidingWindow().init_state(4, 3, 8, 10))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"width": -3}, "width: expected at least 1, got -3"),
        ({"sinks": -1}, "sinks: expected at least 0, got -1"),
        ({"width": 2.5}, "width: expected an integer, got 2.5"),
    ],
    ids=str,
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SlidingWindow(**fields)


def test_texts() -> None:
    for kernel in (SlidingWindow(), *SlidingWindow.examples()):
        assert from_text(SlidingWindow, str(kernel)) == kernel
