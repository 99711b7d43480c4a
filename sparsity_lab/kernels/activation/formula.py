"""Attention by an elementwise function φ of scores, dense: x_ij = u_ij - shift_i over the keys that row i sees,

    with l1:    w_ij = φ(x_ij) / Σ_j' φ(x_ij')
    without:    w_ij = φ(x_ij) / divisor_i

A row whose φ are all zero, which only ReLU has, gives zeros. Computed in float32 at least.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from sparsity_lab.kernels.context import Keys, Queries, Weights

Phi = Literal["exp", "softplus", "sigmoid", "relu"]

EXP_CEILING = 20.0
"""Without l1, exp is exp(min(u, 20)): far beyond, sums of squares would leave float32."""


@dataclass(frozen=True)
class Form:
    """Weights φ(u_ij - shift_i), divided by their sum or by what does not depend on scores.

    Attributes:
        phi: φ.
        l1: divide a row by the sum of its φ.
        shift: (B or 1, 1, R, 1); None is 0.
        divisor: (B or 1, 1, R, 1), without l1; None is 1.
    """

    phi: Phi
    l1: bool = False
    shift: Float[Tensor, "#B 1 R 1"] | None = None
    divisor: Float[Tensor, "#B 1 R 1"] | None = None


_LOW = -40.0
"""Below, log softplus(x) is x to the last digit of float64."""


def activation_weights(
    q: Queries,
    k: Keys,
    visible: Bool[Tensor, "#B 1 R K"],
    bias: Float[Tensor, "#B H R K"] | None,
    form: Form,
) -> Weights:
    """(B, H, R, K) weights, float32 or float64; queries and keys come rotated."""
    wide = torch.promote_types(q.dtype, torch.float32)
    x = q.to(wide) @ k.to(wide).mT / math.sqrt(q.shape[-1])
    if bias is not None:
        x = x + bias
    if form.shift is not None:
        x = x - form.shift
    if not form.l1:
        f = _value(form.phi, x).masked_fill(~visible, 0.0)
        return f if form.divisor is None else f / form.divisor
    if form.phi == "relu":
        f = x.relu().masked_fill(~visible, 0.0)
        total = f.sum(-1, keepdim=True)
        return f / total.masked_fill(total == 0, 1.0)
    # φ / Σ φ = softmax(log φ), which is exact also where φ under- or overflows. A row that sees nothing is cleared.
    some = visible.any(-1, keepdim=True)
    return _log(form.phi, x).masked_fill(some & ~visible, -math.inf).softmax(-1).masked_fill(~visible, 0.0)


def _value(phi: Phi, x: Tensor) -> Tensor:
    match phi:
        case "exp":
            return x.clamp_max(EXP_CEILING).exp()
        case "softplus":
            return torch.logaddexp(x, torch.zeros_like(x))
        case "sigmoid":
            return x.sigmoid()
        case "relu":
            return x.relu()


def _log(phi: Phi, x: Tensor) -> Tensor:
    """log φ of the positive functions."""
    match phi:
        case "softplus":
            return torch.where(x < _LOW, x, _value(phi, x.clamp_min(_LOW)).log())
        case "sigmoid":
            return logsigmoid(x)
    return x
