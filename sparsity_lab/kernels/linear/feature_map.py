"""Feature maps of linear attention: each row of queries or keys becomes the F features whose inner products are the
weights.

Shapes: (..., D) rows to (..., F) features. F is D times the map's ``parts``: the features are ``parts`` blocks of
width D, so that a rotary position can turn each block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["Elementwise", "FeatureMap", "Pullback", "differentiate"]

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
