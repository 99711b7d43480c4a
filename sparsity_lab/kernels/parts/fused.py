"""Softmax attention by PyTorch's fused kernel, for values of any width and under a mask. Where a row sees few keys,
it goes in tiles of query rows, each on the ranges of keys that it can see.

In tiles memory is linear in T: masks live as long as their tile, and the backward pass computes each tile again. What
a tile adds to the gradients of keys and values goes straight to its ranges, so that time is linear too.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Seen, Values
from sparsity_lab.kernels.parts.backward import own_backward


def scaled_dot_product(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K E"],
    *,
    mask: Float[Tensor, "#B #H R K"] | Bool[Tensor, "#B #H R K"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "B H R E"]:
    """``torch.nn.functional.scaled_dot_product_attention``. Its fused forms want values as wide as keys, so the
    narrower of the two get columns of zeros, which change nothing.

    Args:
        scale: of the scores, before a mask of numbers; None is 1 / sqrt(D).
    """
    more = v.shape[-1] - q.shape[-1]
    if not more:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    width, scale = v.shape[-1], 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if more > 0:
        q, k = pad(q, (0, more)), pad(k, (0, more))
    else:
        v = pad(v, (0, -more))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)[..., :width]


@dataclass(frozen=True)
class Tile:
    """Rows, and ranges of keys among which lies all that these rows see.

    Attributes:
        rows: their positions.
        keys: ascending ranges of positions that do not meet.
    """

    rows: slice
    keys: tuple[slice, ...]


def whole_tile(q: Queries, k: Keys, context: Context) -> Tile:
    """All rows and all keys."""
    start = context.query_start
    return Tile(slice(start, start + q.shape[2]), (slice(0, k.shape[2]),))


def disjoint(ranges: Iterable[tuple[int, int]]) -> tuple[slice, ...]:
    """The same positions in ascending ranges that do not meet; empty ones are dropped."""
    joined: list[slice] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if joined and start <= joined[-1].stop:
            joined[-1] = slice(joined[-1].start, max(joined[-1].stop, stop))
        else:
            joined.append(slice(start, stop))
    return tuple(joined)


def seen_in(
    tile: Tile,
    sees: Callable[[Int64[Tensor, " R"], Int64[Tensor, " K"]], Bool[Tensor, "*B R K"]],
    context: Context,
    device: torch.device,
) -> Seen:
    """Which keys of its ranges the rows of a tile see, and the bias of their scores, None without one.

    Args:
        sees: (R, K) or (B, R, K) of positions of rows and of keys; the context's key mask and documents come on top.
    """
    rows = torch.arange(tile.rows.start, tile.rows.stop, device=device)
    keys = torch.cat([torch.arange(part.start, part.stop, device=device) for part in tile.keys])
    visible = sees(rows, keys)
    visible = visible.view(-1, 1, *visible.shape[-2:])
    if context.key_mask is not None:
        visible = visible & context.key_mask[:, None, None, keys]
    if context.document_ids is not None:
        ids = context.document_ids
        visible = visible & (ids[:, rows, None] == ids[:, None, keys]).unsqueeze(1)
    biases = [bias for part in tile.keys if (bias := context.bias(tile.rows, part)) is not None]
    return visible, torch.cat(biases, dim=-1) if biases else None


def masked_attention(
    q: Queries,
    k: Keys,
    v: Values,
    visible: Bool[Tensor, "#B 1 R K"],
    bias: Float[Tensor, "#B H R K"] | None,
    *,
    padded: bool,
    scale: float | None = None,
) -> Outputs:
    """Softmax attention by PyTorch's fused kernel under an explicit mask; a row that sees no key gives zeros.

    Args:
        padded: whether there may be such rows: those of hidden tokens.
        scale: of the scores, before the bias; None is 1 / sqrt(D).
    """
    if not padded:
        mask = visible if bias is None else bias.to(q.dtype).masked_fill(~visible, -math.inf)
        return scaled_dot_product(q, k, v, mask=mask, scale=scale)
    # A row that sees nothing is computed on something and cleared. Its query is zero, or scores of hidden keys, which
    # may be of any size, would enter its gradient.
    some = visible.any(-1, keepdim=True)
    mask = visible | ~some if bias is None else bias.to(q.dtype).masked_fill(some & ~visible, -math.inf)
    out = scaled_dot_product(q.masked_fill(~some, 0.0), k, v, mask=mask, scale=scale)
    return out.masked_fill(~some, 0.0)


def tiled_attention(
    q: Queries, k: Keys, v: Values, context: Context, tiles: list[Tile], seen: Callable[[Tile], Seen]
) -> Outputs:
    """(B, H, R, E): softmax attention of all rows, on the keys that each sees.

    Gradients flow to q, k and v, once. Queries and keys come rotated.

    Args:
        tiles: together all rows, each once.
        seen: as ``seen_in``; it is called for each tile in either pass.

    Raises:
        SettingError: the position's bias wants a gradient; this form has none for it.
    """
    context.check_constant_bias()
    rest = context.query_start, tiles, seen, context.key_mask is not None
    out: Tensor = _TiledAttention.apply(q, k, v, *rest)  # type: ignore[no-untyped-call]
    return out


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, query_start: int, tiles: list[Tile], seen: Any, padded: bool
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.tiling = query_start, tiles, seen, padded
        out = v.new_empty(*q.shape[:3], v.shape[3])
        for tile in tiles:
            rows = _rows_of(tile, query_start)
            of_tile = q[:, :, rows], _keys_of(tile, k), _keys_of(tile, v)
            out[:, :, rows] = masked_attention(*of_tile, *seen(tile), padded=padded)
        return out

    @staticmethod
    @own_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        query_start, tiles, seen, padded = ctx.tiling
        grad_q = torch.empty_like(q)
        # A key may be in many tiles: their parts are summed in float32 at least.
        wide = torch.promote_types(k.dtype, torch.float32)
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for tile in tiles:
            rows = _rows_of(tile, query_start)
            inputs = [x.detach().requires_grad_() for x in (q[:, :, rows], _keys_of(tile, k), _keys_of(tile, v))]
            with torch.enable_grad():
                out = masked_attention(*inputs, *seen(tile), padded=padded)
            grad_q[:, :, rows], *parts = torch.autograd.grad(out, inputs, grad[:, :, rows])
            sizes = [part.stop - part.start for part in tile.keys]
            for total, part in zip((grad_k, grad_v), parts, strict=True):
                for keys, addend in zip(tile.keys, torch.split(part, sizes, dim=2), strict=True):
                    total[:, :, keys] += addend
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _rows_of(tile: Tile, query_start: int) -> slice:
    return slice(tile.rows.start - query_start, tile.rows.stop - query_start)


def _keys_of(tile: Tile, x: Tensor) -> Tensor:
    parts = [x[:, :, part] for part in tile.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
