"""Softmax attention as its formula says, dense: w_ij = exp(s_ij) / Σ_j' exp(s_ij') over the keys that row i sees,
s_ij = <q_i, k_j> / sqrt(D) + bias_ij.

Computed in float32 at least. Queries and keys come rotated.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["softmax_attention", "softmax_weights"]


def softmax_weights(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    visible: Bool[Tensor, "#B 1 R K"],
    bias: Float[Tensor, "#B H R K"] | None = None,
) -> Float[Tensor, "B H R K"]:
    """(B, H, R, K) weights, float32 or float64: rows sum to one, or to zero where no key is seen."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    # A row of nothing but -inf would give NaN, also as a gradient: it keeps its scores, and its weights are cleared.
    some = visible.any(-1, keepdim=True)
    weights = scores.masked_fill(some & ~visible, -math.inf).softmax(-1)
    return weights.masked_fill(~visible, 0.0)


def softmax_attention(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    visible: Bool[Tensor, "#B 1 R K"],
    bias: Float[Tensor, "#B H R K"] | None = None,
) -> Float[Tensor, "B H R D"]:
    """(B, H, R, D): weights times values, in the dtype of q."""
    weights = softmax_weights(q, k, visible, bias)
    return (weights @ v.to(weights.dtype)).to(q.dtype)
