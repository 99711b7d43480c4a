"""Which keys a query row may see."""

import torch
from jaxtyping import Bool
from torch import Tensor

__all__ = ["visible_keys"]


def visible_keys(
    query_start: int,
    num_queries: int,
    num_keys: int,
    *,
    causal: bool,
    key_mask: Bool[Tensor, "B all"] | None = None,
    device: torch.device | None = None,
) -> Bool[Tensor, "B 1 R K"]:
    """(B or 1, 1, R, K) bool: True where query row ``query_start + r`` sees key j.

    Args:
        causal: only keys j <= query_start + r.
        key_mask: (B, at least K), True where a key counts; its first K columns are used.
    """
    visible = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    if causal:
        visible = visible.tril(query_start)
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :num_keys]
    return visible
