"""Attention by an elementwise function of scores, in tiles of query rows, in memory linear in T.

The backward pass computes the scores of a tile again and has a closed form. With f = φ(x), Z_i the row's sum or its
divisor, out_i = Σ_j f_ij v_j / Z_i and g_i the gradient of out_i, divided by Z_i:

    dx_ij = φ'(x_ij) (<g_i, v_j> - [l1] <g_i, out_i>)        dv_j = Σ_i f_ij g_i

Softmax, which is exp with l1, has Z_i = 1 and φ' = f.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sparsity_lab.kernels.activation.formula import EXP_CEILING, Form
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.masking import visible_keys
from sparsity_lab.kernels.parts.profile import profile_of

_LINEAR = 40.0
"""Beyond, softplus(x) is x to the last digit of float64."""

_UNDERFLOW = 1e-18
"""A row of softplus or sigmoid with a smaller sum has scores below -41 only, where either is exp."""


def tiled_activation(q: Queries, k: Keys, v: Values, context: Context, form: Form) -> Outputs:
    """(B, H, R, E) output; queries and keys come rotated. Computed in float32 or float64.

    Raises:
        SettingError: the position's bias wants a gradient; this form has none for it.
    """
    context.check_constant_bias()
    wide = torch.promote_types(q.dtype, torch.float32)
    scaled = q.to(wide) / math.sqrt(q.shape[-1])
    if q.shape[2] == 1 and not torch.is_grad_enabled():
        # A decoding step: one tile, and no backward pass to keep anything for.
        ((rows, num_keys),) = _tiles(q, k, context)
        keys, values = k[:, :, :num_keys].to(wide), v[:, :, :num_keys].to(wide)
        return _tile(scaled, keys, values, rows, context, form).to(q.dtype)
    out: Tensor = _TiledActivation.apply(scaled, k.to(wide), v.to(wide), context, form)  # type: ignore[no-untyped-call]
    return out.to(q.dtype)


class _TiledActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, context: Context, form: Form) -> Tensor:
        out = v.new_empty(*q.shape[:3], v.shape[3])
        for rows, num_keys in _tiles(q, k, context):
            out[:, :, rows] = _tile(q, k[:, :, :num_keys], v[:, :, :num_keys], rows, context, form)
        ctx.save_for_backward(q, k, v, out)
        ctx.rest = context, form
        return out

    @staticmethod
    @own_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        context, form = ctx.rest
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, num_keys in _tiles(q, k, context):
            keys, values = k[:, :, :num_keys], v[:, :, :num_keys]
            x = _scores(q, keys, rows, context, form)
            f, Z, exponential = _values(x, rows, context, form)
            g = grad[:, :, rows] / Z
            grad_v[:, :, :num_keys] += f.mT @ g
            dx = g @ values.mT
            if form.l1:
                dx -= (g * out[:, :, rows]).sum(-1, keepdim=True)
            dx *= _slopes(x, f, exponential, form)
            grad_q[:, :, rows] = dx @ keys
            grad_k[:, :, :num_keys] += dx.mT @ q[:, :, rows]
        return grad_q, grad_k, grad_v, None, None


def _tile(q: Tensor, k: Tensor, v: Tensor, rows: slice, context: Context, form: Form) -> Tensor:
    """(B, H, R, E): the output of a tile of rows on the keys that they may see."""
    x = _scores(q, k, rows, context, form)
    f, Z, _ = _values(x, rows, context, form)
    return f @ v / Z


def _tiles(q: Tensor, k: Tensor, context: Context) -> list[tuple[slice, int]]:
    """Rows, counted from the first that is given, and the number of keys that they may see."""
    num_rows, num_keys, profile = q.shape[2], k.shape[2], profile_of(q.device)
    size = profile.rows(profile.activation_rows, math.prod(q.shape[:2]) * num_keys * k.itemsize)
    tiles = [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    return [(rows, context.query_start + rows.stop if context.causal else num_keys) for rows in tiles]


def _scores(q: Tensor, k: Tensor, rows: slice, context: Context, form: Form) -> Tensor:
    """(B, H, R, K) of a tile: x; -inf where a key is not seen, which every φ makes 0."""
    x = q[:, :, rows] @ k.mT
    num_rows, num_keys = x.shape[2:]
    first = context.query_start + rows.start
    bias = context.bias(slice(first, first + num_rows), slice(0, num_keys))
    if bias is not None:
        x += bias
    if form.shift is not None:
        x -= form.shift[:, :, rows]
    if context.causal and num_rows > 1:
        # Keys before the tile's first row are seen by all of its rows.
        corner = visible_keys(0, num_rows, num_rows, causal=True, device=x.device)
        x[..., first:].masked_fill_(~corner, -math.inf)
    if context.key_mask is not None:
        x.masked_fill_(~context.key_mask[:, None, None, :num_keys], -math.inf)
    if context.document_ids is not None:
        ids = context.document_ids
        x.masked_fill_((ids[:, first : first + num_rows, None] != ids[:, None, :num_keys]).unsqueeze(1), -math.inf)
    return x


def _values(x: Tensor, rows: slice, context: Context, form: Form) -> tuple[Tensor, Tensor, Tensor | None]:
    """f and Z of a tile, and which rows of softplus or sigmoid are computed as exp, None for no row."""
    match form.phi:
        case "exp":
            if form.l1:
                return _softmax(x, context), x.new_ones(()), None
            f = x.clamp_max(EXP_CEILING).exp_()
        case "softplus":
            f = softplus(x, threshold=_LINEAR)
        case "sigmoid":
            f = x.sigmoid()
        case "relu":
            f = x.relu()
    if not form.l1:
        return f, x.new_ones(()) if form.divisor is None else form.divisor[:, :, rows], None
    Z = f.sum(-1, keepdim=True)
    if form.phi == "relu":
        return f, Z.masked_fill_(Z == 0, 1.0), None
    low = Z < _UNDERFLOW
    if not profile_of(x.device).asynchronous and not low.any():
        return f, Z, None
    return torch.where(low, _softmax(x, context), f), Z.masked_fill_(low, 1.0), low


def _softmax(x: Tensor, context: Context) -> Tensor:
    weights = x.softmax(-1)
    if context.key_mask is None:
        return weights
    # Rows that see no key.
    return weights.masked_fill_((x == -math.inf).all(-1, keepdim=True), 0.0)


def _slopes(x: Tensor, f: Tensor, exponential: Tensor | None, form: Form) -> Tensor:
    """φ'(x)."""
    match form.phi:
        case "exp":
            return f if form.l1 else f.masked_fill(x > EXP_CEILING, 0.0)
        case "softplus":
            slopes = x.sigmoid()
        case "sigmoid":
            slopes = f * (1 - f)
        case "relu":
            return (x > 0).to(x.dtype)
    return slopes if exponential is None else torch.where(exponential, f, slopes)
