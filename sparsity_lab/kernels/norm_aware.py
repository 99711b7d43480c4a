"""Norm-aware linear attention (NaLaFormer): the direction of a query is sharpened by a power of its norm.

Source: "NaLaFormer: Norm-Aware Linear Attention for Transformer Models", arXiv 2506.21137. ``docs/kernels.md`` tells
what of this the authors' own code confirms, and what is a reading by others.

Each map is here twice: by its formula, differentiated by autograd, in any dtype; and with its gradient in closed
form, which the chunked form runs. The latter writes the two features of a coordinate as s sin θ and s cos θ, with a
size s = |x|^e. Its backward pass needs the features and few other numbers:

    s ∂L/∂s = g_sin s sin θ + g_cos s cos θ,    ∂L/∂|x| = e (s ∂L/∂s) / |x|,    ∂L/∂e = Σ (s ∂L/∂s) log |x|,
    ∂L/∂θ   = g_sin s cos θ - g_cos s sin θ.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from sparsity_lab.kernels.linear import FeatureKernel, FeatureMap, Pullback, Rotation
from sparsity_lab.settings import SettingError, register

_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class NormAware(FeatureMap):
    """The exponent of a query's direction follows the query's norm, p = λ (τ + tanh(c r)), and keys keep their size:

        φ(q) = [|d|^p sin θ ; |d|^p cos θ]        φ(k) = [|k|^λ sin θ ; |k|^λ cos θ]

    where r = ||x|| and d = x / max(r, 1e-12), so that zero rows have the direction zero. Powers and angles go element
    by element, so that a weight is Σ_m |d_m|^p |k_m|^λ cos(θ(q)_m - θ(k)_m). The angle is

        cosine    θ = π/4 (1 + tanh(α d)) = π/2 sigmoid(2 α d)
        polarity  θ = π/2 where d > 0, and 0 where d < 0: φ(q) = [relu(d)^p ; relu(-d)^p], the limit of large α
        raw       θ = d: a weight can be negative

    The published cosine map has θ = π/4 tanh(α d). The shift by π/4 leaves all angle differences, and so all weights,
    unchanged. With it, no feature is negative, and small weights are not the difference of large terms.

    The power is taken of |d|: taken of d², its gradient at zero would be NaN.

    Args:
        power: λ.
        max_division: divides |d| by its largest entry before the power. That scales all weights of a query alike.
        norm_scale: c.
    """

    angle: Literal["cosine", "polarity", "raw"]
    power: float
    tau: float
    alpha: float
    max_division: bool
    norm_scale: float = 1.0
    parts = 2

    def query(self, q: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        d = q / _length(q)
        size = d.abs()
        if self.max_division:
            size = size / _largest(size)
        p = self.exponent(vector_norm(q, dim=-1, keepdim=True))
        return self._lift(_power(size, p), d)

    def key(self, k: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        return self._lift(_power(k.abs(), self.power), k / _length(k))

    def exponent(self, r: Float[Tensor, "*rows 1"]) -> Float[Tensor, "*rows 1"]:
        """p(r) = λ (τ + tanh(c r))."""
        return self.power * (self.tau + (self.norm_scale * r).tanh())

    def _lift(self, size: Float[Tensor, "*rows D"], d: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        if self.angle == "polarity":
            return torch.cat([size * (d > 0), size * (d < 0)], dim=-1)
        if self.angle == "raw":
            return torch.cat([size * d.sin(), size * d.cos()], dim=-1)
        # cos θ = sin(π/2 - θ), and 1 - sigmoid(x) = sigmoid(-x): small features keep their digits.
        x = 2 * self.alpha * d
        return torch.cat([size * (math.pi / 2 * side.sigmoid()).sin() for side in (x, -x)], dim=-1)

    # --- the same with gradients in closed form

    def differentiated_query(self, q: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows F"], Pullback]:
        r = vector_norm(q, dim=-1, keepdim=True)
        length = r.clamp_min(_SMALLEST_NORM)
        d = q / length
        size = d.abs()
        largest = _largest(size) if self.max_division else None
        log_size = (size if largest is None else size.div_(largest)).log_()
        p = self.exponent(r)
        lifted, slope = self._lifted((p * log_size).exp_(), d)

        def pullback(gradient: Tensor) -> Tensor:
            by_size, by_theta = _by_size_and_angle(gradient, lifted)
            # Where |d| = 0, its logarithm meets a gradient of zero.
            by_p = log_size.clamp_min(math.log(torch.finfo(q.dtype).tiny)).mul_(by_size).sum(-1, keepdim=True)
            by_size *= p
            by_d = _over(by_size, d)
            if largest is not None:
                # The largest entry also divides: its gradient is shared by all that are as large.
                top = d.abs() == largest
                total = by_size.sum(-1, keepdim=True) / (largest * top.sum(-1, keepdim=True).clamp_min(1))
                by_d -= total * top * d.sign()
            if slope is not None:
                by_d += slope(by_theta)
            by_r = by_p * self.power * self.norm_scale * (1 - (self.norm_scale * r).tanh().square())
            return _by_row(by_d, d, r, length).addcmul_(by_r, d)

        return lifted, pullback

    def differentiated_key(self, k: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows F"], Pullback]:
        r = vector_norm(k, dim=-1, keepdim=True)
        length = r.clamp_min(_SMALLEST_NORM)
        d = k / length
        size = k.abs()
        size = size.mul_(k).mul_(k) if self.power == 3 else size.log_().mul_(self.power).exp_()
        lifted, slope = self._lifted(size, d)

        def pullback(gradient: Tensor) -> Tensor:
            by_size, by_theta = _by_size_and_angle(gradient, lifted)
            by_k = _over(by_size.mul_(self.power), k)
            if slope is not None:
                by_k += _by_row(slope(by_theta), d, r, length)
            return by_k

        return lifted, pullback

    def _lifted(
        self, size: Float[Tensor, "*rows D"], d: Float[Tensor, "*rows D"]
    ) -> tuple[Float[Tensor, "*rows F"], Pullback | None]:
        """Features, and the way from ∂L/∂θ to ∂L/∂d, which overwrites what comes; None where there is no angle."""
        lifted = size.new_empty(*size.shape[:-1], 2 * size.shape[-1])
        first, second = lifted.chunk(2, dim=-1)
        if self.angle == "polarity":
            torch.mul(size, d > 0, out=first)
            torch.mul(size, d < 0, out=second)
            return lifted, None
        if self.angle == "raw":
            torch.mul(size, d.sin(), out=first)
            torch.mul(size, d.cos(), out=second)
            return lifted, lambda by_theta: by_theta
        theta: Tensor = (2 * self.alpha * d).sigmoid_().mul_(math.pi / 2)
        rest: Tensor = (-2 * self.alpha * d).sigmoid_().mul_(math.pi / 2)  # π/2 - θ
        torch.mul(size, theta.sin(), out=first)
        torch.mul(size, rest.sin(), out=second)
        return lifted, lambda by_theta: by_theta.mul_(theta).mul_(rest).mul_(4 * self.alpha / math.pi)


def _length(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows 1"]:
    r: Tensor = vector_norm(x, dim=-1, keepdim=True)
    return r.clamp_min(_SMALLEST_NORM)


def _largest(size: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows 1"]:
    """The largest entry of each row; a tiny number where all are zero."""
    return size.amax(-1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)


def _power(size: Float[Tensor, "*rows D"], exponent: Float[Tensor, "*rows 1"] | float) -> Float[Tensor, "*rows D"]:
    """size^exponent. At zero the slope of an exponent below one is infinite; the gradient there is taken as zero."""
    zero = size == 0
    return (size.masked_fill(zero, 1.0) ** exponent).masked_fill(zero, 0.0)


def _over(by_size: Float[Tensor, "*rows D"], x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """by_size / x, and 0 / 0 = 0: as by_size x / x², which needs no branch."""
    return (by_size * x).div_((x * x).add_(torch.finfo(x.dtype).tiny))


def _by_size_and_angle(
    gradient: Float[Tensor, "*rows F"], lifted: Float[Tensor, "*rows F"]
) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows D"]]:
    """s ∂L/∂s and ∂L/∂θ."""
    by_sine, by_cosine = gradient.chunk(2, dim=-1)
    sine, cosine = lifted.chunk(2, dim=-1)
    by_size = (by_sine * sine).addcmul_(by_cosine, cosine)
    return by_size, (by_sine * cosine).addcmul_(by_cosine, sine, value=-1)


def _by_row(
    by_d: Float[Tensor, "*rows D"],
    d: Float[Tensor, "*rows D"],
    r: Float[Tensor, "*rows 1"],
    length: Float[Tensor, "*rows 1"],
) -> Float[Tensor, "*rows D"]:
    """The gradient of x from that of its direction: (∂L/∂d - d <d, ∂L/∂d>) / r; below the smallest norm the length is
    constant."""
    along = (by_d * d).sum(-1, keepdim=True) * (r > _SMALLEST_NORM)
    return by_d.addcmul_(d, along, value=-1).div_(length)


@register
class NormAwareLinear(FeatureKernel):
    """Norm-aware linear attention: o_t = Σ_{i<=t} <φ(q_t), φ(k_i)> v_i / (Σ_{i<=t} <φ(q_t), φ(k_i)> + eps).

    The features raise a query's direction d = q / ||q|| to the power p = λ (τ + tanh(c ||q||)), so longer queries are
    sharper. They keep the size of keys, |k|^λ. Weights are Σ_m |d_m|^p |k_m|^λ cos(θ(q)_m - θ(k)_m). Beyond a norm of
    about 3 / c the power no longer changes. With c = 1, as published, trained queries are longer than that. There is
    no scale 1 / sqrt(D) on the weights: it would cancel.

    ``"chunked"`` is linear in T in time and memory; without ``causal`` it is one sum over all keys.

    Source: NaLaFormer, arXiv 2506.21137; the causal form and its choices are this lab's.

    Attributes:
        map: ``"cosine"``, θ = π/4 tanh(α d(x)); ``"polarity"``, its limit for large α, which the authors' code runs;
            ``"raw"``, θ = d(x), whose weights can be negative.
        power: λ.
        tau: τ.
        alpha: α of the cosine map.
        max_division: divides |d| by its largest entry before the power, so that eps weighs less.
        norm_scale: c, on the norms in the power. 1 is as published; 1 / sqrt(D) keeps trained queries where the power
            follows their norms, and is this lab's.
        eps: added to the denominator, the sum of weights.
        rotation: where a rotary position enters. ``"input"``: it turns queries and keys before the map; weights stay
            positive and sum to one, and depend on both indices. ``"numerator"``, as in the authors' code: it turns
            the features of the numerator; what multiplies a value depends on the distance, may be negative, and
            need not sum to one. ``"none"``: it is refused.
        chunk: rows in a chunk, which changes no result but for rounding.
    """

    map: Literal["cosine", "polarity", "raw"] = "cosine"
    power: float = 3.0
    tau: float = 0.5
    alpha: float = 20.0
    max_division: bool = False
    norm_scale: float = 1.0
    eps: float = 1e-6
    rotation: Rotation = "input"
    chunk: int = 64

    @classmethod
    def examples(cls) -> "tuple[NormAwareLinear, ...]":
        return (
            cls(rotation="numerator", chunk=8),
            cls(map="polarity", max_division=True, chunk=16),
            cls(map="raw", rotation="none", power=2.5, norm_scale=0.25),
        )

    def check(self) -> None:
        super().check()
        for name in ("power", "tau", "alpha", "norm_scale"):
            if not getattr(self, name) > 0:
                raise SettingError(name, "more than 0", getattr(self, name))

    @property
    def feature_map(self) -> NormAware:
        return NormAware(self.map, self.power, self.tau, self.alpha, self.max_division, self.norm_scale)
