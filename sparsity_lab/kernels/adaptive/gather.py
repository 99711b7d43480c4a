"""Exact attention on selected blocks, in time and memory linear in what is kept.

A row attends to its own block and to some earlier ones. The own blocks are dense tiles on the diagonal. All else is a
list of pairs (row, block), sorted by block and cut into tiles of equal size, each of one block; the last tile of a
block is filled up with pairs that do not count. So the tiles of a chunk are one batched product, with little waste
however little neighboring rows agree. Partial results are joined by their log-sum-exp. The backward pass computes
scores again. Scores and log-sum-exp are in units of log 2, since exp2 is several times faster than exp on a CPU.

Shapes: F heads of keys in the whole batch (B times G), M query heads that share one, R query rows (whole blocks of
them), n blocks, b keys in a block, D head size, P pairs, m tiles, r pairs in a tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["LOG2_E", "TILE_PAIRS", "GatherAttention", "ListedRows", "PairList", "Slab"]

CHUNK_SCORES = 2**18
"""How many scores are held at a time: a megabyte, so that they stay in a cache."""

TILE_PAIRS = 32
"""Larger tiles are hardly faster, and waste more where a block has few pairs."""

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class ListedRows:
    """Pairs (row, block) of consecutive rows of all heads.

    Attributes:
        rows: of the queries of a call; their positions are ``start`` and on.
        start: position of the first of these rows.
        head, row, block: (P,) each; head of keys f, row counted from the first of these.
    """

    rows: slice
    start: int
    head: Int64[Tensor, " P"]
    row: Int64[Tensor, " P"]
    block: Int64[Tensor, " P"]


@dataclass(frozen=True)
class Slab:
    """The pairs of some consecutive rows of one head of keys.

    Attributes:
        head: f.
        start, stop: rows, whole blocks of them.
        row: (m, r) rows counted from ``start``.
        block: (m,) block of each tile.
        absent: (m, r), infinite for pairs that do not count, else 0.
        pair: (m, r), which pair of the list this is, 0 for those that do not count.
    """

    head: int
    start: int
    stop: int
    row: Int64[Tensor, "m r"]
    block: Int64[Tensor, " m"]
    absent: Float[Tensor, "m r"]
    pair: Int64[Tensor, "m r"]

    def chunks(self, scores_of_pair: int) -> Iterator[slice]:
        """Runs of tiles with at most ``CHUNK_SCORES`` scores together, or one tile."""
        step = max(CHUNK_SCORES // (TILE_PAIRS * scores_of_pair), 1)
        for first in range(0, len(self.block), step):
            yield slice(first, first + step)


@dataclass(frozen=True)
class PairList:
    """All pairs of a call.

    Attributes:
        slabs: covering all rows of all heads.
        query_block: block of the first row.
        valid: (F, n, b), False for keys that nobody may see; None: all may.
    """

    slabs: list[Slab]
    query_block: int
    valid: Bool[Tensor, "F n b"] | None


class GatherAttention(torch.autograd.Function):
    """(F, R, M, D) outputs, and (F, R, M) lse^S, which has no gradient, from q (F, R, M, D), k and v (F, n, b, D).
    Queries come scaled, and times log2(e); lse^S too is in units of log 2.

    ``gates``, zeros if they are given, are added to the logits of the pairs of the list: only their gradient counts.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pairs: PairList, gates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q)
        log_mass = q.new_empty(q.shape[:-1])
        for slab in pairs.slabs:
            rows = slab.head, slice(slab.start, slab.stop)
            _slab_forward(q[rows], k[slab.head], v[slab.head], slab, pairs, out[rows], log_mass[rows])
        ctx.save_for_backward(q, k, v, out, log_mass)
        ctx.pairs, ctx.gates = pairs, None if gates is None else gates.shape
        ctx.mark_non_differentiable(log_mass)
        return out, log_mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor | None]:
        q, k, v, out, log_mass = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dgates = None if ctx.gates is None else q.new_zeros(ctx.gates)
        grad = grad.contiguous()
        # Rows without a key have weights exp(-inf - 0) = 0.
        log_mass = log_mass.masked_fill(log_mass == -torch.inf, 0.0)
        center = (grad * out).sum(-1)  # Σ_i P̂_ti <∂L/∂o_t, v_i>
        for slab in ctx.pairs.slabs:
            rows, head = (slab.head, slice(slab.start, slab.stop)), slab.head
            queries = q[rows], grad[rows], log_mass[rows], center[rows], dq[rows]
            _slab_backward(*queries, k[head], v[head], dk[head], dv[head], dgates, slab, ctx.pairs)
        return dq.div_(LOG2_E), dk.div_(LOG2_E), dv, None, dgates


