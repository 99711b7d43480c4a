"""Stage 2 of softplus attention, dense: weights a of any kernel, sharpened by a threshold and a power.

    x_ij = relu(n_i a_ij - o_i)^p        w_ij = x_ij / Σ_j' x_ij'

n_i is the number of keys that row i sees; o_i is 0 where n_i <= 3, else 1: a key of a longer row survives if its
weight exceeds 1 / n_i. Eq. 5 of Gao, Spratling, Gionfrida, arXiv 2501.13428.

There is no epsilon. Before the power a row is divided by its largest entry, which changes nothing in w and keeps the
power within range: the largest entry is then 1, and so the sum is at least 1. Where all weights of a row are
equal, 0 / 0 in the formula, the row keeps its weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.context import Weights

__all__ = ["EQUAL", "UNSHIFTED_KEYS", "reweight", "thresholds"]

UNSHIFTED_KEYS = 3
"""Rows that see so many keys have no threshold. With one, two keys would always give a one-hot row."""

EQUAL = 1e-6
"""Weights count as equal if the largest exceeds their mean by no more than this part of it."""


def thresholds(counts: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """o_i of rows that see n_i = ``counts`` keys."""
    return (counts > UNSHIFTED_KEYS).to(counts.dtype)


def reweight(weights: Weights, counts: Float[Tensor, "#B 1 R 1"], p: float) -> Weights:
    """(B, H, R, K) weights w of rows whose weights a sum to one, or are zero where no key is seen.

    Args:
        weights: a; zero on keys that are not seen.
        counts: n_i, at least 1.
        p: at least 1.
    """
    excess = torch.relu(counts * weights - thresholds(counts))
    # A factor of a row changes neither w nor its gradient.
    largest = excess.detach().amax(-1, keepdim=True)
    equal = largest <= EQUAL
    powers = (excess / largest.masked_fill(equal, 1.0)) ** p
    total = powers.sum(-1, keepdim=True).masked_fill(equal, 1.0)
    return torch.where(equal, weights, powers / total)
