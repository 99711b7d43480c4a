"""One query row on the selected blocks of a cache.

Shapes: B batch, G heads of keys, M query heads that share one, n blocks, b keys in a block, D head size.
"""

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from sparsity_lab.kernels.adaptive.selector import Selector
from sparsity_lab.kernels.adaptive.state import AdaptiveState

__all__ = ["decoded_row"]


def decoded_row(
    q: Float[Tensor, "B G M 1 D"], state: AdaptiveState, selector: Selector
) -> Float[Tensor, "B G M 1 D"]:
    """The output of the latest row, whose key and value the state already has. No gradient."""
    own = (state.length - 1) // state.block_size
    positions = torch.full((1, 1), state.length - 1, device=q.device)

    def log_mass(codes: Tensor) -> Tensor:
        logits, _ = _selected_logits(q, state, _kept_blocks(codes, own), own)
        return logits.logsumexp(-1).unsqueeze(-1)

    block = _kept_blocks(selector.select(q, positions, log_mass), own)
    logits, index = _selected_logits(q, state, block, own)
    # A row that sees nothing is NaN after the softmax, and cleared.
    weights = logits.softmax(-1).masked_fill_(logits == -math.inf, 0.0)
    values = state.value_blocks.flatten(0, 2).index_select(0, index).to(q.dtype)
    values = values.view(*block.shape[:2], -1, q.shape[-1])
    return (weights @ values).unsqueeze(-2)


def _kept_blocks(codes: UInt8[Tensor, "B G 1 n"], own: int) -> Int64[Tensor, "B G kept"]:
    """Kept blocks of each head in order; heads that keep fewer than others are filled up with own + 1."""
    kept = codes[:, :, 0] > 0
    counts = kept.sum(-1)
    most = int(counts.max())
    *_, block = kept.nonzero(as_tuple=True)
    if int(counts.min()) == most:
        return block.view(*counts.shape, most)
    filled = torch.full((*counts.shape, most), own + 1, device=codes.device)
    filled[torch.arange(most, device=codes.device) < counts.unsqueeze(-1)] = block
    return filled


def _selected_logits(
    q: Float[Tensor, "B G M 1 D"], state: AdaptiveState, block: Int64[Tensor, "B G kept"], own: int
) -> tuple[Float[Tensor, "B G M keys"], Int64[Tensor, " all"]]:
    """Logits on the keys of these blocks, -inf for keys that are not to be seen; where the blocks lie in the flat
    list of all."""
    batch_size, num_heads, num_blocks = state.key_blocks.shape[:3]
    head = torch.arange(batch_size * num_heads, device=q.device).view(batch_size, num_heads, 1)
    index = (head * num_blocks + block.clamp_max(own)).flatten()
    keys = state.key_blocks.flatten(0, 2).index_select(0, index).to(q.dtype)
    logits = q.squeeze(-2) @ keys.view(*block.shape[:2], -1, q.shape[-1]).mT / math.sqrt(q.shape[-1])
    place = torch.arange(state.block_size, device=q.device)
    position = block.unsqueeze(-1) * state.block_size + place
    hidden = position >= state.length
    if state.key_mask is not None:
        sequence = torch.arange(batch_size, device=q.device)[:, None, None, None]
        hidden = hidden | ~state.key_mask[sequence, position.clamp_max(state.length - 1)]
    return logits.masked_fill_(hidden.flatten(2).unsqueeze(2), -math.inf), index
