"""``torch.compile`` without graph breaks, at lengths that change, of every registered kernel."""

from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS, make_position, padding
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sparsity_lab.kernels import LSSAR, Kernel, KernelPosition, RotaryPosition, Softmax

B, H, D = 2, 4, 8
LENGTHS = (12, 17, 23, 40, 41, 64, 130, 7, 200, 31, 99, 3, 128, 150, 290, 5)
MOST_COMPILATIONS = 3

FIRST = list({kernel.kind: kernel for kernel in reversed(KERNELS)}.values())
"""One kernel of each kind."""


def compare(
    kernel: Kernel,
    kind: str | None,
    *,
    masked: bool,
    backend: str,
    lengths: tuple[int, ...],
    exact: bool,
    implementation: str = "auto",
) -> None:
    """Outputs and gradients of the compiled call are those of the plain one, after few compilations."""
    torch.compiler.reset()
    params = kernel.build(kernel.own_heads(H, H), D, seed=0)

    def attend(q: Tensor, k: Tensor, v: Tensor, position: KernelPosition | None, key_mask: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"position": position, "params": params, "implementation": implementation}
        return kernel.attend(q, k, v, key_mask=key_mask, **options)

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for length in lengths:
        position = make_position(kind, length, num_heads=H, dtype=torch.float32)
        rows = random_rows(B, H, length, D, seed=length, dtype=torch.float32)
        leaves = [*rows, *(() if params is None else params.parameters())]
        key_mask = padding(length) if masked else None
        both = [call(*rows, position, key_mask) for call in (compiled, attend)]
        found, expected = (
            (out.detach(), *torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True)) for out in both
        )
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            if exact:
                assert torch.equal(one, other), f"T={length}, tensor {number}"
            else:
                assert_close(f"T={length}, tensor {number}", one, other, 1e-4 if number else 1e-5)
    assert counter.frame_count <= MOST_COMPILATIONS


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_attend_is_one_graph_at_every_length(kernel: Kernel) -> None:
    compare(kernel, None, masked=False, backend="eager", lengths=LENGTHS, exact=False)


@pytest.mark.parametrize("kernel", FIRST, ids=str)
def test_with_a_mask_and_a_rotation(kernel: Kernel) -> None:
    """Through ahead-of-time autograd, which runs the fake forms; to the last bit."""
    kind = "rotate" if "rotate" in kernel.positions else None
    compare(kernel, kind, masked=True, backend="aot_eager", lengths=LENGTHS[:8], exact=True)


@pytest.mark.parametrize("kernel", [kernel for kernel in FIRST if "native" in kernel.implementations], ids=str)
def test_the_form_in_another_language(kernel: Kernel) -> None:
    options: dict[str, Any] = {"implementation": "native", "lengths": LENGTHS[:6], "exact": True}
    compare(kernel, "rotate", masked=True, backend="aot_eager", **options)


@pytest.mark.parametrize("kernel", [kernel for kernel in FIRST if "bias" in kernel.positions], ids=str)
def test_with_a_bias(kernel: Kernel) -> None:
    compare(kernel, "bias", masked=False, backend="eager", lengths=(12, 17, 300), exact=False)


def test_a_field_that_differs_is_seen() -> None:
    """One function, given kernels that differ in a number only: none runs in another's place."""
    torch.compiler.reset()
    rows = random_rows(B, H, 12, D, dtype=torch.float32)
    compiled = torch.compile(lambda kernel, *rows: kernel.attend(*rows), fullgraph=True, backend="eager")
    for p in (3.0, 4.0, 5.5, 3.0):
        kernel = LSSAR(p=p)
        assert torch.equal(compiled(kernel, *rows), kernel.attend(*rows))


@torch.no_grad()
def test_without_gradients_and_under_autocast() -> None:
    torch.compiler.reset()
    q, k, v = random_rows(B, H, 12, D, dtype=torch.float32)
    for kernel in (Softmax(), LSSAR()):
        compiled = torch.compile(kernel.attend, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(q, k, v), kernel.attend(q, k, v))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, expected = (call(q, k, v.bfloat16()) for call in (compiled, kernel.attend))
        assert torch.equal(got, expected)
        assert got.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_compiled_rotation_is_the_rotation(dtype: torch.dtype) -> None:
    """Compiled it is real arithmetic, else a complex product: also of rows with odd strides and offsets."""
    angles = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    position = RotaryPosition(angles, dtype)
    compiled = torch.compile(position.rotate, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 20, 4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    for rows in (x[..., 1:].transpose(1, 2), x[..., :6].transpose(1, 2), x[:, :5, :, 1:].transpose(1, 2)):
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
        assert_close("rows", compiled(rows, 0), position.rotate(rows, 0), tolerance)
