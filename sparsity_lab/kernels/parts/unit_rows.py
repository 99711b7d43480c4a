"""Rows of norm one, and such rows times a factor."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.profile import profile_of


def unit_rows(x: Float[Tensor, "B H R D"]) -> Float[Tensor, "B H R D"]:
    """x / ||x|| by rows, computed in float32 at least, in the dtype of x; a zero row stays zero and gets no gradient.

    There is no epsilon. A row is first divided by its largest entry, so no square under- or overflows. Any nonzero
    row has norm one, however small it was. With x^ = x / ||x|| and its gradient g, the gradient of x is (g - x^ <x^,
    g>) / ||x||; the backward pass keeps x^ and the norms.
    """
    unit: Tensor = _UnitRows.apply(x.to(torch.promote_types(x.dtype, torch.float32)))  # type: ignore[no-untyped-call]
    return unit.to(x.dtype)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True)
        zero = largest == 0
        largest.masked_fill_(zero, 1.0)
        unit = x / largest
        norm = vector_norm(unit, dim=-1, keepdim=True).masked_fill_(zero, 1.0)
        unit /= norm
        ctx.save_for_backward(unit, norm * largest, zero)
        return unit

    @staticmethod
    @own_backward
    def backward(ctx: Any, g: Tensor) -> Tensor:
        unit, norm, zero = ctx.saved_tensors
        across = torch.addcmul(g, unit, (unit * g).sum(-1, keepdim=True), value=-1.0)
        return across.div_(norm).masked_fill_(zero, 0.0)


_USUAL_NORMS = 1e-12, 1e12
"""Between these no square under- or overflows that matters, and x / ||x|| needs no care."""


def scaled_unit_rows(
    x: Float[Tensor, "B H R D"], scale: Float[Tensor, "#B 1 #R 1"] | float = 1.0
) -> Float[Tensor, "B H R D"]:
    """c_i x_i / ||x_i||; a zero row stays zero and gets no gradient.

    With x^ = x / ||x|| and the gradient g of c x^, the gradient of x is c (g - x^ <x^, g>) / ||x||.
    """
    if profile_of(x.device).asynchronous:
        unit = unit_rows(x)
        return unit if isinstance(scale, float) else unit * scale
    if not torch.is_grad_enabled():
        return _scaled(x, scale)[0]  # a decoding step feels each call
    out: Tensor = _ScaledUnitRows.apply(x, scale)  # type: ignore[no-untyped-call]
    return out


def _scaled(x: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor, bool]:
    """The rows, the norms of x, and whether all of these are usual."""
    norm = vector_norm(x, dim=-1, keepdim=True)
    low, high = _USUAL_NORMS
    usual = bool(((norm > low) & (norm < high)).all())
    return x * (scale / norm) if usual else unit_rows(x) * scale, norm, usual


class _ScaledUnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | float) -> Tensor:
        out, norm, ctx.usual = _scaled(x, scale)
        ctx.save_for_backward(x, norm)
        ctx.scale = scale
        return out

    @staticmethod
    @own_backward
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x, norm), scale = ctx.saved_tensors, ctx.scale
        if ctx.usual:
            along = (x * g).sum(-1, keepdim=True) / norm.square()
            return torch.addcmul(g, x, along, value=-1.0).mul_(scale / norm), None
        unit = unit_rows(x)
        norm = (x * unit).sum(-1, keepdim=True)
        zero = norm == 0
        across = g - unit * (unit * g).sum(-1, keepdim=True)
        # Of a subnormal norm scale / norm may be infinite, and 0 times that NaN.
        return (across * scale / norm.masked_fill(zero, 1.0)).masked_fill(zero, 0.0), None
