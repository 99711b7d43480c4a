"""Linear attention as its formula says, dense: w_ij = <φ(q_i), φ(k_j)> / (Σ_j' <φ(q_i), φ(k_j')> + eps) over the keys
that row i sees. What the features φ are, and where a rotary position meets them:

    "input"      φ(R_t q_t) and φ(R_i k_i) in numerator and denominator
    "numerator"  o_t = Σ_i <R_t φ(q_t), R_i φ(k_i)> v_i / (Σ_i <φ(q_t), φ(k_i)> + eps)
    "none"       no rotary position is taken

R_t turns each block of D features as it turns a query of D coordinates.

Shapes: (..., D) rows to (..., F) features. F is D times the map's ``parts``: the features are ``parts`` blocks of
width D, so that a rotary position can turn each block. Computed in float32 at least.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sparsity_lab.kernels.context import Weights
from sparsity_lab.kernels.position import KernelPosition

Pullback = Callable[[Tensor], Tensor]
"""From the gradient of a function's result to the gradient of its argument."""


class FeatureMap(ABC):
    """How queries and keys become features.

    Attributes:
        parts: how many blocks of D features there are.
    """

    parts: ClassVar[int]

    @abstractmethod
    def query(self, q: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        """Features of queries, by the formula."""

    @abstractmethod
    def key(self, k: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        """Features of keys, by the formula."""

    def differentiated_query(self, q: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows F"], Pullback]:
        """Features of queries, and the way back for their gradient. A map may know a faster one than autograd's."""
        return differentiate(self.query, q)

    def differentiated_key(self, k: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows F"], Pullback]:
        """The same of keys."""
        return differentiate(self.key, k)


def differentiate(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Pullback]:
    """function(x) and its pullback, by autograd."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
    return y.detach(), lambda gradient: torch.autograd.grad(y, x, gradient)[0]


@dataclass(frozen=True)
class Elementwise(FeatureMap):
    """φ(x) = 1 + elu(x), which is positive, or relu(x); the same for queries and keys."""

    feature: Literal["elu", "relu"]
    parts = 1

    def query(self, q: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return 1 + functional.elu(q) if self.feature == "elu" else q.relu()

    def key(self, k: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return self.query(k)


Rotation = Literal["input", "numerator", "none"]

Features = tuple[Tensor, Tensor]
"""(B, H, R, F) features of the numerator, and those of the denominator: the same tensor unless a position turns only
the former."""

FeaturesPullback = Callable[[Tensor, Tensor], Tensor]
"""From the gradients of both features to that of the rows; the first may be overwritten."""


@dataclass(frozen=True)
class TurnedMap:
    """A feature map under a position."""

    feature_map: FeatureMap
    rotation: Rotation
    position: KernelPosition | None

    def query(self, q: Float[Tensor, "B H R D"], start: int) -> Features:
        """Features of queries at positions ``start`` and on, by the formula."""
        return self._features(self.feature_map.query(self._turned_input(q, start)), start)

    def key(self, k: Float[Tensor, "B H R D"], start: int) -> Features:
        """The same of keys."""
        return self._features(self.feature_map.key(self._turned_input(k, start)), start)

    def differentiated_query(self, q: Float[Tensor, "B H R D"], start: int) -> tuple[Features, FeaturesPullback]:
        """Features of queries, and the way back for their gradients."""
        return self._differentiated(self.feature_map.differentiated_query, q, start)

    def differentiated_key(self, k: Float[Tensor, "B H R D"], start: int) -> tuple[Features, FeaturesPullback]:
        """The same of keys."""
        return self._differentiated(self.feature_map.differentiated_key, k, start)

    def _differentiated(
        self, apply: Callable[[Tensor], tuple[Tensor, Pullback]], x: Tensor, start: int
    ) -> tuple[Features, FeaturesPullback]:
        if self.position is not None and self.rotation == "numerator":
            plain, pullback = apply(x)
            turned, from_turned = differentiate(lambda plain: self._features(plain, start)[0], plain)
            return (turned, plain), lambda above, below: pullback(from_turned(above).add_(below))
        if self.position is not None:
            x, from_input = differentiate(lambda x: self._turned_input(x, start), x)
            plain, pullback = apply(x)
            return (plain, plain), lambda above, below: from_input(pullback(above.add_(below)))
        plain, pullback = apply(x)
        return (plain, plain), lambda above, below: pullback(above.add_(below))

    def _turned_input(self, x: Float[Tensor, "B H R D"], start: int) -> Float[Tensor, "B H R D"]:
        return x if self.position is None or self.rotation == "numerator" else self.position.rotate(x, start)

    def _features(self, plain: Float[Tensor, "B H R F"], start: int) -> Features:
        if self.position is None or self.rotation == "input":
            return plain, plain
        blocks = plain.chunk(self.feature_map.parts, dim=-1)
        return torch.cat([self.position.rotate(block, start) for block in blocks], dim=-1), plain


def linear_weights(queries: Features, keys: Features, visible: Bool[Tensor, "#B 1 R K"], eps: float) -> Weights:
    """(B, H, R, K) weights. A row that sees no key, or whose features are all zero, has weights of zero."""
    above, below = ((Q @ K.mT).masked_fill(~visible, 0.0) for Q, K in zip(queries, keys, strict=True))
    total = below.sum(-1, keepdim=True) + eps
    return above / total.masked_fill(total == 0, 1.0)
