"""Softmax attention as its formula says, dense: w_ij = exp(s_ij) / Σ_j' exp(s_ij') over the keys that row i sees,
s_ij = <q_i, k_j> / sqrt(D) + bias_ij.

Computed in float32 at least. Queries and keys come rotated.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.context import Keys, Queries, Weights

__all__ = ["softmax_weights"]


def softmax_weights(
    q: Queries, k: Keys, visible: Bool[Tensor, "#B 1 R K"], bias: Float[Tensor, "#B H R K"] | None = None
) -> Weights:
    """(B, H, R, K) weights, float32 or float64: rows sum to one, or to zero where no key is seen."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    # A row of nothing but -inf would give NaN, also as a gradient: it keeps its scores, and its weights are cleared.
    some = visible.any(-1, keepdim=True)
    weights = scores.masked_fill(some & ~visible, -math.inf).softmax(-1)
    return weights.masked_fill(~visible, 0.0)
