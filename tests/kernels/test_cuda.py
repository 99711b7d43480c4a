"""On a GPU every kernel gives what it gives on the CPU, and waits for nothing: for ``make gpu``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS, padding
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse, Kernel
from sparsity_lab.models import ALiBi, Decoder, PositionScheme, RoPE

pytestmark = pytest.mark.cuda

H, T, D = 4, 300, 16


@contextmanager
def no_waiting(device: str = "cuda") -> Iterator[None]:
    """PyTorch raises where it would wait for a GPU."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def outcome(kernel: Kernel, device: str, dtype: torch.dtype, options: dict[str, Any]) -> list[Tensor]:
    """The output and the gradients of queries, keys and values."""
    rows = [x.detach().to(device, dtype).requires_grad_() for x in random_rows(2, H, T, D)]
    grad = random_rows(2, H, T, D, count=1, seed=1)[0].detach().to(device, dtype)
    params = kernel.build(kernel.own_heads(H, H), D, 0)
    if params is not None:
        params.to(device)
    options = {name: x.to(device) for name, x in options.items()}
    generator = torch.Generator(device)
    with no_waiting(device):
        out = kernel.attend(*rows, params=params, generator=generator, **options)
        gradients = torch.autograd.grad(out, rows, grad)
    return [out.detach(), *gradients]


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_same_as_on_the_cpu(kernel: Kernel, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    options = {"key_mask": padding(T)} if masked else {}
    expected = outcome(kernel, "cpu", torch.float32, options)
    got = outcome(kernel, "cuda", torch.float32, options)
    for name, x, y in zip(("output", *"qkv"), got, expected, strict=True):
        assert_close(name, x.cpu(), y, (2e-4 if name == "output" else 2e-3) * kernel.rounding)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_half_precision_is_finite(kernel: Kernel) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert all(x.isfinite().all() for x in outcome(kernel, "cuda", dtype, {}))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_decoding(kernel: Kernel) -> None:
    q, k, v = (x.detach().to("cuda", torch.float32) for x in random_rows(2, H, 40, D))
    params = kernel.build(kernel.own_heads(H, H), D, 0)
    if params is not None:
        params.to("cuda")
    expected = kernel.attend(q, k, v, training=False, params=params)
    state = kernel.init_state(2, kernel.own_heads(H, H), D, 40, device="cuda")
    outs = [kernel.prefill(*(x[:, :, :30] for x in (q, k, v)), state=state, params=params)]
    with no_waiting():
        for t in range(30, 40):
            outs.append(kernel.decode(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state, params=params))
    assert_close("decoding", torch.cat(outs, dim=2), expected, 2e-4 * kernel.rounding)


@pytest.mark.parametrize("position", [RoPE(), ALiBi()], ids=str)
@pytest.mark.parametrize("kernel", [Decoder().kernel, AdaptiveSparse(block_size=4)], ids=str)
def test_a_step_of_a_decoder(position: PositionScheme, kernel: Kernel) -> None:
    model = Decoder(position=position, kernel=kernel).build(0, vocab_size=11)
    tokens, scored = torch.arange(60).view(3, 20) % 11, torch.arange(60).view(3, 20) % 7 == 0
    expected = model(tokens, scored=scored).logits
    model.cuda()
    tokens = tokens.cuda()
    with no_waiting():
        logits = model(tokens, scored=scored).logits
        logits.sum().backward()
    assert_close("logits", logits.cpu(), expected, 1e-3)
