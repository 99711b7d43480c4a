"""Where a rotary position meets the features of linear attention.

    "input"      φ(R_t q_t) and φ(R_i k_i) in numerator and denominator
    "numerator"  o_t = Σ_i <R_t φ(q_t), R_i φ(k_i)> v_i / (Σ_i <φ(q_t), φ(k_i)> + eps)
    "none"       no rotary position is taken

R_t turns each block of D features as it turns a query of D coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.linear.feature_map import FeatureMap, Pullback, differentiate
from sparsity_lab.kernels.position import KernelPosition

__all__ = ["Features", "FeaturesPullback", "Rotation", "TurnedMap"]

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
