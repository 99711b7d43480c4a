"""The setting of sliding-window attention."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.sliding_window.reference import window_sees
from sparsity_lab.kernels.sliding_window.state import WindowState
from sparsity_lab.kernels.softmax.reference import softmax_attention, softmax_weights
from sparsity_lab.kernels.tiles import TILE_ROWS, Tile, disjoint, masked_attention, seen_in, tiled_attention
from sparsity_lab.kernels.weighing import WeighingKernel
from sparsity_lab.settings import SettingError, register

__all__ = ["SlidingWindow"]


@register
class SlidingWindow(WeighingKernel):
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

    def check(self) -> None:
        if self.width < 1:
            raise SettingError("width", "an integer of at least 1", self.width)
        if self.sinks < 0:
            raise SettingError("sinks", "an integer of at least 0", self.sinks)

    @classmethod
    def examples(cls) -> "tuple[SlidingWindow, ...]":
        return cls(width=6, sinks=2), cls(width=4, sinks=0)

    def _init_state(
        self,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> WindowState:
        """An empty decoding state; it needs no room for ``capacity`` tokens, and takes any number."""
        return WindowState(
            batch_size, num_heads, head_dim, width=self.width, sinks=self.sinks, dtype=dtype, device=device
        )

    def _attend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], context: Context
    ) -> Float[Tensor, "B H T D"]:
        q, k = context.rotate(q), context.rotate(k)
        length = q.shape[2]
        seen = partial(self._seen, context=context, device=q.device)
        if context.implementation == "reference":
            return softmax_attention(q, k, v, *seen(_all(0, length, slice(0, length))))
        all_seen = length <= self.width + (self.sinks if context.causal else 0)
        if all_seen and context.key_mask is None and not context.has_bias:
            return scaled_dot_product_attention(q, k, v, is_causal=context.causal)
        return tiled_attention(q, k, v, 0, context, self._tiles(length, context.causal), seen)

    def _row_weights(
        self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B H K D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R K"]:
        tile = _all(query_start, q.shape[2], slice(0, k.shape[2]))
        return softmax_weights(q, k, *self._seen(tile, context, q.device))

    def _key_counts(
        self, query_start: int, num_rows: int, num_keys: int, context: Context, device: torch.device
    ) -> Int64[Tensor, "#B 1 R"]:
        visible, _ = self._seen(_all(query_start, num_rows, slice(0, num_keys)), context, device)
        return visible.sum(-1).clamp_min(1)

    def _extend(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B H R D"],
        v: Float[Tensor, "B H R D"],
        state: WindowState,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        attention = softmax_attention if context.implementation == "reference" else masked_attention
        at_once = max(self.width, TILE_ROWS)  # a long prompt goes in pieces, so that the state stays small
        outs = []
        for start in range(0, q.shape[2], at_once):
            piece = slice(start, start + at_once)
            mask = None if context.key_mask is None else context.key_mask[:, piece]
            position = state.length
            positions = state.append(context.rotate(k[:, :, piece], position), v[:, :, piece], mask)
            tile = _all(position, state.length - position, *positions)
            visible, bias = self._seen(tile, replace(context, key_mask=None), q.device)
            rows = context.rotate(q[:, :, piece], position)
            visible = visible & state.key_mask[:, None, None]
            outs.append(attention(rows, state.keys, state.values, visible, bias))
        return torch.cat(outs, dim=2)

    def _tiles(self, length: int, causal: bool) -> list[Tile]:
        """Tiles of all rows. Wide windows want large tiles: a tile costs a call, and reads its rows' keys beside the
        window's."""
        tile_rows = max(TILE_ROWS, min(self.width, 256))
        tiles = []
        for start, stop in pairwise([*range(0, length, tile_rows), length]):
            last = stop if causal else min(stop + self.width - 1, length)
            sinks = min(self.sinks, stop if causal else length)
            keys = disjoint([(0, sinks), (max(0, start - self.width + 1), last)])
            tiles.append(Tile(slice(start, stop), keys))
        return tiles

    def _seen(
        self, tile: Tile, context: Context, device: torch.device
    ) -> tuple[Bool[Tensor, "#B 1 R K"], Float[Tensor, "#B H R K"] | None]:
        def sees(rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"]) -> Bool[Tensor, "R K"]:
            return window_sees(rows, keys, width=self.width, sinks=self.sinks, causal=context.causal)

        return seen_in(tile, sees, context, device)


def _all(query_start: int, num_rows: int, *keys: slice) -> Tile:
    return Tile(slice(query_start, query_start + num_rows), keys)
