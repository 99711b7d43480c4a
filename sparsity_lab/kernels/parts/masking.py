"""Which keys a query row may see."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def visible_keys(
    query_start: int,
    num_queries: int,
    num_keys: int,
    *,
    causal: bool,
    key_mask: Bool[Tensor, "B all"] | None = None,
    document_ids: Int64[Tensor, "B all"] | None = None,
    device: torch.device | None = None,
) -> Bool[Tensor, "B 1 R K"]:
    """(B or 1, 1, R, K) bool: True where query row ``query_start + r`` sees key j.

    >>> visible_keys(0, 2, 3, causal=True).tolist()
    [[[[True, False, False], [True, True, False]]]]

    Args:
        causal: only keys j <= query_start + r.
        key_mask: (B, at least K), True where a key counts; its first K columns are used.
        document_ids: as long; only keys of the row's own document.
    """
    visible = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    if causal:
        visible = visible.tril(query_start)
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :num_keys]
    if document_ids is not None:
        rows = document_ids[:, query_start : query_start + num_queries]
        visible = visible & (rows[:, None, :, None] == document_ids[:, None, None, :num_keys])
    return visible


class FirstVisible(NamedTuple):
    """The first visible keys of each sequence.

    Attributes:
        places: (B or 1, s), their positions.
        there: (B or 1, s), False where a sequence has no such key.
    """

    places: Int64[Tensor, "#B s"]
    there: Bool[Tensor, "#B s"]

    def of(self, x: Float[Tensor, "B H K width"]) -> Float[Tensor, "B H s width"]:
        """Their keys, or their values."""
        index = self.places[:, None, :, None]
        return x.gather(2, index.expand(len(x), x.shape[1], -1, x.shape[3]))


def first_visible(key_mask: Bool[Tensor, "B K"], count: int) -> FirstVisible:
    """The first ``count`` visible keys of each sequence, or K if that is less."""
    seen = key_mask.long().cumsum(1)
    number = torch.arange(1, min(count, key_mask.shape[1]) + 1, device=key_mask.device).expand(len(key_mask), -1)
    places = torch.searchsorted(seen, number.contiguous()).clamp_max(key_mask.shape[1] - 1)
    return FirstVisible(places, number <= seen[:, -1:])


def counts_in_documents(
    ids: Int64[Tensor, "B K"], seen: Int64[Tensor, "B K"], *, causal: bool
) -> Int64[Tensor, "B K"]:
    """How many keys that are ``seen`` each position has in its own document; with ``causal`` up to itself.

    Documents may lie anywhere: positions are sorted by document, so that no (K, K) table is made.
    """
    grouped, order = ids.sort(dim=1, stable=True)
    running = seen.gather(1, order).cumsum(1)
    first = torch.searchsorted(grouped, grouped)
    before = torch.where(first > 0, running.gather(1, (first - 1).clamp_min(0)), 0)
    if not causal:
        running = running.gather(1, torch.searchsorted(grouped, grouped, right=True) - 1)
    return torch.empty_like(running).scatter_(1, order, running - before)
