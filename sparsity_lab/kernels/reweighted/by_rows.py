"""Re-weighting of any kernel that can be asked for its weights, in tiles of query rows, in memory linear in T.

A tile's weights are the base's dense reference. They are made again in the backward pass instead of being kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights

__all__ = ["TILE_ROWS", "weighted_rows"]

TILE_ROWS = 128


def weighted_rows(
    q: Queries, k: Keys, v: Values, context: Context, weights: Callable[[Queries, Keys, Context], Weights]
) -> Outputs:
    """(B, H, R, E): weights times values, in the dtype of q.

    Args:
        weights: of query rows, and the keys up to their last, all without ``causal``; the context says where the rows
            begin.
    """

    def output(q_rows: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        w = weights(q_rows, keys, context.at(start))
        return (w @ values.to(w.dtype)).to(q_rows.dtype)

    tiles = []
    for first in range(0, q.shape[2], TILE_ROWS):
        q_rows = q[:, :, first : first + TILE_ROWS]
        start = context.query_start + first
        seen = start + q_rows.shape[2] if context.causal else k.shape[2]
        # Nothing random runs inside, so the global generator is left alone.
        tiles.append(
            checkpoint(
                output, q_rows, k[:, :, :seen], v[:, :, :seen], start, use_reentrant=False, preserve_rng_state=False
            )
        )
    return torch.cat(tiles, dim=2)
