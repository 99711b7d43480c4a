"""Comparison of tensors by error relative to the reference's size."""

import torch
from torch import Tensor


def assert_close(name: str, got: Tensor, reference: Tensor, tolerance: float) -> None:
    """Fail unless max |got - reference| <= tolerance * max |reference|; NaN and wrong shapes are named.

    The reference's size is taken as at least 1e-6, so that zeros compare with zeros.
    """
    assert got.shape == reference.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(reference.shape)}"
    for kind, x in (("result", got), ("reference", reference)):
        assert not x.isnan().any(), f"{name}: the {kind} has {int(x.isnan().sum())} NaN of {x.numel()}"
    error = (got.double() - reference.double()).abs().max().item()
    size = max(reference.double().abs().max().item(), 1e-6)
    assert error <= tolerance * size, (
        f"{name}: error {error:.2e} of size {size:.2e}, {error / size:.2e} > {tolerance:.0e}"
    )


def random_rows(*shape: int, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """``count`` normal leaf tensors that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return tuple(rows.clone().requires_grad_() for rows in drawn)
