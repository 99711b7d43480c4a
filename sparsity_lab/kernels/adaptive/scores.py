"""The coarse stage: what a query expects of a block, from the block's summary alone.

Of the block log-mass ℓ_tj = log Σ_{i in j} exp(s <q_t, k_i>), s = 1 / sqrt(D), it knows

    m_tj = s <q_t, k̄_j>                                     first moment
    v_tj = ½ s² Σ_d q_td² σ²_jd                             second moment, diagonal
    x_tj = s Σ_d max(q_td k⁺_jd, q_td k⁻_jd)                the box that holds the keys
    r_tj = <W_qᵀ φ(q_t), W_kᵀ ψ_j> / sqrt(r)                a learned residual of rank r,
                                                            φ(q) = [q; max(q, 0); min(q, 0)], ψ_j = [k̄_j; k⁺_j; k⁻_j]
    g_tj = log n_j + m_tj + β₁ v_tj + β₂ (x_tj - m_tj) + r_tj

and, rigorously, log n_j + m_tj <= ℓ_tj <= log n_j + x_tj. All are dot products of a few functions of the query with
the summary, so a score is one matrix product: the residual too, since it is <W_k W_qᵀ φ(q_t), ψ_j> / sqrt(r).

Shapes: B batch, G heads of keys, M query heads that share one, R query rows, n blocks, D head size.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsity_lab.kernels.adaptive.summaries import Summaries

__all__ = [
    "ScoreWeights",
    "block_bounds",
    "block_scores",
    "block_shares",
    "complete_past",
    "corners",
    "log_importance",
]

FEW_ROWS = 8


@dataclass(frozen=True)
class ScoreWeights:
    """The weights of the score, for each head of keys.

    Attributes:
        beta: (G, 2), β₁ and β₂.
        query, key: (G, 3D, r), W_q and W_k of the residual; None: there is none.
    """

    beta: Float[Tensor, "G 2"]
    query: Float[Tensor, "G D3 r"] | None = None
    key: Float[Tensor, "G D3 r"] | None = None

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """Those that want a gradient."""
        found = (self.beta, self.query, self.key)
        return tuple(x for x in found if x is not None and x.requires_grad)

    def features(
        self, q: Float[Tensor, "B G M R D"]
    ) -> tuple[Float[Tensor, "B G M R D2"], Float[Tensor, "B G M R D2"] | None]:
        """What stands beside moments and box in g, in float64; None beside the box where it adds nothing."""
        head_dim, q = q.shape[-1], q.double()
        scale = 1.0 / math.sqrt(head_dim)
        variance, box = self.beta.double()[None, :, None, None, :, None].unbind(-2)
        mean, spread = scale * (1.0 - box) * q, (0.5 * scale**2) * variance * q.square()
        if self.query is None or self.key is None:
            # Where β₂ is zero and stays it, the box would add zeros.
            learned = torch.is_grad_enabled() and self.beta.requires_grad
            beside_box = scale * box * corners(q) if learned or bool(self.beta[:, 1].any()) else None
            return torch.cat([mean, spread], dim=-1), beside_box
        edges = corners(q)
        # The low rank lies between the two products; a (3D, 3D) table would cost more.
        narrow = torch.cat([q, edges], dim=-1) @ self.query.double().unsqueeze(1)
        residual = narrow @ self.key.double().mT.unsqueeze(1) / math.sqrt(self.key.shape[-1])
        of_mean, of_box = residual.tensor_split([head_dim], dim=-1)
        return torch.cat([mean + of_mean, spread], dim=-1), scale * box * edges + of_box


def complete_past(summaries: Summaries, positions: Int64[Tensor, "#B R"], block_size: int) -> Bool[Tensor, "B 1 R n"]:
    """Which blocks take part in scoring, Ω_t: complete before the row's own block, and with a key that counts."""
    block = torch.arange(summaries.log_count.shape[1], device=positions.device)
    past = block < (positions // block_size).unsqueeze(-1)
    return (past & (summaries.log_count > -math.inf).unsqueeze(1)).unsqueeze(1)


def block_scores(
    q: Float[Tensor, "B G M R D"], summaries: Summaries, weights: ScoreWeights
) -> Float[Tensor, "B G M R n"]:
    """g_tj in float64; -inf for a block without keys. A gradient reaches the weights alone."""
    beside_moments, beside_box = weights.features(q.detach())
    scores = _products(beside_moments, summaries.moments) + summaries.log_count[:, None, None, None]
    return scores if beside_box is None else scores + _products(beside_box, summaries.box)


@torch.no_grad()
def block_bounds(
    q: Float[Tensor, "B G M R D"], summaries: Summaries
) -> tuple[Float[Tensor, "B G M R n"], Float[Tensor, "B G M R n"]]:
    """log n_j + m_tj and log n_j + x_tj: the block log-mass lies between them (Jensen; the box)."""
    head_dim, log_count = q.shape[-1], summaries.log_count[:, None, None, None]
    q = q.double() / math.sqrt(head_dim)
    mean = summaries.moments[..., :head_dim]
    return _products(q, mean) + log_count, _products(corners(q), summaries.box) + log_count


def corners(q: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D2"]:
    """[max(q, 0); min(q, 0)]: its product with [k⁺; k⁻] is the largest product with a point of the box."""
    return torch.cat([q.clamp_min(0.0), q.clamp_max(0.0)], dim=-1)


def _products(features: Float[Tensor, "B G M R F"], table: Float[Tensor, "B G n F"]) -> Float[Tensor, "B G M R n"]:
    rows = features.flatten(2, 3)
    # For a few rows the table goes first: its product with a vector reads memory once, at full speed.
    products = (table @ rows.mT).mT if rows.shape[2] <= FEW_ROWS else rows @ table.mT
    return torch.unflatten(products, 2, features.shape[2:4])


def log_importance(scores: Float[Tensor, "B G M R n"], past: Bool[Tensor, "B 1 R n"]) -> Float[Tensor, "B G R n"]:
    """log π_tj up to a constant of the row, π_tj = (1/M) Σ_h softmax_{j in Ω_t}(g^h_tj); -inf outside Ω_t.

    For one query head it is g itself. Kept as a logarithm, so that an order among small π survives.
    """
    past = past.unsqueeze(2)
    if scores.shape[2] == 1:
        return scores.masked_fill(~past, -math.inf).squeeze(2)
    # Only what has a finite logarithm goes through one, or its gradient would be NaN.
    scores = scores.masked_fill(~past, 0.0)
    total = scores.masked_fill(~past & past.any(-1, keepdim=True), -math.inf).logsumexp(-1, keepdim=True)
    return (scores - total).logsumexp(2).masked_fill(~past.squeeze(2), -math.inf)


def block_shares(
    q: Float[Tensor, "B G M R D"],
    summaries: Summaries,
    weights: ScoreWeights,
    past: Bool[Tensor, "B 1 R n"],
) -> Float[Tensor, "B G R n"]:
    """π_tj, zeros outside Ω_t. A gradient reaches the weights alone."""
    importance = log_importance(block_scores(q, summaries, weights), past)
    # A row without past gets harmless numbers before its logarithms, so that no NaN enters the gradient.
    return importance.masked_fill(~past.any(-1, keepdim=True), 0.0).softmax(-1).masked_fill(~past, 0.0)
