"""Adaptive sparse attention on kept blocks alone: gathered pairs of rows and blocks, tiles under a mask, decoding.

**Gathering** takes time and memory linear in what is kept. Rows are selected in chunks, and of a chunk only its pairs
(row, block) stay. The pairs of a slab of rows are sorted by block and cut into tiles of equal size, each within one
block. Masked pairs fill up the last tile of a block. So the tiles of a chunk are one batched product, with little
waste however little neighboring rows agree. Partial results are joined by their log-sum-exp. The backward pass
computes scores again. Scores and log-sum-exp are in units of log 2, since exp2 is several times faster than exp on a
CPU.

Shapes: B batch, G key heads, M query heads per key head, R query rows, K keys, n blocks, b keys per block, D head
size, E value width. Gathering concatenates all key heads of the batch: N rows (whole blocks of each head), c blocks
in all, P pairs, m tiles, r pairs per tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from sparsity_lab.kernels.adaptive.formula import (
    Codes,
    Positions,
    Rows,
    Selector,
    Summaries,
    dense_logits,
    select_densely,
    summarize,
    weights_on,
)
from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.context import Keys, Values
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.fused import masked_attention, scaled_dot_product
from sparsity_lab.kernels.parts.masking import first_visible
from sparsity_lab.kernels.parts.profile import profile_of

TILE_PAIRS = 32
"""Larger tiles are hardly faster, and waste more where a block has few pairs."""

CHUNK_SCORES = 2**18
"""How many scores of pairs are held at a time: a megabyte, so that they stay in a cache."""

CHUNK_IMPORTANCES = 2**17
"""How many block scores are held at a time; 8 bytes each, in a few copies."""

SLAB_ROWS = 2**12
"""How many rows are computed at a time: partial results are held for each of their pairs."""

_LOG2_E = math.log2(math.e)

RowOutputs = Float[Tensor, "B G M R E"]


# --- under a mask


def tiled_attention(
    q: Rows, k: Keys, v: Values, query_start: int, positions: Positions, selector: Selector
) -> RowOutputs:
    """The output of rows at these positions, at most ``query_start`` and on, by PyTorch's fused kernel, in tiles of
    rows. A tile's scores are computed again in the backward pass; of a tile its codes are kept, T n bytes in all."""
    tiles, profile = [], profile_of(q.device)
    size = profile.rows(profile.selected_rows, math.prod(q.shape[:3]) * k.shape[2] * 4)
    for first in range(0, q.shape[3], size):
        rows = q[:, :, :, first : first + size]
        stop = query_start + first + rows.shape[3]
        at = positions[:, first : first + size]
        keys, values = k[:, :, :stop], v[:, :, :stop]
        codes = select_densely(rows, keys, at, selector)
        run = partial(_masked_rows, codes=codes, positions=at, selector=selector)
        if q.shape[3] <= size:
            tiles.append(run(rows, keys, values))
        else:
            tiles.append(checkpoint(run, rows, keys, values, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(tiles, dim=3)


def _masked_rows(q: Rows, k: Keys, v: Values, codes: Codes, positions: Positions, selector: Selector) -> RowOutputs:
    mask = selector.kept_tokens(codes, positions, k.shape[2]).flatten(0, 1).unsqueeze(1)
    keys, values = (x.flatten(0, 1).unsqueeze(1).expand(-1, q.shape[2], -1, -1) for x in (k, v))
    padded = selector.key_mask is not None
    out = torch.unflatten(masked_attention(q.flatten(0, 1), keys, values, mask, None, padded=padded), 0, q.shape[:2])
    if selector.straight_through:
        # Zeros, with the reference's gradient to the weights of the score.
        through = weights_on(q.detach(), k.detach(), positions, codes, selector) @ v.detach().unsqueeze(2)
        out = out + (through - through.detach())
    return out


# --- gathering


def gathered_attention(q: Rows, k: Keys, v: Values, query_start: int, selector: Selector) -> RowOutputs:
    """The output of rows ``query_start`` and on, K = query_start + R."""
    block_size, group, num_given = selector.rule.block_size, q.shape[2], q.shape[3]
    # Whole blocks of rows: before and after come rows of zeros, which are dropped again.
    early = query_start % block_size
    q, start = _filled(q, early, -(early + num_given) % block_size), query_start - early
    scaled = (q * (_LOG2_E / q.shape[-1] ** 0.5)).transpose(2, 3).flatten(0, 1)
    keys, values = (_in_blocks(x, block_size) for x in (k, v))
    hidden = None
    if selector.key_mask is not None:
        rest = -k.shape[2] % block_size
        hidden = torch.unflatten(~pad(selector.key_mask, (0, rest)), 1, (-1, block_size))
        hidden = hidden.repeat_interleave(k.shape[1], dim=0).flatten(0, 1)
    num_heads, num_rows, num_blocks = len(scaled), q.shape[3], len(keys) // len(scaled)
    listing = partial(_slabs, num_heads=num_heads, num_blocks=num_blocks, block_size=block_size, hidden=hidden)
    most = max(CHUNK_IMPORTANCES // (num_heads * group * num_blocks), 1)
    chunk_rows = -(-most // block_size) * block_size
    found, gates = [], []
    for first in range(0, num_rows, chunk_rows):
        rows, of_rows = q[:, :, :, first : first + chunk_rows], scaled[:, first : first + chunk_rows]
        begin, number = start + first, rows.shape[3]

        def log_mass(codes: Tensor, of_rows: Tensor = of_rows, begin: int = begin) -> Tensor:
            slabs, _ = listing(_pairs(codes), None, num_rows=of_rows.shape[1], first_block=begin // block_size)
            _, mass = _Gathered.apply(of_rows.flatten(0, 1), keys, values, slabs, None)  # type: ignore[no-untyped-call]
            grouped: Tensor = mass.view(*q.shape[:2], -1, group).transpose(2, 3) / _LOG2_E
            return grouped

        positions = torch.arange(begin, begin + number, device=q.device)[None]
        seen_blocks = (begin + number) // block_size
        head, row, block = _pairs(selector.select(rows, positions, seen_blocks, log_mass))
        found.append((head, first + row, block))
        if selector.straight_through:
            run = partial(checkpoint, selector.gates, use_reentrant=False, preserve_rng_state=False)
            gates.append(run(rows, positions, seen_blocks).flatten(0, 1)[head, row, block].to(q.dtype))
    head, row, block = (torch.cat(part) for part in zip(*found, strict=True))
    of_pairs = torch.cat(gates) if gates else None
    slabs, of_tiles = listing((head, row, block), of_pairs, num_rows=num_rows, first_block=start // block_size)
    del found, head, row, block  # as large as an output
    out, _ = _Gathered.apply(scaled.flatten(0, 1), keys, values, slabs, of_tiles)  # type: ignore[no-untyped-call]
    result: Tensor = out.view(*q.shape[:2], num_rows, group, -1).transpose(2, 3)
    return result[:, :, :, early : early + num_given]


def _filled(x: Float[Tensor, "*batch K D"], before: int, after: int) -> Float[Tensor, "*batch all D"]:
    """Rows with rows of zeros before and after them; without any x itself, of which ``pad`` would make a copy."""
    return pad(x, (0, 0, before, after)) if before or after else x


def _in_blocks(x: Keys, block_size: int) -> Float[Tensor, "c b D"]:
    return _filled(x, 0, -x.shape[2] % block_size).reshape(-1, block_size, x.shape[3])


Pairs = tuple[Int64[Tensor, " P"], Int64[Tensor, " P"], Int64[Tensor, " P"]]
"""Head of keys, row and block of each pair."""


def _pairs(codes: Codes) -> Pairs:
    head, row, block = (codes > 0).flatten(0, 1).nonzero(as_tuple=True)
    return head, row, block


@dataclass(frozen=True)
class _Slab:
    """The pairs of some consecutive rows.

    Attributes:
        rows: whole blocks of them.
        num_own: how many tiles, the first ones, are of rows and their own blocks.
        row: (m, r), counted from the first row.
        block: (m,).
        absent: (m, r), infinite for pairs that do not count, else 0.
        hidden: (c, b), True for keys that no row may see; None: there are none.
    """

    rows: slice
    num_own: int
    row: Int64[Tensor, "m r"]
    block: Int64[Tensor, " m"]
    absent: Float[Tensor, "m r"]
    hidden: Bool[Tensor, "c b"] | None

    def chunks(
        self, q: Float[Tensor, "rows M D"], k: Float[Tensor, "c b D"]
    ) -> Iterator[tuple[slice, Int64[Tensor, " pairs"], Int64[Tensor, " m"], Tensor, Tensor]]:
        """Runs of tiles with at most ``CHUNK_SCORES`` scores together, or one tile. Each gives its tiles, rows and
        blocks, its queries (m, r M, D), and its scores (m, r M, b), -inf where a key is masked."""
        num_tiles, (_, num_heads, head_dim), block_size = len(self.block), q.shape, k.shape[1]
        step = max(CHUNK_SCORES // (TILE_PAIRS * block_size * num_heads), 1)
        firsts = [*range(0, self.num_own, step), *range(self.num_own, num_tiles, step), num_tiles]
        for first, stop in pairwise(firsts):
            chunk = slice(first, stop)
            row, block = self.row[chunk].flatten(), self.block[chunk]
            x = q.index_select(0, row).view(len(block), -1, head_dim)
            scores = torch.bmm(x, k.index_select(0, block).mT)
            if first < self.num_own:
                later = torch.arange(block_size, device=q.device) > (row % block_size).unsqueeze(1)
                scores.view(len(row), num_heads, block_size).masked_fill_(later.unsqueeze(1), -math.inf)
            if self.hidden is not None:
                scores.masked_fill_(self.hidden.index_select(0, block).unsqueeze(1), -math.inf)
            yield chunk, row, block, x, scores


def _slabs(
    pairs: Pairs,
    gates: Float[Tensor, " P"] | None,
    *,
    num_heads: int,
    num_rows: int,
    num_blocks: int,
    first_block: int,
    block_size: int,
    hidden: Bool[Tensor, "c b"] | None,
) -> tuple[list[_Slab], Float[Tensor, "m r"] | None]:
    """All slabs, and the gates of the pairs of all their tiles.

    Args:
        num_rows, num_blocks: of each head.
        first_block: the own block of the first row.
    """
    head, row, block = pairs
    other = block != first_block + row // block_size
    row, block = head * num_rows + row, head * num_blocks + block
    slab_rows = max(SLAB_ROWS // block_size, 1) * block_size
    slab_starts = range(0, num_heads * num_rows, slab_rows)
    # Sorted by slab, own blocks first, and block; then where each pair comes to lie when every block has whole tiles.
    all_blocks = num_heads * num_blocks
    key, order = ((row // slab_rows * 2 + other) * all_blocks + block).sort(stable=True)
    groups, group, counts = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    tiles = (counts + TILE_PAIRS - 1) // TILE_PAIRS
    shift = (tiles * TILE_PAIRS).cumsum(0) - tiles * TILE_PAIRS - (counts.cumsum(0) - counts)
    place = torch.arange(len(key), device=key.device) + shift[group]
    sizes = tiles.new_zeros(2 * len(slab_starts)).index_add_(0, groups // all_blocks, tiles).view(-1, 2).tolist()
    blocks, total = (groups % all_blocks).repeat_interleave(tiles), TILE_PAIRS * sum(map(sum, sizes))
    rows = key.new_zeros(total).index_copy_(0, place, (row % slab_rows)[order]).view(-1, TILE_PAIRS)
    absent = torch.full((total,), math.inf, device=key.device).index_fill_(0, place, 0.0).view(-1, TILE_PAIRS)
    slabs, first = [], 0
    for start, (num_own, num_other) in zip(slab_starts, sizes, strict=True):
        part = slice(first, first + num_own + num_other)
        within = slice(start, min(start + slab_rows, num_heads * num_rows))
        slabs.append(_Slab(within, num_own, rows[part], blocks[part], absent[part], hidden))
        first = part.stop
    if gates is not None:
        gates = gates.new_zeros(total).index_copy(0, place, gates[order]).view(-1, TILE_PAIRS)
    return slabs, gates


class _Gathered(torch.autograd.Function):
    """(N, M, E) outputs, and (N, M) lse^S, which has no gradient, from q (N, M, D), k (c, b, D) and v (c, b, E).
    Queries come scaled, and times log2(e); lse^S too is in units of log 2.

    ``gates`` (m, r) of all tiles, zeros, are added to the logits of their pairs: only their gradient counts.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, slabs: list[_Slab], gates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, log_mass = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1])
        for slab in slabs:
            out[slab.rows], log_mass[slab.rows] = _slab_forward(q[slab.rows], k, v, slab)
        ctx.save_for_backward(q, k, v, out, log_mass)
        ctx.slabs, ctx.gated = slabs, gates is not None
        ctx.mark_non_differentiable(log_mass)
        return out, log_mass

    @staticmethod
    @own_backward
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor | None]:
        """With P̂ = exp(score - lse), dP̂ = grad vᵀ and dS = P̂ (dP̂ - Σ_i P̂_ti <∂L/∂o_t, v_i>)."""
        q, k, v, out, log_mass = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # Rows without a key have weights exp(-inf - 0) = 0.
        log_mass, center = log_mass.masked_fill(log_mass == -math.inf, 0.0), (grad * out).sum(-1)
        of_gates = []
        for slab in ctx.slabs:
            rows, per_row = slab.rows, (len(slab.block), -1, 1)
            # What does not count has weights exp(-inf) = 0.
            shift = (log_mass[rows][slab.row] + slab.absent.unsqueeze(-1)).view(per_row)
            of_row, grads, into = center[rows][slab.row].view(per_row), grad[rows], dq[rows]
            for chunk, row, block, x, scores in slab.chunks(q[rows], k):
                weights = scores.sub_(shift[chunk]).exp2_()
                y = grads.index_select(0, row).view(len(block), -1, v.shape[-1])
                slope = torch.bmm(y, v.index_select(0, block).mT).sub_(of_row[chunk]).mul_(weights)
                if ctx.gated:
                    of_gates.append(slope.sum(-1).view(len(block), TILE_PAIRS, -1).sum(-1))
                dv.index_add_(0, block, torch.bmm(weights.mT, y))
                dk.index_add_(0, block, torch.bmm(slope.mT, x))
                into.index_add_(0, row, torch.bmm(slope, k.index_select(0, block)).view(len(row), *q.shape[1:]))
        dgates = torch.cat(of_gates) if ctx.gated else None
        return dq.div_(_LOG2_E), dk.div_(_LOG2_E), dv, None, dgates


def _slab_forward(
    q: Float[Tensor, "R M D"], k: Float[Tensor, "c b D"], v: Float[Tensor, "c b E"], slab: _Slab
) -> tuple[Float[Tensor, "R M E"], Float[Tensor, "R M"]]:
    """Outputs and lse^S of the rows of a slab."""
    num_heads, value_dim, num_tiles = q.shape[1], v.shape[-1], len(slab.block)
    # Of each pair: the sum of weighted values, the largest score, and the sum of weights, all without normalization.
    part = q.new_empty(num_tiles, TILE_PAIRS * num_heads, value_dim)
    largest, total = q.new_empty(2, num_tiles, TILE_PAIRS * num_heads)
    for chunk, _, block, _, scores in slab.chunks(q, k):
        # Finite also where a row sees no key of its own block.
        torch.amax(scores, -1, out=largest[chunk]).clamp_min_(torch.finfo(q.dtype).min)
        weights = scores.sub_(largest[chunk].unsqueeze(-1)).exp2_()
        torch.sum(weights, -1, out=total[chunk])
        torch.bmm(weights, v.index_select(0, block), out=part[chunk])
    row, part = slab.row.flatten(), part.view(-1, num_heads, value_dim)
    largest, total = (x.view(-1, num_heads) for x in (largest, total))
    largest -= slab.absent.view(-1, 1)
    top = q.new_full(q.shape[:-1], -math.inf)
    top.scatter_reduce_(0, row.unsqueeze(1).expand(-1, num_heads), largest, "amax")
    share = (largest - top.index_select(0, row)).exp2_()
    mass = torch.zeros_like(top).index_add_(0, row, share * total)
    out = q.new_zeros(*q.shape[:-1], value_dim).index_add_(0, row, part.mul_(share.unsqueeze(-1)))
    # Without a key all is zero.
    return out.div_(mass.clamp_min(torch.finfo(q.dtype).tiny).unsqueeze(-1)), top + mass.log2()


# --- decoding


class AdaptiveState(KeyValueCache):
    """Keys and values of all tokens seen, and summaries of all full blocks.

    The keys of the block that is not full yet wait in the precision that they were rotated in. When it is full, the
    function that ``attend`` uses makes its summary from them. So decoding selects as ``attend`` does, even if the
    cache rounds keys to half precision.

    Where tokens may be hidden, each sequence is kept from its first visible token on.

    Attributes:
        skipped: (B, 1), how many hidden tokens stood before the first visible one; None while there was no mask.
        blocks: (B G n, b, D + E), each key followed by its value, so that a block is one piece of memory; zeros in
            free places.
        first_blocks: (B G, 1), where those of each head begin.
        summaries: of all blocks; those that are not full mean nothing.
    """

    def __init__(self, rows: RowKind, capacity: int, block_size: int) -> None:
        super().__init__(rows, capacity)
        num_blocks = -(-capacity // block_size)
        batch_size, num_heads, head_dim, value_dim, dtype, device = rows
        width = head_dim + value_dim
        pairs = torch.zeros(batch_size, num_heads, num_blocks * block_size, width, dtype=dtype, device=device)
        self._keys, self._values = pairs[..., :head_dim], pairs[..., head_dim:]
        self.blocks = pairs.view(-1, block_size, width)
        self.first_blocks = torch.arange(0, len(self.blocks), num_blocks, device=device).unsqueeze(1)
        self._waiting = torch.zeros(batch_size, num_heads, 0, head_dim, dtype=dtype, device=device)
        # Two more than there are blocks: sequences that begin at several places fill up to so many.
        log_count = torch.zeros(batch_size, num_blocks + 2, dtype=torch.float64, device=device)
        moments, box = log_count.new_zeros(2, batch_size, num_heads, num_blocks + 2, 2 * head_dim)
        self.summaries = Summaries(log_count, moments, box)
        self.skipped: Tensor | None = None

    def extend(self, k: Keys, v: Values, key_mask: Bool[Tensor, "B K"] | None) -> None:
        """Add R tokens, whose keys come in float32 at least.

        Raises:
            SettingError: as ``append``.
        """
        if key_mask is not None or self.skipped is not None:
            self._extend_apart(k, v, key_mask)
            return
        self.append(k.to(v.dtype), v)
        block_size, start = self.blocks.shape[1], self.length - k.shape[2] - self._waiting.shape[2]
        rounded = k.dtype != v.dtype
        keys = torch.cat([self._waiting.to(k.dtype), k], dim=2) if rounded else self.keys[:, :, start:]
        stop = self.length // block_size * block_size
        if start < stop:
            blocks = slice(start // block_size, stop // block_size)
            full = summarize(keys[:, :, : stop - start], None, block_size)
            self.summaries.log_count[:, blocks] = full.log_count
            self.summaries.moments[:, :, blocks], self.summaries.box[:, :, blocks] = full.moments, full.box
            keys = keys[:, :, stop - start :].clone()
        self._waiting = keys

    def _extend_apart(self, k: Keys, v: Values, key_mask: Bool[Tensor, "B K"] | None) -> None:
        """The same where sequences begin at several places: a tensor of places takes the place of each slice, and all
        blocks that may have changed are summarized."""
        block_size, total, number = self.blocks.shape[1], self._keys.shape[2], k.shape[2]
        if self.skipped is None:
            self.skipped = torch.zeros(len(k), 1, dtype=torch.int64, device=k.device)
            self._key_mask = torch.zeros(len(k), total, dtype=torch.bool, device=k.device)
            self._key_mask[:, : self.length] = True
            self._waiting = _filled(self._waiting, 0, block_size - self._waiting.shape[2])
        assert self._key_mask is not None
        mask = self._key_mask.new_ones(len(k), number) if key_mask is None else key_mask
        start, new = self.length - self.skipped, torch.arange(number, device=k.device)
        begin = first_visible(mask, 1)
        hidden = begin.places.masked_fill(~begin.there, number).masked_fill(start > 0, 0)
        # What comes after the last token is hidden too, until other tokens are written there.
        source = new + hidden
        there, source = source < number, source.clamp_max(number - 1)
        k, v = _taken(k, source), _taken(v, source)
        places = start + new
        self._keys.scatter_(2, _as_index(places, self._keys), k.to(v.dtype))
        self._values.scatter_(2, _as_index(places, self._values), v)
        self._key_mask.scatter_(1, places, mask.gather(1, source) & there)
        self.advance(number)
        self.skipped = self.skipped + hidden

        first = start // block_size * block_size
        num_blocks = (number + 2 * block_size - 2) // block_size
        place = torch.arange(num_blocks * block_size, device=k.device)
        index = torch.where(place < start - first, place, block_size + (place - start + first).clamp_max(number - 1))
        keys = _taken(torch.cat([self._waiting.to(k.dtype), k], dim=2), index)
        valid = self._key_mask.gather(1, (first + place).clamp_max(total - 1)) & (first + place < total)
        found = summarize(keys, valid, block_size)
        blocks = first // block_size + torch.arange(num_blocks, device=k.device)
        self.summaries.log_count.scatter_(1, blocks, found.log_count)
        for table, part in ((self.summaries.moments, found.moments), (self.summaries.box, found.box)):
            table.scatter_(2, _as_index(blocks, part), part)
        waiting = (self.length - self.skipped) // block_size * block_size - first
        rest = waiting + torch.arange(block_size, device=k.device)
        self._waiting = _taken(keys, rest.clamp_max(keys.shape[2] - 1))


def _as_index(places: Int64[Tensor, "B K"], x: Float[Tensor, "B G n D"]) -> Int64[Tensor, "B G K D"]:
    return places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])


def _taken(x: Float[Tensor, "B G n D"], places: Int64[Tensor, "B K"]) -> Float[Tensor, "B G K D"]:
    return x.gather(2, _as_index(places, x))


def moved(x: Float[Tensor, "B G n D"], by: Int64[Tensor, "B 1"]) -> Float[Tensor, "B G n D"]:
    """Rows of each sequence from place ``by`` on; before the first and after the last row come copies of it."""
    return _taken(x, (torch.arange(x.shape[2], device=x.device) + by).clamp(0, x.shape[2] - 1))


def decoded_row(q: Rows, state: AdaptiveState, selector: Selector) -> RowOutputs:
    """The output of the latest row, whose key and value the state already has. No gradient."""
    row, block_size, block = state.length - 1, selector.rule.block_size, selector.fixed_blocks(q, state.length - 1)
    positions = torch.full((1, 1), row, device=q.device) - (0 if state.skipped is None else state.skipped)
    own = (
        positions.unsqueeze(-1) if state.skipped is None else positions.repeat_interleave(q.shape[1], 0).unsqueeze(-1)
    )
    # Each head of keys is a sequence of its own.
    folded = q.flatten(0, 1).unsqueeze(1)

    def gathered(block: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B G, 1, keys, D) and values (B G, 1, keys, E) of blocks (B G, kept)."""
        found = state.blocks.index_select(0, (state.first_blocks + block).flatten())
        pairs = found.view(len(folded), 1, -1, found.shape[2]).to(q.dtype)
        return pairs[..., : q.shape[4]], pairs[..., q.shape[4] :]

    def seen_blocks(codes: Tensor) -> tuple[Tensor, Tensor]:
        """The kept blocks, and which of their keys the row sees. Heads that keep fewer than others are filled up."""
        waits = profile_of(q.device).asynchronous
        most = selector.rule.most_kept(codes.shape[-1]) if waits else int((codes > 0).sum(-1).max())
        kept, block = codes.flatten(0, 2).topk(most, dim=-1)
        position = block.unsqueeze(-1) * block_size + torch.arange(block_size, device=q.device)
        seen = (kept > 0).unsqueeze(-1) & (position <= own)
        if selector.key_mask is not None:
            mask = selector.key_mask.repeat_interleave(q.shape[1], dim=0)
            seen = seen & mask.gather(1, position.clamp_max(row).flatten(1)).view(seen.shape)
        return block, seen.flatten(1)[:, None, None]

    def log_mass(codes: Tensor) -> Tensor:
        block, seen = seen_blocks(codes)
        return dense_logits(folded, gathered(block)[0], seen).logsumexp(-1).view(q.shape[:-1])

    if block is not None:
        keys, values = gathered(block.flatten(0, 1))
        length = keys.shape[2] - (-state.length % block_size)  # the own block comes last
        return scaled_dot_product(folded.squeeze(3), keys[:, :, :length], values[:, :, :length]).view(
            *q.shape[:4], -1
        )
    block, seen = seen_blocks(selector.select(q, positions, row // block_size + 1, log_mass))
    seen = seen.expand(-1, -1, q.shape[2], -1)
    padded = selector.key_mask is not None
    return masked_attention(folded.squeeze(3), *gathered(block), seen, None, padded=padded).view(*q.shape[:4], -1)
