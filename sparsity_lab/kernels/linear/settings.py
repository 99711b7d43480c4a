"""The settings of linear attention."""

from abc import abstractmethod
from typing import Literal

import torch
from torch.nn.functional import pad

from sparsity_lab.kernels.arguments import RowKind
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.linear.chunked import LinearCall, chunked_attention, continued_attention, summed_attention
from sparsity_lab.kernels.linear.feature_map import Elementwise, FeatureMap
from sparsity_lab.kernels.linear.norm_aware import NormAware
from sparsity_lab.kernels.linear.recurrent import recurrent_attention
from sparsity_lab.kernels.linear.reference import linear_weights
from sparsity_lab.kernels.linear.rotation import Rotation, TurnedMap
from sparsity_lab.kernels.linear.state import LinearState
from sparsity_lab.settings import SettingError, Shown, register

__all__ = ["Linear", "NormAwareLinear"]


class _FeatureKernel(Kernel):
    """Attention whose weights are inner products of features, divided by their sum."""

    implementations = ("reference", "chunked")

    eps: float
    rotation: Rotation
    chunk: int

    @property
    @abstractmethod
    def feature_map(self) -> FeatureMap:
        """How queries and keys become features."""

    @property
    def positions(self) -> frozenset[str]:
        return frozenset() if self.rotation == "none" else frozenset({"rotate"})

    def check(self) -> None:
        _check_at_least("eps", self.eps, 0.0)
        _check_at_least("chunk", self.chunk, 1)

    def _prepare(self, q: Queries, k: Keys, context: Context, key_start: int = 0) -> tuple[Queries, Keys]:
        return q, k  # a position may turn features instead of rows

    def _call(self, context: Context) -> LinearCall:
        turned = TurnedMap(self.feature_map, self.rotation, context.position)
        return LinearCall(turned, self.eps, self.chunk, context.query_start)

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        if context.document_ids is not None and context.implementation == "chunked":
            expected = "None, or implementation='reference': sums over keys know no documents"
            raise SettingError("document_ids", expected, Shown("IDs for 'chunked'"))

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        wide, features = torch.promote_types(k.dtype, torch.float32), self._call(context).features
        queries, keys = features.query(q.to(wide), context.query_start), features.key(k.to(wide), 0)
        return linear_weights(queries, keys, context.visible(q, k), self.eps)

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        if not context.causal:
            return summed_attention(q, k, v, context.key_mask, self._call(context))
        before, num_rows = context.query_start, q.shape[2]
        after = k.shape[2] - before - num_rows
        if before or after:
            q = pad(q, (0, 0, before, after))  # sums run over all keys, so there is a row for each
        out = chunked_attention(q, k, v, context.key_mask, self._call(context.at(0)))
        return out[:, :, before : before + num_rows] if before or after else out

    def _init_state(self, rows: RowKind, capacity: int) -> LinearState:
        return LinearState(rows, self.feature_map.parts * rows.head_dim)

    def _extend(self, q: Queries, k: Keys, v: Values, state: LinearState, context: Context) -> Outputs:
        form = recurrent_attention if q.shape[2] == 1 else continued_attention
        out, state.S, state.z = form(q, k, v, context.key_mask, self._call(context), state.S, state.z)
        state.advance(q.shape[2])
        return out


def _check_at_least(name: str, value: float, smallest: float) -> None:
    if value < smallest:
        raise SettingError(name, f"at least {smallest:g}", value)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise SettingError(name, "more than 0", value)


@register
class NormAwareLinear(_FeatureKernel):
    """Norm-aware linear attention: o_t = Σ_{i<=t} <φ(q_t), φ(k_i)> v_i / (Σ_{i<=t} <φ(q_t), φ(k_i)> + eps).

    The features take the direction d = q / ||q|| of a query to the power p = λ (τ + tanh ||q||), so that long queries
    are sharper, and keep the size of keys, |k|^λ; weights are Σ_m |d_m|^p |k_m|^λ cos(θ(q)_m - θ(k)_m). Beyond a norm
    of about 3 the power no longer changes. There is no scale 1 / sqrt(D): it would cancel.

    ``"chunked"`` is linear in T in time and memory; without ``causal`` it is one sum over all keys.

    Source: arXiv 2506.21137; the causal form and its choices are this lab's.

    Attributes:
        map: ``"cosine"``, θ = π/4 tanh(α d(x)); ``"polarity"``, its limit for large α, which the authors' code runs;
            ``"raw"``, θ = d(x), whose weights can be negative.
        power: λ.
        tau: τ.
        alpha: α of the cosine map.
        max_division: divides |d| by its largest entry before the power, so that eps weighs less.
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
    eps: float = 1e-6
    rotation: Rotation = "input"
    chunk: int = 64

    @classmethod
    def examples(cls) -> "tuple[NormAwareLinear, ...]":
        return (
            cls(rotation="numerator", chunk=8),
            cls(map="polarity", max_division=True, chunk=16),
            cls(map="raw", rotation="none", power=2.5),
        )

    def check(self) -> None:
        super().check()
        for name in ("power", "tau", "alpha"):
            _check_positive(name, getattr(self, name))

    @property
    def feature_map(self) -> NormAware:
        return NormAware(self.map, self.power, self.tau, self.alpha, self.max_division)


@register
class Linear(_FeatureKernel):
    """Linear attention: o_t = Σ_{i<=t} <φ(q_t), φ(k_i)> v_i / (Σ_{i<=t} <φ(q_t), φ(k_i)> + eps).

    With relu the norm of a query cancels; with 1 + elu it matters little.

    ``"chunked"`` is linear in T in time and memory; without ``causal`` it is one sum over all keys.

    Attributes:
        feature: ``"elu"``, φ(x) = 1 + elu(x); ``"relu"``, φ(x) = relu(x).
        eps, rotation, chunk: as of ``NormAwareLinear``.
    """

    feature: Literal["elu", "relu"] = "elu"
    eps: float = 1e-6
    rotation: Rotation = "input"
    chunk: int = 64

    @classmethod
    def examples(cls) -> "tuple[Linear, ...]":
        return cls(chunk=8), cls(feature="relu", rotation="numerator")

    @property
    def feature_map(self) -> Elementwise:
        return Elementwise(self.feature)
