"""Rows of norm one."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

__all__ = ["unit_rows"]


def unit_rows(x: Float[Tensor, "B H R D"]) -> Float[Tensor, "B H R D"]:
    """x / ||x|| by rows, computed in float32 at least, in the dtype of x; a zero row stays zero and gets no gradient.

    There is no epsilon: a row is first divided by its largest entry, so that no square under- or overflows, and any
    other row has norm one, however small it was. With x^ = x / ||x|| and its gradient g, the gradient of x is
    (g - x^ <x^, g>) / ||x||; the backward pass keeps x^ and the norms.
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
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        unit, norm, zero = ctx.saved_tensors
        across = torch.addcmul(g, unit, (unit * g).sum(-1, keepdim=True), value=-1.0)
        return across.div_(norm).masked_fill_(zero, 0.0)
