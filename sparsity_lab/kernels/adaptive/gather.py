"""Exact attention on selected blocks, in time and memory linear in what is kept.

A row attends to its own block and to some earlier ones. The own blocks are dense tiles on the diagonal. All else is a
list of pairs (row, block), sorted by block: the rows that keep a block are gathered, so that each block is one matrix
product without waste, however little neighbouring rows agree. Partial results are joined by their log-sum-exp. The
backward pass computes scores again.

Shapes: F heads of keys in the whole batch (B times G), M query heads that share one, R query rows (whole blocks of
them), n blocks, b keys in a block, D head size, P pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["GatherAttention", "PairList", "Slab"]

CHUNK_SCORES = 2**18
"""How many scores are held at a time: a megabyte, so that they stay in a cache."""


@dataclass(frozen=True)
class Slab:
    """The pairs of some consecutive rows of one head of keys.

    Attributes:
        head: f.
        start, stop: rows, whole blocks of them.
        row: (P,) rows counted from ``start``, sorted by block.
        counts: for each block with pairs, its index and how many there are.
    """

    head: int
    start: int
    stop: int
    row: Int64[Tensor, " P"]
    counts: list[tuple[int, int]]

    def chunks(self, most: int) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
        """Runs of blocks with at most ``most`` pairs together (or one block): where the pairs lie, and for each
        block where its own lie within the run."""
        begin = end = 0
        blocks: list[tuple[int, slice]] = []
        for block, count in self.counts:
            if blocks and end + count - begin > most:
                yield slice(begin, end), blocks
                begin, blocks = end, []
            blocks.append((block, slice(end - begin, end - begin + count)))
            end += count
        if blocks:
            yield slice(begin, end), blocks


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
    Queries come scaled."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pairs: PairList) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q)
        log_mass = q.new_empty(q.shape[:-1])
        for slab in pairs.slabs:
            rows = slab.head, slice(slab.start, slab.stop)
            _slab_forward(q[rows], k[slab.head], v[slab.head], slab, pairs, out[rows], log_mass[rows])
        ctx.save_for_backward(q, k, v, out, log_mass)
        ctx.pairs = pairs
        ctx.mark_non_differentiable(log_mass)
        return out, log_mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_mass = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad = grad.contiguous()
        # Rows without a key have weights exp(-inf - 0) = 0.
        log_mass = log_mass.masked_fill(log_mass == -torch.inf, 0.0)
        centre = (grad * out).sum(-1)  # Σ_i P̂_ti <∂L/∂o_t, v_i>
        for slab in ctx.pairs.slabs:
            rows, head = (slab.head, slice(slab.start, slab.stop)), slab.head
            queries = q[rows], grad[rows], log_mass[rows], centre[rows], dq[rows]
            _slab_backward(*queries, k[head], v[head], dk[head], dv[head], slab, ctx.pairs)
        return dq, dk, dv, None


def _own_blocks(slab: Slab, pairs: PairList, block_size: int) -> slice:
    return slice(pairs.query_block + slab.start // block_size, pairs.query_block + slab.stop // block_size)


def _own_hidden(slab: Slab, pairs: PairList, block_size: int, device: torch.device) -> Bool[Tensor, "#n b 1 b"]:
    """Which keys of its own block a row must not see: later ones, and masked ones."""
    hidden = torch.ones(block_size, block_size, dtype=torch.bool, device=device).triu(1)[None, :, None]
    if pairs.valid is None:
        return hidden
    return hidden | ~pairs.valid[slab.head, _own_blocks(slab, pairs, block_size)][:, None, None]


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
    weights = scores.sub_(largest).exp_()
    own_out = torch.bmm(weights, v[own]).view(q.shape)
    own_sum, own_largest = weights.sum(-1).view(num_rows, num_heads), largest.view(num_rows, num_heads)

    # Of each pair: the weighted values, unnormalised, the largest score, and the sum of weights beside it.
    num_pairs = len(slab.row)
    part = q.new_empty(num_pairs * num_heads, head_dim)
    part_largest, part_sum = q.new_empty(2, num_pairs, num_heads)
    for chunk, blocks in slab.chunks(CHUNK_SCORES // (block_size * num_heads)):
        x = q.index_select(0, slab.row[chunk]).view(-1, head_dim)
        scores = q.new_empty(len(x), block_size)
        places = [(block, _heads(place, num_heads)) for block, place in blocks]
        for block, place in places:
            torch.mm(x[place], k[block].t(), out=scores[place])
            if pairs.valid is not None:
                scores[place].masked_fill_(~pairs.valid[slab.head, block], -torch.inf)
        largest = scores.amax(-1, keepdim=True)  # finite: a selected block has a key that counts
        scores.sub_(largest).exp_()
        part_largest[chunk] = largest.view(-1, num_heads)
        part_sum[chunk] = scores.sum(-1).view(-1, num_heads)
        target = part[_heads(chunk, num_heads)]
        for block, place in places:
            torch.mm(scores[place], v[block], out=target[place])

    of_pair = slab.row.unsqueeze(1).expand(-1, num_heads)
    top = own_largest.scatter_reduce(0, of_pair, part_largest, "amax")
    own_share, share = (own_largest - top).exp_(), (part_largest - top.index_select(0, slab.row)).exp_()
    total = (own_share * own_sum).index_add_(0, slab.row, share * part_sum)
    torch.add(top, total.log(), out=log_mass)
    scale = total.clamp_min(torch.finfo(q.dtype).tiny).reciprocal_()  # without a key all is zero
    part.mul_(share.view(-1, 1))
    torch.mul(own_out, own_share.unsqueeze(-1), out=out)
    out.index_add_(0, slab.row, part.view(-1, num_heads, head_dim)).mul_(scale.unsqueeze(-1))


def _slab_backward(
    q: Float[Tensor, "R M D"],
    grad: Float[Tensor, "R M D"],
    log_mass: Float[Tensor, "R M"],
    centre: Float[Tensor, "R M"],
    dq: Float[Tensor, "R M D"],
    k: Float[Tensor, "n b D"],
    v: Float[Tensor, "n b D"],
    dk: Float[Tensor, "n b D"],
    dv: Float[Tensor, "n b D"],
    slab: Slab,
    pairs: PairList,
) -> None:
    """Add to ``dq``, ``dk`` and ``dv``: with P̂ = exp(score - lse), dP̂ = grad vᵀ and dS = P̂ (dP̂ - centre)."""
    (_, num_heads, head_dim), block_size = q.shape, k.shape[1]
    own = _own_blocks(slab, pairs, block_size)
    tiles = -1, block_size * num_heads
    x, y = q.view(*tiles, head_dim), grad.view(*tiles, head_dim)
    scores = torch.bmm(x, k[own].mT)
    torch.unflatten(scores, 1, (block_size, num_heads)).masked_fill_(
        _own_hidden(slab, pairs, block_size, q.device), -torch.inf
    )
    weights = scores.sub_(log_mass.view(*tiles, 1)).exp_()
    dv[own] += torch.bmm(weights.mT, y)
    slope = torch.bmm(y, v[own].mT).sub_(centre.view(*tiles, 1)).mul_(weights)
    dk[own] += torch.bmm(slope.mT, x)
    dq += torch.bmm(slope, k[own]).view(dq.shape)

    for chunk, blocks in slab.chunks(CHUNK_SCORES // (block_size * num_heads)):
        row = slab.row[chunk]
        x, y = (rows.index_select(0, row).view(-1, head_dim) for rows in (q, grad))
        weights, slope = q.new_empty(2, len(x), block_size)
        places = [(block, _heads(place, num_heads)) for block, place in blocks]
        for block, place in places:
            torch.mm(x[place], k[block].t(), out=weights[place])
            torch.mm(y[place], v[block].t(), out=slope[place])
            if pairs.valid is not None:
                weights[place].masked_fill_(~pairs.valid[slab.head, block], -torch.inf)
        weights.sub_(log_mass.index_select(0, row).view(-1, 1)).exp_()
        slope.sub_(centre.index_select(0, row).view(-1, 1)).mul_(weights)
        dx = torch.empty_like(x)
        for block, place in places:
            dv[block].addmm_(weights[place].t(), y[place])
            dk[block].addmm_(slope[place].t(), x[place])
            torch.mm(slope[place], k[block], out=dx[place])
        dq.index_add_(0, row, dx.view(-1, num_heads, head_dim))


def _heads(place: slice, num_heads: int) -> slice:
    """Where the query heads of these pairs lie."""
    return slice(place.start * num_heads, place.stop * num_heads)
