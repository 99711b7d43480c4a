"""Softplus attention (LSSA) and its re-weighting (LSSAR) as their formulas say, dense.

LSSA, eq. 4 of Gao, Spratling, Gionfrida, arXiv 2501.13428:

    s_ij = log(D) log(n_i) <q_i / ||q_i||, k_j / ||k_j||>
    f_ij = softplus(s_ij) = log(1 + exp(s_ij)) where row i sees key j, else 0
    a_ij = f_ij / Σ_j' f_ij'

LSSAR, eq. 5, sharpens such weights, or those of any kernel, by a threshold and a power:

    x_ij = relu(n_i a_ij - o_i)^p        w_ij = x_ij / Σ_j' x_ij'

D is the head size. n_i is the number of keys that row i sees, including its own: i + 1 in a causal row without
padding, never the length of the sequence. o_i is 0 where n_i <= 3, else 1: a key of a longer row survives if its
weight exceeds 1 / n_i.

There is no epsilon. Before the power, a row is divided by its largest entry. This leaves w unchanged and keeps the
power in range: the largest entry is then 1, so the sum is at least 1. Where all weights of a row are equal, 0 / 0 in
the formula, the row keeps its weights.

Computed in float32 at least. Queries and keys come rotated, which does not change their norms.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.context import Keys, Queries, Weights
from sparsity_lab.kernels.parts.unit_rows import unit_rows
from sparsity_lab.settings import SettingError


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


def check_power(name: str, p: float | None) -> None:
    """Refuse p < 1, where the slope at the threshold is infinite."""
    if p is not None and p < 1:
        raise SettingError(name, "a number of at least 1", p)


def amplification(p: float) -> float:
    """How many times the power amplifies relative errors of weights, in outputs and gradients."""
    # Below 2 the slope jumps at the threshold, or rises steeply from it.
    return p if p >= 2 else 10.0
