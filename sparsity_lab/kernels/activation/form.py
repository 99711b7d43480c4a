"""Which function of scores, and what becomes of its rows."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

__all__ = ["EXP_CEILING", "Form", "Phi"]

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
