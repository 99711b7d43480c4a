"""How many keys a row sees: the n of mechanisms that scale with length."""

import torch
from jaxtyping import Int64
from torch import Tensor

from sparsity_lab.kernels.context import Context

__all__ = ["visible_counts"]


def visible_counts(
    query_start: int, num_rows: int, num_keys: int, context: Context, device: torch.device
) -> Int64[Tensor, "#B 1 R"]:
    """(B or 1, 1, R): n_i, how many keys row ``query_start + r`` sees, itself included; 1 where it sees none, so that
    log n_i and 1 / n_i are finite.

    Only keys that the mask lets through count, so padding changes nothing; in decoding all tokens so far count.
    """
    if context.key_mask is not None:
        seen = context.key_mask[:, :num_keys].long()
        counts = (
            seen.cumsum(1)[:, query_start : query_start + num_rows] if context.causal else seen.sum(1, keepdim=True)
        )
        return counts.expand(-1, num_rows).clamp_min(1).unsqueeze(1)
    if context.causal:
        return torch.arange(query_start + 1, query_start + num_rows + 1, device=device)[None, None]
    return torch.full((1, 1, num_rows), num_keys, device=device)
