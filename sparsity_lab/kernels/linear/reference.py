"""Linear attention as its formula says, dense: w_ij = <φ(q_i), φ(k_j)> / (Σ_j' <φ(q_i), φ(k_j')> + eps) over the keys
that row i sees; the features above the line may be turned by a position.

Computed in float32 at least.
"""

from jaxtyping import Bool
from torch import Tensor

from sparsity_lab.kernels.context import Weights
from sparsity_lab.kernels.linear.rotation import Features

__all__ = ["linear_weights"]


def linear_weights(queries: Features, keys: Features, visible: Bool[Tensor, "#B 1 R K"], eps: float) -> Weights:
    """(B, H, R, K) weights. A row that sees no key, or whose features are all zero, has weights of zero."""
    above, below = ((Q @ K.mT).masked_fill(~visible, 0.0) for Q, K in zip(queries, keys, strict=True))
    total = below.sum(-1, keepdim=True) + eps
    return above / total.masked_fill(total == 0, 1.0)
