"""One query row on the selected blocks of a cache.

Shapes: B batch, G heads of keys, M query heads that share one, n blocks, b keys in a block, D head size.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsity_lab.kernels.adaptive.selector import Selector
from sparsity_lab.kernels.adaptive.state import AdaptiveState

__all__ = ["decoded_row"]


def decoded_row(
    q: Float[Tensor, "B G M 1 D"], state: AdaptiveState, selector: Selector
) -> Float[Tensor, "B G M 1 D"]:
    """The output of the latest row, whose key and value the state already has. No gradient."""
    block, some = _best_blocks(q, state, selector), None
    if block is None:
        block, some = _selected_blocks(q, state, selector)
    keys, values = _gathered(block, state).to(q.dtype).unbind(-2)
    seen = _seen(block, some, state)
    if seen is None:
        # The own block comes last: what follows the row in it is cut off.
        length = keys.shape[2] - (-state.length % state.block_size)
        out = scaled_dot_product_attention(q.squeeze(-2), keys[:, :, :length], values[:, :, :length])
        return out.unsqueeze(-2)
    # A row that sees nothing is computed on something and cleared.
    blind = ~seen.any(-1, keepdim=True)
    out = scaled_dot_product_attention(q.squeeze(-2), keys, values, attn_mask=seen | blind)
    return out.masked_fill(blind, 0.0).unsqueeze(-2)


def _best_blocks(
    q: Float[Tensor, "B G M 1 D"], state: AdaptiveState, selector: Selector
) -> Int64[Tensor, "B G kept"] | None:
    """Blocks that the row keeps, its own last, by float32 scores of all. None for rules that need the exact score of
    every block, and where too many blocks are as good as the last one kept."""
    rule, row = selector.rule, state.length - 1
    budget, own = rule.k_free + rule.k_slack, row // state.block_size
    # A group ranks by the mass of all blocks. Elsewhere than on a CPU float32 products may be set to round more.
    simple = q.shape[2] == 1 and rule.mode == "topk" and not selector.rho_min and row >= rule.dense_len
    if not simple or not budget or q.device.type != "cpu":
        return None
    local = max(own - rule.n_local + 1, 0)
    best = state.table.best(
        q.flatten(2),
        selector.weights,
        state.summaries,
        range(rule.n_sink, local),
        budget,
        masked=state.key_mask is not None,
    )
    if best is None:
        return None
    return torch.cat([best, _forced(rule.n_sink, local, own, q.device).expand(*best.shape[:2], -1)], dim=-1)


@lru_cache(maxsize=64)
def _forced(num_sinks: int, local: int, own: int, device: torch.device) -> Int64[Tensor, " blocks"]:
    """Sinks and local blocks, the same for as many steps as a block has tokens."""
    return torch.tensor([*range(num_sinks), *range(local, own + 1)], device=device)


def _selected_blocks(
    q: Float[Tensor, "B G M 1 D"], state: AdaptiveState, selector: Selector
) -> tuple[Int64[Tensor, "B G kept"], Bool[Tensor, "B G kept"] | None]:
    """Blocks that the row keeps, its own last, by the rule. Heads that keep fewer than others are filled up: which
    ones count, or None where all do."""
    own = (state.length - 1) // state.block_size
    positions = torch.full((1, 1), state.length - 1, device=q.device)

    def log_mass(codes: Tensor) -> Tensor:
        block, some = _listed(codes, own)
        keys = _gathered(block, state)[..., 0, :].to(q.dtype)
        logits = q.squeeze(-2) @ keys.mT / math.sqrt(q.shape[-1])
        seen = _seen(block, some, state)
        if seen is None:
            logits = logits[..., : logits.shape[-1] - (-state.length % state.block_size)]
        else:
            logits = logits.masked_fill(~seen, -math.inf)
        return logits.logsumexp(-1).unsqueeze(-1)

    return _listed(selector.select(q, positions, log_mass), own)


def _listed(
    codes: UInt8[Tensor, "B G 1 n"], own: int
) -> tuple[Int64[Tensor, "B G kept"], Bool[Tensor, "B G kept"] | None]:
    kept = codes[:, :, 0] > 0
    counts = kept.sum(-1)
    most = int(counts.max())
    *_, block = kept.nonzero(as_tuple=True)
    if int(counts.min()) == most:
        return block.view(*counts.shape, most), None
    some = torch.arange(most, device=codes.device) < counts.unsqueeze(-1)
    filled = torch.full(some.shape, own, device=codes.device)
    filled[some] = block
    return filled, some


def _gathered(block: Int64[Tensor, "B G kept"], state: AdaptiveState) -> Float[Tensor, "B G keys 2 D"]:
    """Keys and values of these blocks, one block after the other."""
    batch_size, num_heads, num_blocks = state.blocks.shape[:3]
    index = block.flatten(0, 1) + _first_blocks(batch_size * num_heads, num_blocks, block.device)
    rows = state.blocks.flatten(0, 2).index_select(0, index.flatten())
    return rows.view(batch_size, num_heads, -1, *rows.shape[2:])


@lru_cache(maxsize=64)
def _first_blocks(num_heads: int, num_blocks: int, device: torch.device) -> Int64[Tensor, "heads 1"]:
    """Where the blocks of each head begin in the flat list of all."""
    return torch.arange(0, num_heads * num_blocks, num_blocks, device=device).unsqueeze(1)


def _seen(
    block: Int64[Tensor, "B G kept"], some: Bool[Tensor, "B G kept"] | None, state: AdaptiveState
) -> Bool[Tensor, "B G 1 keys"] | None:
    """Which keys of these blocks the row sees; None: all up to its own, the last block."""
    if some is None and state.key_mask is None:
        return None
    position = block.unsqueeze(-1) * state.block_size + torch.arange(state.block_size, device=block.device)
    seen = position < state.length
    if some is not None:
        seen = seen & some.unsqueeze(-1)
    if state.key_mask is not None:
        sequence = torch.arange(len(block), device=block.device)[:, None, None, None]
        seen = seen & state.key_mask[sequence, position.clamp_max(state.length - 1)]
    return seen.flatten(2).unsqueeze(2)