def _own_blocks(slab: Slab, pairs: PairList, block_size: int) -> slice:
    return slice(pairs.query_block + slab.start // block_size, pairs.query_block + slab.stop // block_size)


def _own_hidden(slab: Slab, pairs: PairList, block_size: int, device: torch.device) -> Bool[Tensor, "#n b 1 b"]:
    """Which keys of its own block a row must not see: later ones, and masked ones."""
    hidden = torch.ones(block_size, block_size, dtype=torch.bool, device=device).triu(1)[None, :, None]
    if pairs.valid is None:
        return hidden
    return hidden | ~pairs.valid[slab.head, _own_blocks(slab, pairs, block_size)][:, None, None]


def _tile_scores(
    x: Float[Tensor, "m rM D"],
    k: Float[Tensor, "n b D"],
    block: Int64[Tensor, " m"],
    slab: Slab,
    pairs: PairList,
) -> Float[Tensor, "m rM b"]:
    scores = torch.bmm(x, k.index_select(0, block).mT)
    if pairs.valid is not None:
        scores.masked_fill_(~pairs.valid[slab.head].index_select(0, block).unsqueeze(1), -torch.inf)
    return scores


def _slab_forward(
    q: Float[Tensor, "R M D"],
    k: Float[Tensor, "n b D"],
    v: Float[Tensor, "n b D"],
    slab: Slab,
    pairs: PairList,
    out: Float[Tensor, "R M D"],
    log_mass: Float[Tensor, "R M"],
) -> None:
    """Fill ``out`` and ``log_mass``."""
    (num_rows, num_heads, head_dim), block_size = q.shape, k.shape[1]
    own = _own_blocks(slab, pairs, block_size)
    scores = torch.bmm(q.view(-1, block_size * num_heads, head_dim), k[own].mT)
    torch.unflatten(scores, 1, (block_size, num_heads)).masked_fill_(
        _own_hidden(slab, pairs, block_size, q.device), -torch.inf
    )
    largest = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(q.dtype).min)
    weights = scores.sub_(largest).exp2_()
    own_out = torch.bmm(weights, v[own]).view(q.shape)
    own_sum, own_largest = weights.sum(-1).view(num_rows, num_heads), largest.view(num_rows, num_heads)

    # Of each pair: the weighted values, unnormalized, the largest score, and the sum of weights beside it.
    num_tiles, row = len(slab.block), slab.row.flatten()
    part = q.new_empty(num_tiles, TILE_PAIRS * num_heads, head_dim)
    part_largest, part_sum = q.new_empty(2, num_tiles, TILE_PAIRS * num_heads)
    for chunk in slab.chunks(block_size * num_heads):
        block = slab.block[chunk]
        x = q.index_select(0, slab.row[chunk].flatten()).view(len(block), -1, head_dim)
        scores = _tile_scores(x, k, block, slab, pairs)
        largest = scores.amax(-1, keepdim=True)  # finite: a selected block has a key that counts
        scores.sub_(largest).exp2_()
        part_largest[chunk] = largest.squeeze(-1)
        part_sum[chunk] = scores.sum(-1)
        torch.bmm(scores, v.index_select(0, block), out=part[chunk])

    part_largest, part_sum = part_largest.view(-1, num_heads), part_sum.view(-1, num_heads)
    part_largest -= slab.absent.view(-1, 1)
    top = own_largest.scatter_reduce(0, row.unsqueeze(1).expand(-1, num_heads), part_largest, "amax")
    own_share, share = (own_largest - top).exp2_(), (part_largest - top.index_select(0, row)).exp2_()
    total = (own_share * own_sum).index_add_(0, row, share * part_sum)
    torch.add(top, total.log2(), out=log_mass)
    scale = total.clamp_min(torch.finfo(q.dtype).tiny).reciprocal_()  # without a key all is zero
    part = part.view(-1, num_heads, head_dim).mul_(share.unsqueeze(-1))
    torch.mul(own_out, own_share.unsqueeze(-1), out=out)
    out.index_add_(0, row, part).mul_(scale.unsqueeze(-1))


def _slab_backward(
    q: Float[Tensor, "R M D"],
    grad: Float[Tensor, "R M D"],
    log_mass: Float[Tensor, "R M"],
    center: Float[Tensor, "R M"],
    dq: Float[Tensor, "R M D"],
    k: Float[Tensor, "n b D"],
    v: Float[Tensor, "n b D"],
    dk: Float[Tensor, "n b D"],
    dv: Float[Tensor, "n b D"],
    dgates: Float[Tensor, " P"] | None,
    slab: Slab,
    pairs: PairList,
) -> None:
    """Add to the gradients of q, k, v and gates: with P̂ = exp(score - lse), dP̂ = grad vᵀ and
    dS = P̂ (dP̂ - center)."""
    (_, num_heads, head_dim), block_size = q.shape, k.shape[1]
    own = _own_blocks(slab, pairs, block_size)
    tiles = -1, block_size * num_heads
    x, y = q.view(*tiles, head_dim), grad.view(*tiles, head_dim)
    scores = torch.bmm(x, k[own].mT)
    torch.unflatten(scores, 1, (block_size, num_heads)).masked_fill_(
        _own_hidden(slab, pairs, block_size, q.device), -torch.inf
    )
    weights = scores.sub_(log_mass.view(*tiles, 1)).exp2_()
    dv[own] += torch.bmm(weights.mT, y)
    slope = torch.bmm(y, v[own].mT).sub_(center.view(*tiles, 1)).mul_(weights)
    dk[own] += torch.bmm(slope.mT, x)
    dq += torch.bmm(slope, k[own]).view(dq.shape)

    for chunk in slab.chunks(block_size * num_heads):
        row, block = slab.row[chunk].flatten(), slab.block[chunk]
        tiles = len(block), TILE_PAIRS * num_heads
        x, y = (rows.index_select(0, row).view(*tiles, head_dim) for rows in (q, grad))
        # What does not count has weights exp(-inf) = 0.
        shift = log_mass.index_select(0, row) + slab.absent[chunk].view(-1, 1)
        weights = _tile_scores(x, k, block, slab, pairs).sub_(shift.view(*tiles, 1)).exp2_()
        slope = torch.bmm(y, v.index_select(0, block).mT)
        slope.sub_(center.index_select(0, row).view(*tiles, 1)).mul_(weights)
        if dgates is not None:
            dgates.index_add_(0, slab.pair[chunk].flatten(), slope.sum(-1).view(len(row), num_heads).sum(-1))
        dv.index_add_(0, block, torch.bmm(weights.mT, y))
        dk.index_add_(0, block, torch.bmm(slope.mT, x))
        dx = torch.bmm(slope, k.index_select(0, block))
        dq.index_add_(0, row, dx.view(-1, num_heads, head_dim))
