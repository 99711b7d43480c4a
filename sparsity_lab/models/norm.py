"""The norm of the decoder, with a faster backward pass on a CPU, where PyTorch's is a row of separate operations."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from sparsity_lab.kernels.operator import is_watched


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean x² + eps), times a weight: ``torch.nn.RMSNorm`` to the bit. In training on a CPU the gradient is
    computed in a quarter to a half of the time, with other rounding.

    With r = 1 / sqrt(mean x² + eps), y = w r x and the gradient g of y,

        ∂L/∂x = r (w g - r² x mean(w g x))        ∂L/∂w = Σ r g x

    which is the gradient of a layer norm whose mean is zero, but for that norm's own term r mean(w g).
    """

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        wanted = torch.is_grad_enabled() and x.requires_grad
        plain = x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64)
        if not wanted or not plain or x.device.type != "cpu" or is_watched(x):
            return super().forward(x)
        out: Tensor = _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = x.square()
        r = squares.mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        ctx.eps = eps
        # Another tensor of this size would be another fresh piece of memory.
        return torch.mul(x, r, out=squares).mul_(weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is differentiated once more
            out = rms_norm(x, weight.shape, weight, ctx.eps)
            leaves = (x, weight) if ctx.needs_input_grad[1] else (x,)
            of_x, *rest = torch.autograd.grad(out, leaves, g, create_graph=True)
            return of_x, rest[0] if rest else None, None
        sizes = list(weight.shape)
        with torch.autocast("cpu", enabled=False):
            of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
                g, x, sizes, torch.zeros_like(r), r, weight, None, [True, ctx.needs_input_grad[1], False]
            )
            return of_x.add_((g @ weight).unsqueeze(-1).mul_(r).div_(len(weight))), of_weight, None
