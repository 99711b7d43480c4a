"""Attention by an elementwise function φ of scores over the keys that row i sees, x_ij = u_ij - shift_i with
u_ij = <q_i, k_j> / sqrt(D) + bias_ij:

    with l1:    w_ij = φ(x_ij) / Σ_j' φ(x_ij')
    without:    w_ij = φ(x_ij) / divisor_i

A row whose φ are all zero, which only ReLU has, gives zeros. n_i is the number of keys that row i sees, itself
included: i + 1 in a causal row without padding. Computed in float32 at least.

The fast form goes in tiles of query rows, in memory linear in T. Its backward pass computes the scores of a tile
again and has a closed form. With f = φ(x), Z_i the row's sum or its divisor, out_i = Σ_j f_ij v_j / Z_i and g_i the
gradient of out_i, divided by Z_i:

    dx_ij = φ'(x_ij) (<g_i, v_j> - [l1] <g_i, out_i>)        dv_j = Σ_i f_ij g_i

Softmax, which is exp with l1, has Z_i = 1 and φ' = f.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import CachedKernel
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.masking import visible_keys
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.settings import SettingError, register

# --- the formula, dense


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


# --- the fast form


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


# --- the classes


_RELU_ROUNDING = 10.0
"""ReLU's slope jumps at 0, and a rounded score may lie on the other side; and a row's sum may be one small score."""


class ActivationKernel(CachedKernel):
    """Base: a subclass says which function, and what rows are shifted by and divided by.

    ``"tiled"`` computes tiles of query rows, and again in the backward pass, which has a closed form. A position
    rotates queries and keys, or adds its bias to the scores, before the function.
    """

    implementations = ("reference", "tiled")

    @abstractmethod
    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        """The form of rows that see ``counts`` keys, n_i."""

    def _form_of(self, q: Queries, k: Keys, context: Context) -> Form:
        return self._form(context.counts(q, k).to(torch.promote_types(q.dtype, torch.float32)).unsqueeze(-1))

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        return activation_weights(q, k, *context.visible_and_bias(q, k), self._form_of(q, k, context))

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        return tiled_activation(q, k, v, context, self._form_of(q, k, context))


@register
class Sigmoid(ActivationKernel):
    """Sigmoid attention: w_ij = sigmoid(u_ij + b), b = - log n, without normalization.

    After Ramapuram and others (arXiv 2409.04431), where n is the trained length and b is fixed. With n = n_i
    instead a row's sum stays of the same size at any length.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> bool((Sigmoid().weights(q, k) < 1).all())
    True

    Attributes:
        trained_length: the n of a fixed b, at least 1; None takes n_i of each row.
    """

    trained_length: int | None = None

    @classmethod
    def examples(cls) -> "tuple[Sigmoid, ...]":
        return cls(), cls(trained_length=20)

    def check(self) -> None:
        if self.trained_length is not None and self.trained_length < 1:
            raise SettingError("trained_length", "at least 1, or None", self.trained_length)

    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        if self.trained_length is None:
            return Form("sigmoid", shift=counts.log())
        return Form("sigmoid", shift=torch.full_like(counts, math.log(self.trained_length)))


@register
class ReLUAttention(ActivationKernel):
    """ReLU attention: w_ij = relu(u_ij) / n_i, without normalization by the row's own sum.

    After Wortsman and others (arXiv 2309.08586). A row without a positive score gives zeros.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> bool((ReLUAttention().weights(q, k) >= 0).all())
    True
    """

    @property
    def rounding(self) -> float:
        return _RELU_ROUNDING

    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        return Form("relu", divisor=counts)


@register
class NormalizedActivation(ActivationKernel):
    """Softmax taken apart: w_ij = φ(u_ij) / Σ_j' φ(u_ij'), which is softmax for exp; or without the division by the
    row's own sum, its l1 norm. The ablation behind the claim that l1 is what matters, and φ only has to be positive
    (arXiv 2501.13428).

    Without l1, a row is divided by n_i, or by nothing. Dividing by n_i removes only the dependence of the divisor on
    scores, and keeps the size of the output at any length. exp is then exp(min(u, 20)), to stay within float32.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> NormalizedActivation(phi="exp").weights(q, k).allclose(Softmax().weights(q, k), atol=1e-6)
    True

    Attributes:
        phi: φ: ``"exp"``, ``"softplus"``, ``"sigmoid"`` or ``"relu"``. A row without a positive score gives zeros
            under ReLU.
        l1: divide by the row's own sum.
        mean: without l1, divide by n_i; without effect with l1.
    """

    former_kinds = ("NormalisedActivation",)

    phi: Phi = "softplus"
    l1: bool = True
    mean: bool = True

    @classmethod
    def examples(cls) -> "tuple[NormalizedActivation, ...]":
        return cls(phi="exp"), cls(phi="softplus"), cls(phi="relu"), cls(phi="exp", l1=False, mean=False)

    @classmethod
    def benchmarked(cls) -> "tuple[NormalizedActivation, ...]":
        return cls(phi="softplus"), cls(phi="sigmoid")

    @property
    def rounding(self) -> float:
        return _RELU_ROUNDING if self.phi == "relu" else 1.0

    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        return Form(self.phi, l1=self.l1, divisor=counts if self.mean and not self.l1 else None)
