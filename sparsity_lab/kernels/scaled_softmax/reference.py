"""Softmax attention with a scale for each row, dense: w_ij = softmax_j(c_i <q_i, k_j> / sqrt(D) + bias_ij).

The scale c_i stands before the product of query and key only: a bias is added as it is. Folded into the query,
q'_i = c_i q_i, it leaves plain softmax attention, so that any form of softmax runs it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.context import Keys, Queries, Weights
from sparsity_lab.kernels.softmax.reference import softmax_weights

__all__ = ["scaled_rows", "scaled_softmax_weights"]


def scaled_rows(q: Queries, scale: Float[Tensor, "#B #H R"]) -> Queries:
    """c_i q_i, in float32 at least."""
    return q.to(torch.promote_types(q.dtype, torch.float32)) * scale.unsqueeze(-1)


def scaled_softmax_weights(
    q: Queries,
    k: Keys,
    scale: Float[Tensor, "#B #H R"],
    visible: Bool[Tensor, "#B 1 R K"],
    bias: Float[Tensor, "#B H R K"] | None = None,
) -> Weights:
    """(B, H, R, K) weights, float32 or float64: rows sum to one, or to zero where no key is seen."""
    return softmax_weights(scaled_rows(q, scale), k, visible, bias)
