"""Softplus attention as its formula says, dense.

    s_ij = log(D) log(n_i) <q_i / ||q_i||, k_j / ||k_j||>
    f_ij = softplus(s_ij) = log(1 + exp(s_ij)) where row i sees key j, else 0
    a_ij = f_ij / Σ_j' f_ij'

D is the head size and n_i the number of keys that row i sees, itself included: i + 1 in a causal row without
padding, never the length of the sequence. Eq. 4 of Gao, Spratling, Gionfrida, arXiv 2501.13428.

Computed in float32 at least. Queries and keys come rotated, which does not change their norms.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.context import Keys, Queries, Weights
from sparsity_lab.kernels.unit_rows import unit_rows

__all__ = ["softplus_scores", "softplus_weights"]


def softplus_scores(q: Queries, k: Keys, counts: Float[Tensor, "#B 1 R 1"]) -> Weights:
    """(B, H, R, K) scores s, float32 or float64. A zero query or key has scores 0.

    Args:
        counts: n_i, at least 1.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = math.log(q.shape[-1]) * counts.log()
    return scale * unit_rows(q.to(wide)) @ unit_rows(k.to(wide)).mT


def softplus_weights(
    q: Queries, k: Keys, visible: Bool[Tensor, "#B 1 R K"], counts: Float[Tensor, "#B 1 R 1"]
) -> Weights:
    """(B, H, R, K) weights a, float32 or float64: rows sum to one, or to zero where no key is seen."""
    scores = softplus_scores(q, k, counts)
    # The mask multiplies f: before the scale, at n = 1, it would be 0 * -inf.
    f = torch.logaddexp(scores, torch.zeros_like(scores)).masked_fill(~visible, 0.0)
    total = f.sum(-1, keepdim=True)
    return f / total.masked_fill(total == 0, 1.0)
