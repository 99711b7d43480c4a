"""What a sliding window remembers: no more than it can still see."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.arguments import RowKind
from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.kernels.tiles import disjoint

__all__ = ["WindowState"]


class WindowState(KernelState):
    """Keys and values of the first ``sinks`` tokens, of the tokens last added, and of ``width - 1`` before these,
    whatever the length. Every call copies what it keeps, which costs as much as reading it.

    Attributes:
        keys, values: (B, H, K, D) and (B, H, K, E) in the order of their positions.
        key_mask: (B, K), True where a key may be seen.
    """

    def __init__(self, rows: RowKind, *, width: int, sinks: int) -> None:
        super().__init__()
        self._width, self._sinks = width, sinks
        self.keys, self.values = rows.empty(0)
        self.key_mask = torch.ones(rows.batch_size, 0, dtype=torch.bool, device=rows.device)

    def append(
        self,
        k: Float[Tensor, "B H R D"],
        v: Float[Tensor, "B H R E"],
        key_mask: Bool[Tensor, "B R"] | None,
    ) -> tuple[slice, ...]:
        """Add R tokens and drop what neither they nor later ones see; the positions of all keys held now."""
        if key_mask is None:
            key_mask = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        held = self.keys.shape[2]
        kept = disjoint([(0, min(self._sinks, held)), (max(self._sinks, held - self._width + 1), held)])
        self.keys = torch.cat([*(self.keys[:, :, part] for part in kept), k], dim=2)
        self.values = torch.cat([*(self.values[:, :, part] for part in kept), v], dim=2)
        self.key_mask = torch.cat([*(self.key_mask[:, part] for part in kept), key_mask], dim=1)
        taken = self.advance(k.shape[2])
        return disjoint(
            [(0, min(self._sinks, taken.stop)), (max(self._sinks, taken.start - self._width + 1), taken.stop)]
        )
