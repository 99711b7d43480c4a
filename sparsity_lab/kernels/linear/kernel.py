"""Linear attention: the class, its base, and what it remembers between decoding steps: two sums."""

from abc import abstractmethod
from typing import Literal

import torch
from torch.nn.functional import pad

from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.linear.fast import (
    LinearCall,
    chunked_attention,
    continued_attention,
    recurrent_attention,
    seen_keys,
    summed_attention,
)
from sparsity_lab.kernels.linear.formula import Elementwise, FeatureMap, Rotation, TurnedMap, linear_weights
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.settings import SettingError, check_least, register


class LinearState(KernelState):
    """Sums over the tokens seen, in float32 at least: a sum that every token enters with rounding needs the digits.

    Attributes:
        S: (B, H, F, E): Σ_i φ(k_i) v_iᵀ, of the numerator's features.
        z: (B, H, F): Σ_i φ(k_i), of the denominator's.
    """

    def __init__(self, rows: RowKind, num_features: int) -> None:
        super().__init__(capacity=None)
        wide = torch.promote_types(rows.dtype, torch.float32)
        self.z = torch.zeros(rows.batch_size, rows.num_heads, num_features, dtype=wide, device=rows.device)
        self.S = self.z.new_zeros(*self.z.shape, rows.value_dim)


class FeatureKernel(Kernel):
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
        check_least(0, eps=self.eps)
        check_least(1, chunk=self.chunk)

    def _prepare(self, q: Queries, k: Keys, context: Context, key_start: int = 0) -> tuple[Queries, Keys]:
        return q, k  # a position may turn features instead of rows

    def _call(self, context: Context) -> LinearCall:
        turned = TurnedMap(self.feature_map, self.rotation, context.position)
        return LinearCall(turned, self.eps, self.chunk, context.key_mask, context.query_start)

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        if context.document_ids is not None and context.implementation == "chunked":
            raise SettingError("document_ids", "not supported by 'chunked'; use implementation='reference'")

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        wide, features = torch.promote_types(k.dtype, torch.float32), self._call(context).features
        queries = features.query(q.to(wide), context.query_start)
        keys = features.key(seen_keys(k.to(wide), context.key_mask), 0)
        return linear_weights(queries, keys, context.visible(q, k), self.eps)

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        if not context.causal:
            return summed_attention(q, k, v, self._call(context))
        before, num_rows = context.query_start, q.shape[2]
        after = k.shape[2] - before - num_rows
        if before or after:
            q = pad(q, (0, 0, before, after))  # sums run over all keys, so there is a row for each
        out = chunked_attention(q, k, v, self._call(context.at(0)))
        return out[:, :, before : before + num_rows] if before or after else out

    def _init_state(self, rows: RowKind, capacity: int) -> LinearState:
        return LinearState(rows, self.feature_map.parts * rows.head_dim)

    def _extend(self, q: Queries, k: Keys, v: Values, state: LinearState, context: Context) -> Outputs:
        form = recurrent_attention if q.shape[2] == 1 else continued_attention
        out, state.S, state.z = form(q, k, v, self._call(context), state.S, state.z)
        state.advance(q.shape[2])
        return out


@register
class Linear(FeatureKernel):
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
