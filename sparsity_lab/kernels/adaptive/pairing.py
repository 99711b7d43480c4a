"""From selection to the list of pairs (row, block) that ``gather`` computes: rows are selected in chunks, and of a
chunk only the pairs are kept, never a table of all rows and blocks.

Shapes: B batch, G heads of keys, M query heads that share one, R query rows (whole blocks of them), n blocks, b keys
in a block, D head size.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sparsity_lab.kernels.adaptive.gather import (
    LOG2_E,
    TILE_PAIRS,
    GatherAttention,
    ListedRows,
    PairList,
    Slab,
)
from sparsity_lab.kernels.adaptive.selector import Selector
from sparsity_lab.kernels.adaptive.straight_through import listed_gates
from sparsity_lab.kernels.adaptive.summaries import filled, in_blocks, mask_in_blocks

__all__ = ["gathered_attention"]

CHUNK_IMPORTANCES = 2**17
"""How many block scores are held at a time; 8 bytes each, in a few copies."""

SLAB_ROWS = 2**14
"""How many query rows of one head are computed at a time: partial results are held for each of their pairs."""


def gathered_attention(
    q: Float[Tensor, "B G M R D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K D"],
    query_start: int,
    selector: Selector,
    key_mask: Bool[Tensor, "B K"] | None,
    draws: Float[Tensor, "B G R words"] | None,
) -> Float[Tensor, "B G M R D"]:
    """The output of rows ``query_start`` and on, K = query_start + R."""
    block_size = selector.rule.block_size
    early, num_rows = query_start % block_size, q.shape[3]
    late = -(early + num_rows) % block_size
    # Whole blocks of rows: before and after come rows of zeros, which are dropped again.
    whole = filled(q, early, late)
    scaled = (whole * (LOG2_E / q.shape[-1] ** 0.5)).transpose(2, 3).flatten(0, 1).contiguous()
    keys, values = (in_blocks(x, block_size).flatten(0, 1) for x in (k, v))
    valid = None
    if key_mask is not None:
        table = mask_in_blocks(key_mask, k.shape[2], block_size, k.device)
        valid = table.unsqueeze(1).expand(-1, k.shape[1], -1, -1).flatten(0, 1)
    words = None if draws is None else filled(draws, early, late)
    with torch.no_grad():
        pairs, listed = _pairs(whole, scaled, keys, values, valid, query_start - early, selector, words)
    gates = listed_gates(whole, listed, selector) if selector.straight_through else None
    del listed  # three numbers for each pair, which only the gates need
    out, _ = GatherAttention.apply(scaled, keys, values, pairs, gates)  # type: ignore[no-untyped-call]
    result: Tensor = torch.unflatten(out, 0, q.shape[:2]).transpose(2, 3)
    return result[:, :, :, early : early + num_rows]


def _pairs(
    q: Float[Tensor, "B G M R D"],
    scaled: Float[Tensor, "F R M D"],
    keys: Float[Tensor, "F n b D"],
    values: Float[Tensor, "F n b D"],
    valid: Bool[Tensor, "F n b"] | None,
    query_start: int,
    selector: Selector,
    draws: Float[Tensor, "B G R words"] | None,
) -> tuple[PairList, list[ListedRows]]:
    """Select for all rows; queries come un-scaled for this."""
    batch_size, num_heads, group, num_rows, _ = q.shape
    block_size, num_blocks = selector.rule.block_size, keys.shape[1]
    fold = len(scaled)
    most = max(CHUNK_IMPORTANCES // (fold * group * num_blocks), 1)
    chunk_rows = -(-most // block_size) * block_size
    found = []
    for first in range(0, num_rows, chunk_rows):
        chunk = slice(first, min(first + chunk_rows, num_rows))
        start = query_start + first

        def log_mass(codes: Tensor, chunk: slice = chunk, start: int = start) -> Tensor:
            rows = slice(0, chunk.stop - chunk.start)
            own = [_listed(codes, rows, start, block_size)]
            pairs = PairList(_slabs(own, scaled, rows.stop, num_blocks, block_size), start // block_size, valid)
            _, mass = GatherAttention.apply(scaled[:, chunk], keys, values, pairs)  # type: ignore[no-untyped-call]
            grouped: Tensor = torch.unflatten(mass / LOG2_E, 0, (batch_size, num_heads)).transpose(2, 3)
            return grouped

        positions = torch.arange(start, start + chunk.stop - chunk.start, device=q.device)[None]
        words = None if draws is None else draws[:, :, chunk]
        codes = selector.select(q[:, :, :, chunk], positions, log_mass, words)
        found.append(_listed(codes, chunk, start, block_size))
    slabs = _slabs(found, scaled, num_rows, num_blocks, block_size)
    return PairList(slabs, query_start // block_size, valid), found


def _listed(codes: UInt8[Tensor, "B G R n"], rows: slice, start: int, block_size: int) -> ListedRows:
    """Everything that these rows keep but their own blocks."""
    kept = (codes > 0).flatten(0, 1)
    row = torch.arange(kept.shape[1], device=codes.device)
    kept[:, row, (start + row) // block_size] = False
    return ListedRows(rows, start, *kept.nonzero(as_tuple=True))


def _slabs(
    found: list[ListedRows],
    q: Float[Tensor, "F R M D"],
    num_rows: int,
    num_blocks: int,
    block_size: int,
) -> list[Slab]:
    """Slabs of rows and their pairs in tiles."""
    head = torch.cat([part.head for part in found])
    row = torch.cat([part.row + part.rows.start for part in found])
    block = torch.cat([part.block for part in found])
    slab_rows = max(SLAB_ROWS // block_size, 1) * block_size
    parts = -(-num_rows // slab_rows)
    # Sorted by slab and block; then where each pair comes to lie when every block has whole tiles.
    key, order = ((head * parts + row // slab_rows) * num_blocks + block).sort(stable=True)
    counts = key.bincount(minlength=len(q) * parts * num_blocks)
    tiles = (counts + TILE_PAIRS - 1) // TILE_PAIRS
    shift = (tiles * TILE_PAIRS).cumsum(0) - tiles * TILE_PAIRS - (counts.cumsum(0) - counts)
    place = torch.arange(len(key), device=key.device) + shift[key]
    num_tiles = int(tiles.sum())
    pairs = key.new_zeros(num_tiles * TILE_PAIRS).index_copy_(0, place, order)
    rows = key.new_zeros(num_tiles * TILE_PAIRS).index_copy_(0, place, (row % slab_rows)[order])
    absent = q.new_full((num_tiles * TILE_PAIRS,), torch.inf).index_fill_(0, place, 0.0)
    blocks = torch.arange(num_blocks, device=key.device).repeat(len(q) * parts).repeat_interleave(tiles)
    sizes = tiles.view(-1, num_blocks).sum(1).tolist()
    of_tiles = rows.view(-1, TILE_PAIRS), blocks, absent.view(-1, TILE_PAIRS), pairs.view(-1, TILE_PAIRS)
    slabs = []
    for index, part in enumerate(zip(*(torch.split(x, sizes) for x in of_tiles), strict=True)):
        start = index % parts * slab_rows
        slabs.append(Slab(index // parts, start, min(start + slab_rows, num_rows), *part))
    return slabs
