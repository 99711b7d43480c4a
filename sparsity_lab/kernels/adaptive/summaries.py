"""What is kept of a block of keys: count, mean, variance and box.

Shapes: B batch, G heads of keys, n blocks, b keys in a block, D head size.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Summaries", "filled", "in_blocks", "mask_in_blocks", "summarize"]


@dataclass(frozen=True)
class Summaries:
    """Summaries of blocks, in float64.

    Attributes:
        log_count: (B, n), log n_j, the number of keys that may be seen; -inf for a block without.
        moments: (B, G, n, 2D), mean k̄ and variance σ² (biased) of every coordinate, side by side.
        box: (B, G, n, 2D), largest k⁺ and smallest k⁻ of every coordinate. Zeros, as the moments, without keys.
    """

    log_count: Float[Tensor, "B n"]
    moments: Float[Tensor, "B G n D2"]
    box: Float[Tensor, "B G n D2"]

    def first(self, num_blocks: int) -> "Summaries":
        """Those of the first blocks."""
        return Summaries(self.log_count[:, :num_blocks], self.moments[:, :, :num_blocks], self.box[:, :, :num_blocks])


def filled(x: Float[Tensor, "*batch K D"], before: int, after: int) -> Float[Tensor, "*batch all D"]:
    """Rows with rows of zeros before and after them; without any x itself, of which ``pad`` would make a copy."""
    return pad(x, (0, 0, before, after)) if before or after else x


def in_blocks(x: Float[Tensor, "B G K D"], block_size: int) -> Float[Tensor, "B G n b D"]:
    """Rows cut into blocks; the last one is filled up with zeros."""
    return torch.unflatten(filled(x, 0, -x.shape[2] % block_size), 2, (-1, block_size))


def mask_in_blocks(
    key_mask: Bool[Tensor, "B K"] | None, num_keys: int, block_size: int, device: torch.device
) -> Bool[Tensor, "#B n b"]:
    """Which keys of which block count; what fills up the last block does not."""
    valid = torch.ones(1, num_keys, dtype=torch.bool, device=device) if key_mask is None else key_mask
    return torch.unflatten(pad(valid, (0, -num_keys % block_size)), 1, (-1, block_size))


@torch.no_grad()
def summarize(blocks: Float[Tensor, "B G n b D"], valid: Bool[Tensor, "#B n b"]) -> Summaries:
    """Summaries of blocks by their keys that count.

    In float64, because σ² = E[k²] - k̄² cancels, and because a score must not hang on the order of a sum: see
    ``selection``.
    """
    blocks = blocks.double()
    if bool(valid.all()):
        count = torch.full(valid.shape[:2], float(valid.shape[2]), dtype=torch.float64, device=blocks.device)
        total, squares = blocks.sum(3), blocks.square().sum(3)
        largest, smallest = blocks.amax(3), blocks.amin(3)
    else:
        seen = valid[:, None, :, :, None]
        count = valid.sum(2, dtype=torch.float64)
        total, squares = (x.masked_fill(~seen, 0.0).sum(3) for x in (blocks, blocks.square()))
        largest = blocks.masked_fill(~seen, -torch.inf).amax(3)
        smallest = blocks.masked_fill(~seen, torch.inf).amin(3)
    some = count[:, None, :, None]
    mean = total / some.clamp_min(1.0)
    variance = (squares / some.clamp_min(1.0) - mean.square()).clamp_min(0.0)
    moments = torch.cat([mean, variance], dim=-1)
    box = torch.cat([largest, smallest], dim=-1).masked_fill_(some == 0, 0.0)
    return Summaries(count.log().expand(blocks.shape[0], -1), moments, box)
