"""Adaptive sparse attention with all scores computed: the reference, and PyTorch's fused kernel under a mask.

    P̂_ti = softmax over {i <= t, block(i) in S_t} of <q_t, k_i> / sqrt(D)

Shapes: B batch, G heads of keys, M query heads that share one, R query rows, K keys, n blocks, D head size.
"""

import math
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from sparsity_lab.kernels.adaptive.selector import Selector
from sparsity_lab.kernels.adaptive.straight_through import row_gates, with_gates
from sparsity_lab.kernels.softmax import softmax_weights

__all__ = ["dense_logits", "dense_weights", "seen_tokens", "selected_attention"]

TILE_ROWS = 128


def token_mask(
    codes: UInt8[Tensor, "B G R n"], seen: Bool[Tensor, "B 1 R K"], block_size: int
) -> Bool[Tensor, "B G R K"]:
    """Which tokens a row attends to: those it may see, in blocks that it keeps."""
    return seen & of_tokens(codes > 0, seen.shape[-1], block_size)


def of_tokens(x: Shaped[Tensor, "B G R n"], num_keys: int, block_size: int) -> Shaped[Tensor, "B G R K"]:
    """What belongs to blocks, for each of their tokens; zeros for keys after all these rows."""
    spread = x.repeat_interleave(block_size, dim=-1)[..., :num_keys]
    return pad(spread, (0, num_keys - spread.shape[-1]))


def seen_tokens(
    positions: Int64[Tensor, "#B R"], num_keys: int, key_mask: Bool[Tensor, "B K"] | None, batch_size: int
) -> Bool[Tensor, "B 1 R K"]:
    """Which tokens rows may see: i <= t, not masked."""
    seen = torch.arange(num_keys, device=positions.device) <= positions.unsqueeze(-1)
    if key_mask is not None:
        seen = seen & key_mask.unsqueeze(1)
    return seen.expand(batch_size, -1, -1).unsqueeze(1)


@torch.no_grad()
def dense_logits(
    q: Float[Tensor, "B G M R D"], k: Float[Tensor, "B G K D"], seen: Bool[Tensor, "B 1 R K"]
) -> Float[Tensor, "B G M R K"]:
    """<q_t, k_i> / sqrt(D), -inf where a token may not be seen."""
    logits = torch.unflatten(q.flatten(2, 3) @ k.mT, 2, q.shape[2:4]) / math.sqrt(q.shape[-1])
    return logits.masked_fill(~seen.unsqueeze(2), -math.inf)


def _selected(
    q: Float[Tensor, "B G M R D"],
    k: Float[Tensor, "B G K D"],
    positions: Int64[Tensor, "#B R"],
    selector: Selector,
    key_mask: Bool[Tensor, "B K"] | None,
    draws: Float[Tensor, "B G R words"] | None,
) -> UInt8[Tensor, "B G R n"]:
    """Reason codes of these rows, with the mass of what is kept from all logits where escalation asks for it."""
    seen = seen_tokens(positions, k.shape[2], key_mask, len(k))
    block_size = selector.rule.block_size

    def log_mass(codes: Tensor) -> Tensor:
        kept = token_mask(codes, seen, block_size).unsqueeze(2)
        return dense_logits(q.detach(), k.detach(), seen).masked_fill(~kept, -math.inf).logsumexp(-1)

    return selector.select(q, positions, log_mass, draws)


def dense_weights(
    q: Float[Tensor, "B G M R D"],
    k: Float[Tensor, "B G K D"],
    query_start: int,
    selector: Selector,
    key_mask: Bool[Tensor, "B K"] | None,
    draws: Float[Tensor, "B G R words"] | None = None,
) -> Float[Tensor, "B G M R K"]:
    """The reference weights of rows ``query_start`` and on."""
    positions = torch.arange(query_start, query_start + q.shape[3], device=q.device)[None]
    codes = _selected(q, k, positions, selector, key_mask, draws)
    block_size, group, num_keys = selector.rule.block_size, q.shape[2], k.shape[2]
    mask = token_mask(codes, seen_tokens(positions, num_keys, key_mask, len(k)), block_size)
    gates = None
    if selector.straight_through:
        of_rows = of_tokens(row_gates(q, positions, codes, selector), num_keys, block_size).to(q.dtype)
        gates = of_rows.flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    # Each head of keys is a sequence of its own with M heads.
    keys = k.flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    weights = softmax_weights(q.flatten(0, 1), keys, mask.flatten(0, 1).unsqueeze(1), gates)
    return torch.unflatten(weights, 0, q.shape[:2])


def selected_attention(
    q: Float[Tensor, "B G M R D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K D"],
    query_start: int,
    selector: Selector,
    key_mask: Bool[Tensor, "B K"] | None,
    draws: Float[Tensor, "B G R words"] | None,
) -> Float[Tensor, "B G M R D"]:
    """The output of rows ``query_start`` and on by the fused kernel, in tiles of rows. A tile's scores are computed
    again in the backward pass; of a tile its codes are kept, T n bytes in all."""
    tiles = []
    for first in range(0, q.shape[3], TILE_ROWS):
        rows = q[:, :, :, first : first + TILE_ROWS]
        start, stop = query_start + first, query_start + first + rows.shape[3]
        positions = torch.arange(start, stop, device=q.device)[None]
        keys, values = k[:, :, :stop], v[:, :, :stop]
        visible = None if key_mask is None else key_mask[:, :stop]
        words = None if draws is None else draws[:, :, first : first + TILE_ROWS]
        codes = _selected(rows, keys, positions, selector, visible, words)
        run = partial(_masked_rows, codes=codes, positions=positions, selector=selector, key_mask=visible)
        if q.shape[3] <= TILE_ROWS:
            tiles.append(run(rows, keys, values))
        else:
            tiles.append(checkpoint(run, rows, keys, values, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(tiles, dim=3)


def _masked_rows(
    q: Float[Tensor, "B G M R D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K D"],
    codes: UInt8[Tensor, "B G R n"],
    positions: Int64[Tensor, "#B R"],
    selector: Selector,
    key_mask: Bool[Tensor, "B K"] | None,
) -> Float[Tensor, "B G M R D"]:
    block_size, num_keys = selector.rule.block_size, k.shape[2]
    seen = seen_tokens(positions, num_keys, key_mask, len(k))
    # As in the reference: a row that sees nothing is computed on something and cleared.
    mask = token_mask(codes, seen, block_size).flatten(0, 1).unsqueeze(1)
    some = mask.any(-1, keepdim=True)
    rows, keys, values = q.flatten(0, 1), k.flatten(0, 1).unsqueeze(1), v.flatten(0, 1).unsqueeze(1)
    of_heads = -1, q.shape[2], -1, -1
    out = scaled_dot_product_attention(rows, keys.expand(of_heads), values.expand(of_heads), attn_mask=mask | ~some)
    out = out.masked_fill(~some, 0.0)
    if selector.straight_through:
        gates = of_tokens(row_gates(q, positions, codes, selector), num_keys, block_size).flatten(0, 1)
        out = with_gates(out, rows, keys, values, mask, gates)
    return torch.unflatten(out, 0, q.shape[:2])
