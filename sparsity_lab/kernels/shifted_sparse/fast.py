"""Shifted sparse attention by PyTorch's fused kernel.

Without mask and bias the groups of half the heads are one batched call. Nothing is rolled or padded: groups are
slices, and only a wrap group whose halves see each other is put together from two.
"""

from itertools import pairwise

import torch
from torch import Tensor

from sparsity_lab.kernels.context import Keys, Outputs, Queries, Values
from sparsity_lab.kernels.parts.scaled_dot_product import scaled_dot_product
from sparsity_lab.kernels.parts.tiles import Tile, disjoint
from sparsity_lab.kernels.shifted_sparse.formula import Groups

HeadRows = tuple[Tensor, ...]
"""Queries, keys and values of the same heads and positions, (B, H, T, D) each."""


def group_attention(q: Queries, k: Keys, v: Values, groups: Groups) -> Outputs:
    """(B, H, T, E): every row attends inside its group; queries and keys come rotated."""
    rows = q, k, v
    if not groups.shifted:
        outs = _consecutive(rows, groups)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    first_stop, last_start = groups.wrap
    if groups.variant == "split":
        first, others = _split(rows, first_stop)
        return torch.cat([_attend(first, groups), *_consecutive(others, groups)], dim=2)
    first, middle, last = _split(rows, first_stop, last_start)
    if groups.variant == "wrap_causal":
        (out_first,), (out_last,) = _split((_attend(_joined(first, last), groups),), first_stop)
    else:
        (out_last,), (out_first,) = _split((_attend(_joined(last, first), groups),), last[0].shape[2])
    return torch.cat([out_first, *_consecutive(middle, groups), out_last], dim=2)


def group_tiles(
    query_start: int, num_rows: int, groups: Groups, tile_rows: int, *, moved: bool = False
) -> list[Tile]:
    """Tiles of the rows at positions ``query_start`` and on.

    Args:
        moved: the groups of each sequence begin somewhere else.
    """
    stop = query_start + num_rows
    borders = [*range(query_start, stop, tile_rows), stop]
    if moved:
        before = groups.size - 1
        after = 0 if groups.causal else before
        return [
            Tile(slice(a, b), (slice(max(a - before, 0), min(b + after, groups.length)),))
            for a, b in pairwise(borders)
        ]
    return [Tile(slice(a, b), _keys_of(a, b, groups)) for a, b in pairwise(borders)]


def _keys_of(start: int, stop: int, groups: Groups) -> tuple[slice, ...]:
    """Ranges that hold all keys that rows start .. stop - 1 see: from the first one's group to the last one's."""
    size, length = groups.size, groups.length
    g = size // 2 if groups.shifted else 0
    first, last = (start + g) // size * size - g, -(-(stop + g) // size) * size - g
    ranges = [(max(first, 0), stop if groups.causal else min(last, length))]
    if groups.shifted and groups.variant != "split":
        first_stop, last_start = groups.wrap
        if stop > last_start:
            ranges.append((0, first_stop))
        if start < first_stop and not (groups.causal and groups.variant == "wrap_causal"):
            ranges.append((last_start, length))
    return disjoint(ranges)


def _consecutive(rows: HeadRows, groups: Groups) -> list[Tensor]:
    """The outputs of consecutive groups from the first row on: of the whole ones, and of the rest."""
    batch_size, num_heads, length, _ = rows[0].shape
    num_groups = length // groups.size
    whole, rest = _split(rows, num_groups * groups.size)
    outs = []
    if num_groups:
        # Groups join the batch, not the heads: the fused kernel writes (B, T, H, D), whose groups are views.
        apart = (x.reshape(batch_size, num_heads, num_groups, groups.size, x.shape[3]) for x in whole)
        out = _attend(tuple(x.transpose(1, 2).flatten(0, 1) for x in apart), groups)
        out = out.reshape(batch_size, num_groups, num_heads, groups.size, out.shape[3])
        outs.append(out.transpose(1, 2).flatten(2, 3))
    if rest[0].shape[2]:
        outs.append(_attend(rest, groups))
    return outs


def _attend(rows: HeadRows, groups: Groups) -> Tensor:
    q, k, v = rows
    return scaled_dot_product(q, k, v, is_causal=groups.causal)


def _split(rows: HeadRows, *borders: int) -> list[HeadRows]:
    """The rows between the borders. Not by slices: the gradient of a split is one copy for all its parts."""
    sizes = [stop - start for start, stop in pairwise((0, *borders, rows[0].shape[2]))]
    return list(zip(*(torch.split(x, sizes, dim=2) for x in rows), strict=True))


def _joined(first: HeadRows, second: HeadRows) -> HeadRows:
    return tuple(torch.cat(pair, dim=2) for pair in zip(first, second, strict=True))
