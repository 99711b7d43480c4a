"""Sliding-window attention: softmax attention on the first few keys and the last few.

With width w and s sinks, row i sees key j if j < s or i - w < j, and j <= i; without ``causal`` if j < s or
|i - j| < w. Sinks: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.kernels.parts.scaled_dot_product import scaled_dot_product
from sparsity_lab.kernels.parts.tiles import (
    TILE_ROWS,
    Tile,
    disjoint,
    masked_attention,
    seen_in,
    tiled_attention,
    whole_tile,
)
from sparsity_lab.kernels.softmax import softmax_weights
from sparsity_lab.settings import SettingError, register

__all__ = ["SlidingWindow", "WindowState", "window_sees"]


def window_sees(
    rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"], *, width: int, sinks: int, causal: bool
) -> Bool[Tensor, "R K"]:
    """(R, K): True where the row at position i sees the key at position j."""
    i, j = rows[:, None], keys[None, :]
    sees = (j < sinks) | ((i - j).abs() < width)
    return sees & (j <= i) if causal else sees


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


@register
class SlidingWindow(Kernel):
    """Softmax attention of row i on the first ``sinks`` keys and on the last ``width``, i - width + 1 .. i; without
    ``causal`` on the first ``sinks`` keys and on those less than ``width`` away.

    ``"tiled"`` is PyTorch's fused kernel on tiles of query rows and the keys they can see: time is
    O(T (width + sinks)), memory O(T). Decoding reads and holds sinks + width keys, whatever the length.

    Information moves back at most width - 1 positions in each layer, but for the sinks, which every row sees.

    Attributes:
        width: of the window, the row's own key included; at least 1.
        sinks: first keys that every row sees (arXiv 2309.17453); 0 for none.
    """

    width: int = 64
    sinks: int = 4

    implementations = ("reference", "tiled")
    reweightable = True

    def check(self) -> None:
        if self.width < 1:
            raise SettingError("width", "an integer of at least 1", self.width)
        if self.sinks < 0:
            raise SettingError("sinks", "an integer of at least 0", self.sinks)

    @classmethod
    def examples(cls) -> "tuple[SlidingWindow, ...]":
        return cls(width=6, sinks=2), cls(width=4, sinks=0)

    def _init_state(self, rows: RowKind, capacity: int) -> WindowState:
        """An empty decoding state; it needs no room for ``capacity`` tokens, and takes any number."""
        return WindowState(rows, width=self.width, sinks=self.sinks)

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        return softmax_weights(q, k, *self._seen(whole_tile(q, k, context), context, q.device))

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        num_rows, num_keys = q.shape[2], k.shape[2]
        all_seen = num_rows == num_keys <= self.width + (self.sinks if context.causal else 0)
        if all_seen and not context.hides and not context.has_bias:
            return scaled_dot_product(q, k, v, is_causal=context.causal)
        seen = partial(self._seen, context=context, device=q.device)
        return tiled_attention(q, k, v, context, self._tiles(num_rows, num_keys, context), seen)

    def _key_counts(self, q: Queries, k: Keys, context: Context) -> Int64[Tensor, "#B 1 R"]:
        visible, _ = self._seen(whole_tile(q, k, context), context, q.device)
        return visible.sum(-1).clamp_min(1)

    def _extend(self, q: Queries, k: Keys, v: Values, state: WindowState, context: Context) -> Outputs:
        at_once = max(self.width, TILE_ROWS)  # a long prompt goes in pieces, so that the state stays small
        outs = []
        for start in range(0, q.shape[2], at_once):
            piece = slice(start, start + at_once)
            mask = None if context.key_mask is None else context.key_mask[:, piece]
            now = replace(context, query_start=state.length, key_mask=None)
            rows, keys = self._prepare(q[:, :, piece], k[:, :, piece], now, state.length)
            positions = state.append(keys, v[:, :, piece], mask)
            tile = Tile(slice(now.query_start, state.length), positions)
            visible, bias = self._seen(tile, now, q.device)
            visible = visible & state.key_mask[:, None, None]
            if context.implementation == "reference":
                weights = softmax_weights(rows, state.keys, visible, bias)
                outs.append((weights @ state.values.to(weights.dtype)).to(q.dtype))
            else:
                outs.append(masked_attention(rows, state.keys, state.values, visible, bias))
        return torch.cat(outs, dim=2)

    def _tiles(self, num_rows: int, num_keys: int, context: Context) -> list[Tile]:
        """Tiles of all rows. Wide windows want large tiles: a tile costs a call, and reads its rows' keys beside the
        window's."""
        tile_rows = max(TILE_ROWS, min(self.width, 256))
        tiles = []
        first, end = context.query_start, context.query_start + num_rows
        for start, stop in pairwise([*range(first, end, tile_rows), end]):
            last = stop if context.causal else min(stop + self.width - 1, num_keys)
            sinks = min(self.sinks, stop if context.causal else num_keys)
            keys = disjoint([(0, sinks), (max(0, start - self.width + 1), last)])
            tiles.append(Tile(slice(start, stop), keys))
        return tiles

    def _seen(
        self, tile: Tile, context: Context, device: torch.device
    ) -> tuple[Bool[Tensor, "#B 1 R K"], Float[Tensor, "#B H R K"] | None]:
        def sees(rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"]) -> Bool[Tensor, "R K"]:
            return window_sees(rows, keys, width=self.width, sinks=self.sinks, causal=context.causal)

        return seen_in(tile, sees, context, device)
