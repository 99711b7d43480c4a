"""Which keys a query row may see."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.context import Context

__all__ = ["visible_keys", "visible_rows"]


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


def visible_rows(
    q: Float[Tensor, "B H R D"], k: Float[Tensor, "B G K D"], query_start: int, context: Context
) -> tuple[Bool[Tensor, "#B 1 R K"], Float[Tensor, "#B H R K"] | None]:
    """Which keys query rows ``query_start`` and on see, and the bias of their scores, None without one."""
    num_rows, num_keys = q.shape[2], k.shape[2]
    visible = visible_keys(
        query_start, num_rows, num_keys, causal=context.causal, key_mask=context.key_mask, device=q.device
    )
    return visible, context.bias(slice(query_start, query_start + num_rows), slice(0, num_keys))
