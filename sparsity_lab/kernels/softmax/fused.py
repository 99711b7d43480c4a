"""Softmax attention by PyTorch's fused kernel, in memory linear in T.

Without mask and bias it is one call. With either, the fused kernel wants a (R, K) mask, so the rows go in tiles whose
masks are made when they are needed, and made again in the backward pass instead of being kept. A single row, as in
decoding, is two products where that is faster.
"""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.masking import visible_rows
from sparsity_lab.kernels.tiles import masked_attention

__all__ = ["TILE_ROWS", "fused_attention"]

TILE_ROWS = 128


def fused_attention(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    query_start: int,
    context: Context,
    *,
    factor: float = 1.0,
) -> Float[Tensor, "B H R D"]:
    """(B, H, R, D) output of rows ``query_start`` and on; queries and keys come rotated.

    Args:
        factor: of the scores, without their bias.
    """
    scale = factor / math.sqrt(q.shape[-1])
    num_rows, num_keys = q.shape[2], k.shape[2]
    if num_rows == 1 and query_start == num_keys - 1 and _by_products(q) and not torch.is_grad_enabled():
        return _last_row(q, k, v, query_start, context, scale)
    if context.key_mask is None and not context.has_bias:
        # PyTorch's causal flag counts from the first key, so it fits whole sequences; one last row sees all. It must
        # not hang on a size, which a compiler keeps as a symbol.
        if num_rows == num_keys:
            return scaled_dot_product_attention(q, k, v, is_causal=context.causal, scale=scale)
        if query_start == num_keys - 1:
            return scaled_dot_product_attention(q, k, v, scale=scale)
    if num_rows <= TILE_ROWS:
        return _masked_rows(q, k, v, query_start, context, scale)
    tiles = []
    for first in range(0, num_rows, TILE_ROWS):
        start, stop = query_start + first, query_start + min(first + TILE_ROWS, num_rows)
        last = stop if context.causal else num_keys
        rows = partial(_masked_rows, query_start=start, context=context, scale=scale)
        tile = q[:, :, first : first + TILE_ROWS], k[:, :, :last], v[:, :, :last]
        # Nothing random runs inside, so the global generator is left alone.
        tiles.append(checkpoint(rows, *tile, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(tiles, dim=2)


def _by_products(q: Float[Tensor, "B H 1 D"]) -> bool:
    """Whether one row is faster as two products: the fused kernel works in blocks of rows. On a CPU products of half
    precision are slow, and less exact."""
    return q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)


def _last_row(
    q: Float[Tensor, "B H 1 D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    query_start: int,
    context: Context,
    scale: float,
) -> Float[Tensor, "B H 1 D"]:
    """(B, H, 1, D): the last row, on all keys."""
    scores, bias = q * scale @ k.mT, context.bias(slice(query_start, query_start + 1), slice(0, k.shape[2]))
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if context.key_mask is None:
        return scores.softmax(-1) @ v
    unseen = ~context.key_mask[:, None, None]
    # A row that sees nothing gives NaN, all of which is cleared.
    return scores.masked_fill(unseen, -math.inf).softmax(-1).masked_fill(unseen, 0.0) @ v


def _masked_rows(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    query_start: int,
    context: Context,
    scale: float,
) -> Float[Tensor, "B H R D"]:
    """(B, H, R, D): rows ``query_start .. query_start + R - 1`` on the first K keys, under an explicit mask."""
    return masked_attention(q, k, v, *visible_rows(q, k, query_start, context), scale=scale)
