"""What is remembered between decoding steps: keys, values, and summaries of the blocks that are full.

Shapes: B batch, G heads of keys, R new tokens, n blocks, b keys in a block, D head size.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.adaptive.shortlist import ScoreTable
from sparsity_lab.kernels.adaptive.summaries import Summaries, summarize
from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.parts.arguments import RowKind

__all__ = ["AdaptiveState"]


class AdaptiveState(KeyValueCache):
    """Keys and values of all tokens seen, and summaries of all full blocks.

    The keys of the block that is not full yet wait beside the cache, in the precision that they were rotated in.
    When it is full, its summary is made from them by the function that ``attend`` makes summaries with: so decoding
    selects as ``attend`` does, also where the cache rounds keys to half precision.

    Attributes:
        block_size: b.
        blocks: (B, G, n, b, 2, D), each key beside its value, so that a block is one piece of memory; unfilled rows
            are zero.
        summaries: of all blocks; zeros for those that are not full.
        table: the same in float32, for the scores of one row.
    """

    def __init__(self, rows: RowKind, capacity: int, block_size: int) -> None:
        num_blocks = -(-capacity // block_size)
        super().__init__(rows, num_blocks * block_size)
        self.capacity = capacity
        self.block_size = block_size
        batch_size, num_heads, head_dim, _, dtype, device = rows
        pairs = torch.zeros(batch_size, num_heads, num_blocks * block_size, 2, head_dim, dtype=dtype, device=device)
        self._keys, self._values = pairs.unbind(3)
        self.blocks = torch.unflatten(pairs, 2, (num_blocks, block_size))
        wide = torch.promote_types(dtype, torch.float32)
        self._waiting = torch.zeros(batch_size, num_heads, block_size, head_dim, dtype=wide, device=device)
        self._waiting_mask = torch.ones(batch_size, block_size, dtype=torch.bool, device=device)
        self.summaries = Summaries(
            torch.zeros(batch_size, num_blocks, dtype=torch.float64, device=device),
            torch.zeros(batch_size, num_heads, num_blocks, 2 * head_dim, dtype=torch.float64, device=device),
            torch.zeros(batch_size, num_heads, num_blocks, 2 * head_dim, dtype=torch.float64, device=device),
        )
        self.table = ScoreTable(batch_size, num_heads, head_dim, num_blocks, device=device)

    def extend(
        self,
        k: Float[Tensor, "B G R D"],
        v: Float[Tensor, "B G R D"],
        key_mask: Bool[Tensor, "B R"] | None,
    ) -> None:
        """Add R tokens, whose keys come in float32 at least.

        Raises:
            SettingError: as ``append``.
        """
        start = self.length
        self.append(k.to(v.dtype), v, key_mask)
        block, waiting = divmod(start, self.block_size)
        stop = waiting + k.shape[2]
        if stop < self.block_size:
            self._waiting[:, :, waiting:stop] = k
            if key_mask is not None:
                self._waiting_mask[:, waiting:stop] = key_mask
            return
        if key_mask is None:
            key_mask = torch.ones(len(k), k.shape[2], dtype=torch.bool, device=k.device)
        keys = torch.cat([self._waiting[:, :, :waiting], k], dim=2)
        valid = torch.cat([self._waiting_mask[:, :waiting], key_mask], dim=1)
        count, rest = divmod(stop, self.block_size)
        full = summarize(
            torch.unflatten(keys[:, :, : stop - rest], 2, (count, self.block_size)),
            torch.unflatten(valid[:, : stop - rest], 1, (count, self.block_size)),
        )
        self.summaries.log_count[:, block : block + count] = full.log_count
        self.summaries.moments[:, :, block : block + count] = full.moments
        self.summaries.box[:, :, block : block + count] = full.box
        self.table.write(block, full)
        self._waiting[:, :, :rest] = keys[:, :, stop - rest :]
        self._waiting_mask[:, :rest] = valid[:, stop - rest :]
        self._waiting_mask[:, rest:] = True
