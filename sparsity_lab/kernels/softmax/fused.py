"""Softmax attention by PyTorch's fused kernel, in memory linear in T.

Without mask and bias it is one call. With either, the fused kernel wants a (R, K) mask, so the rows go in tiles whose
masks are made when they are needed, and made again in the backward pass instead of being kept.
"""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from sparsity_lab.kernels.kernel import Context
from sparsity_lab.kernels.masking import visible_keys

__all__ = ["TILE_ROWS", "fused_attention", "fused_rows"]

TILE_ROWS = 128


def fused_attention(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], context: Context
) -> Float[Tensor, "B H T D"]:
    """(B, H, T, D) output; queries and keys come rotated."""
    T = q.shape[2]
    if context.key_mask is None and not context.has_bias:
        return scaled_dot_product_attention(q, k, v, is_causal=context.causal)
    if T <= TILE_ROWS:
        return fused_rows(q, k, v, 0, context)
    tiles = []
    for start in range(0, T, TILE_ROWS):
        stop = min(start + TILE_ROWS, T)
        last = stop if context.causal else T
        rows = partial(fused_rows, query_start=start, context=context)
        tile = q[:, :, start:stop], k[:, :, :last], v[:, :, :last]
        # Nothing random runs inside, so the global generator is left alone.
        tiles.append(checkpoint(rows, *tile, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(tiles, dim=2)


def fused_rows(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    query_start: int,
    context: Context,
) -> Float[Tensor, "B H R D"]:
    """(B, H, R, D): rows ``query_start .. query_start + R - 1`` on the first K keys, under an explicit mask."""
    num_rows, num_keys = q.shape[2], k.shape[2]
    visible = visible_keys(
        query_start, num_rows, num_keys, causal=context.causal, key_mask=context.key_mask, device=q.device
    )
    bias = context.bias(slice(query_start, query_start + num_rows), slice(0, num_keys))
    # As in the reference: a row that sees nothing is computed on something and cleared.
    some = visible.any(-1, keepdim=True)
    mask = visible | ~some if bias is None else bias.masked_fill(some & ~visible, -math.inf)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).masked_fill(~some, 0.0)
