"""What kernels are checked on: rows, positions, masks, gates and parameters, all of fixed seeds."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsity_lab.kernels import BiasPosition, Kernel, KernelPosition, RotaryPosition
from sparsity_lab.testing.failing import require

B, H, D = 2, 4, 8

Rows = tuple[Tensor, Tensor, Tensor]


def rows_of(length: int, dtype: torch.dtype = torch.float32, num_kv_heads: int = H) -> Rows:
    q = normal(1, H, length, seed=0)[0]
    k, v = normal(2, num_kv_heads, length, seed=1)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def normal(count: int, heads: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, B, heads, length, D, generator=generator, dtype=torch.float64)


def position_of(kind: str | None, length: int, dtype: torch.dtype) -> KernelPosition | None:
    if kind == "rotate":
        rates = 100.0 ** (-torch.arange(D // 2, dtype=torch.float64) / (D // 2))
        return RotaryPosition(torch.arange(length).double()[None, :, None] * rates, dtype)
    if kind == "bias":
        # Indices with gaps, of two sequences: a bias follows indices, not places.
        indices = torch.arange(length) + torch.tensor([[0], [7]]) * (torch.arange(length) > length // 2)
        return BiasPosition(indices, torch.tensor([0.5, 0.1, 0.02, 0.3], dtype=dtype))
    return None


def params_of(kernel: Kernel, dtype: torch.dtype = torch.float32, num_kv_heads: int = H) -> nn.Module | None:
    params = kernel.build(kernel.own_heads(H, num_kv_heads), D, seed=3)
    return None if params is None else params.to(dtype)


def gates_of(kernel: Kernel, length: int, dtype: torch.dtype) -> dict[str, Any]:
    """The argument ``gates`` of ``attend``, for a kernel that declares some."""
    generator = torch.Generator().manual_seed(length + 1)
    gates = {name: torch.randn(B, H, length, generator=generator).to(dtype) for name in kernel.gates}
    return {"gates": gates} if gates else {}


def padding(length: int) -> Tensor:
    """Left padding in the first sequence, whose first rows so see no key; right padding in the second."""
    key_mask = torch.ones(B, length, dtype=torch.bool)
    key_mask[0, : min(3, length)] = False
    key_mask[1, length - length // 4 :] = False
    return key_mask


def require_close(
    subject: str, what: str, got: Tensor, expected: Tensor, tolerance: float, remedy: str, least: float = 1e-6
) -> None:
    """Error relative to the largest number expected, or to ``least`` if that is more."""
    shapes = f"{what} has shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    require(got.shape == expected.shape, subject, shapes, remedy)
    require(bool(got.isfinite().all()), subject, f"{what} is not finite", remedy)
    if got.numel():
        size = max(float(expected.abs().max()), least)
        error = float((got.double() - expected.double()).abs().max()) / size
        found = f"{what} is off by {error:.2g} of its size, more than {tolerance:.0e}"
        require(error <= tolerance, subject, found, remedy)


def tolerance_of(kernel: Kernel, dtype: torch.dtype = torch.float32) -> float:
    """A mechanism that amplifies rounding says by how much."""
    if dtype == torch.float64:
        return 1e-12
    return kernel.rounding * (2e-5 if dtype == torch.float32 else 3e-2)
