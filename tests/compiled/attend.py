"""``torch.compile`` without graph breaks, at lengths that change, of every registered kernel with a fused form."""

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS, make_position
from torch import Tensor

from sparsity_lab.kernels import Kernel, KernelPosition, RotaryPosition

B, H, D = 2, 4, 8
LENGTHS = (12, 17, 23)  # the second makes the length a symbol, the third uses it

FUSED = [
    (kernel, kind)
    for kernel in KERNELS
    if kernel.implementations[-1] == "fused"
    for kind in (None, *sorted(kernel.positions))
    # Groups under a bias go in tiles, whose masks dynamo cannot trace.
    if not (kernel.kind == "ShiftedSparse" and kind == "bias")
]


@pytest.mark.parametrize(("kernel", "kind"), FUSED, ids=str)
def test_attend_is_one_graph_at_every_length(kernel: Kernel, kind: str | None) -> None:
    """Outputs and gradients of the compiled call are those of the plain one."""
    torch.compiler.reset()
    params = kernel.build(H, D, seed=0)

    def attend(q: Tensor, k: Tensor, v: Tensor, position: KernelPosition | None) -> Tensor:
        return kernel.attend(q, k, v, position=position, params=params)

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    for length in LENGTHS:
        position = make_position(kind, length, num_heads=H, dtype=torch.float32)
        rows, grad = random_rows(B, H, length, D, seed=length, dtype=torch.float32), torch.ones(B, H, length, D)
        got, expected = compiled(*rows, position), attend(*rows, position)
        assert_close(f"output, T={length}", got, expected.detach(), 1e-5)
        gradients = zip(torch.autograd.grad(got, rows, grad), torch.autograd.grad(expected, rows, grad), strict=True)
        for name, (one, other) in zip("qkv", gradients, strict=True):
            assert_close(f"gradient of {name}, T={length}", one, other, 1e-4)


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
