"""Sliding-window attention: softmax attention on the first few keys and the last few.

With width w and s sinks, row i sees key j if j < s or i - w < j, and j <= i; without ``causal`` if j < s or
|i - j| < w. Where keys are hidden, the sinks are the first s that are not, of the row's own document: a sequence with
padding on its left is as without. Sinks: Xiao et al., "Efficient Streaming Language Models with Attention Sinks",
arXiv 2309.17453.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Seen, Values, Weights
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.kernels.parts.fused import (
    Tile,
    disjoint,
    masked_attention,
    scaled_dot_product,
    seen_in,
    tiled_attention,
    whole_tile,
)
from sparsity_lab.kernels.parts.masking import FirstVisible, first_visible
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.softmax import softmax_weights
from sparsity_lab.settings import check_least, register


def window_sees(
    rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"], *, width: int, sinks: int, causal: bool
) -> Bool[Tensor, "R K"]:
    """(R, K): True where the row at position i sees the key at position j."""
    i, j = rows[:, None], keys[None, :]
    sees = (j < sinks) | ((i - j).abs() < width)
    return sees & (j <= i) if causal else sees


class WindowState(KernelState):
    """Keys and values of the first ``sinks`` tokens that may be seen, of the tokens last added, and of ``width - 1``
    before these, whatever the length. Every call copies what it keeps, which costs as much as reading it.

    Attributes:
        sinks: where the sinks stand.
        keys, values: (B, H, K, D) and (B, H, K, E), those of the sinks, then those of the last tokens in order.
        key_mask: (B, K) of the last tokens, True where a key may be seen; None while nothing was ever hidden.
    """

    def __init__(self, rows: RowKind, *, width: int, sinks: int) -> None:
        super().__init__()
        self._width, self._num_sinks = width, sinks
        self.keys, self.values = rows.empty(0)
        self.key_mask: Tensor | None = None
        none = torch.zeros(1, 0, dtype=torch.int64, device=rows.device)
        self.sinks = FirstVisible(none, none.bool())

    def append(self, k: Keys, v: Values, key_mask: Bool[Tensor, "B R"] | None) -> slice:
        """Add R tokens and drop what neither they nor later ones see; the positions of the last tokens held now."""
        num_sinks = self.sinks.places.shape[1]
        num_last = self.keys.shape[2] - num_sinks
        dropped = max(num_last - self._width + 1, 0)
        if key_mask is not None and self.key_mask is None:
            self.key_mask = key_mask.new_ones(len(k), num_last)
        if self.key_mask is not None:
            key_mask = self.key_mask.new_ones(len(k), k.shape[2]) if key_mask is None else key_mask
            self.key_mask = torch.cat([self.key_mask[:, dropped:], key_mask], dim=1)
        (sink_keys, last_keys), (sink_values, last_values) = (
            (x[:, :, :num_sinks], x[:, :, num_sinks + dropped :]) for x in (self.keys, self.values)
        )
        taken = self.advance(k.shape[2])
        if num_sinks < self._num_sinks or (self._num_sinks and key_mask is not None):
            places = torch.arange(taken.start, taken.stop, device=k.device).expand(len(k), -1)
            seen = torch.ones_like(places, dtype=torch.bool) if key_mask is None else key_mask
            places = torch.cat([self.sinks.places.expand(len(k), -1), places], dim=1)
            found = first_visible(torch.cat([self.sinks.there.expand(len(k), -1), seen], dim=1), self._num_sinks)
            sink_keys, sink_values = (found.of(torch.cat(pair, dim=2)) for pair in ((sink_keys, k), (sink_values, v)))
            self.sinks = FirstVisible(places.gather(1, found.places), found.there)
        self.keys = torch.cat([sink_keys, last_keys, k], dim=2)
        self.values = torch.cat([sink_values, last_values, v], dim=2)
        return slice(taken.stop - last_keys.shape[2] - k.shape[2], taken.stop)


@register
class SlidingWindow(Kernel):
    """Softmax attention of row i on the first ``sinks`` keys and on the last ``width``, i - width + 1 .. i; without
    ``causal`` on the first ``sinks`` keys and on those less than ``width`` away.

    ``"tiled"`` is PyTorch's fused kernel on tiles of query rows and the keys they can see: time is
    O(T (width + sinks)), memory O(T). Decoding reads and holds sinks + width keys, whatever the length.

    Information moves back at most width - 1 positions in each layer, but for the sinks, which every row sees.

    Attributes:
        width: of the window, the row's own key included; at least 1.
        sinks: how many first keys, of those that may be seen, every row sees (arXiv 2309.17453); 0 for none.
    """

    width: int = 64
    sinks: int = 4

    implementations = ("reference", "tiled")
    reweightable = True

    def check(self) -> None:
        check_least(1, width=self.width)
        check_least(0, sinks=self.sinks)

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
        if self.sinks and context.key_mask is not None and context.document_ids is None:
            sinks = first_visible(context.key_mask, self.sinks)
            seen = partial(self._seen_with_sinks, sinks=sinks, context=context, device=q.device)
            k, v = torch.cat([sinks.of(k), k], dim=2), torch.cat([sinks.of(v), v], dim=2)
            return tiled_attention(q, k, v, context, self._tiles(q, num_keys, context, apart=sinks), seen)
        seen = partial(self._seen, context=context, device=q.device)
        return tiled_attention(q, k, v, context, self._tiles(q, num_keys, context), seen)

    def _key_counts(self, q: Queries, k: Keys, context: Context) -> Int64[Tensor, "#B 1 R"]:
        visible, _ = self._seen(whole_tile(q, k, context), context, q.device)
        return visible.sum(-1).clamp_min(1)

    def _extend(self, q: Queries, k: Keys, v: Values, state: WindowState, context: Context) -> Outputs:
        at_once = max(
            self.width, profile_of(q.device).window_rows
        )  # a long prompt goes in pieces, so that the state stays small
        outs = []
        for start in range(0, q.shape[2], at_once):
            piece = slice(start, start + at_once)
            mask = None if context.key_mask is None else context.key_mask[:, piece]
            now = replace(context, query_start=state.length, key_mask=None)
            rows, keys = self._prepare(q[:, :, piece], k[:, :, piece], now, state.length)
            last = state.append(keys, v[:, :, piece], mask)
            tile = Tile(slice(now.query_start, state.length), (last,))
            visible, bias = self._beside_sinks(tile, state.sinks, now, q.device, state.key_mask)
            if context.implementation == "reference":
                weights = softmax_weights(rows, state.keys, visible, bias)
                outs.append((weights @ state.values.to(weights.dtype)).to(q.dtype))
            else:
                padded = state.key_mask is not None
                outs.append(masked_attention(rows, state.keys, state.values, visible, bias, padded=padded))
        return torch.cat(outs, dim=2)

    def _tiles(self, q: Queries, num_keys: int, context: Context, apart: FirstVisible | None = None) -> list[Tile]:
        """Tiles of all rows. Wide windows need large tiles: a tile costs a call, and reads its rows' keys in addition
        to the window's.

        Args:
            apart: sinks that stand before all keys once more.
        """
        num_rows, profile = q.shape[2], profile_of(q.device)
        most_rows = max(profile.window_rows, min(self.width, 256))
        tile_rows = profile.rows(most_rows, math.prod(q.shape[:2]) * num_keys * 4)
        num_apart = 0 if apart is None else apart.places.shape[1]
        tiles = []
        first, end = context.query_start, context.query_start + num_rows
        for start, stop in pairwise([*range(first, end, tile_rows), end]):
            last = stop if context.causal else min(stop + self.width - 1, num_keys)
            window = max(0, start - self.width + 1), last
            keys: tuple[slice, ...]
            if apart is not None:
                keys = slice(0, num_apart), slice(num_apart + window[0], num_apart + last)
            elif context.document_ids is not None and self.sinks:
                keys = (slice(0, last if context.causal else num_keys),)  # each document has sinks of its own
            else:
                keys = disjoint([(0, min(self.sinks, stop if context.causal else num_keys)), window])
            tiles.append(Tile(slice(start, stop), keys))
        return tiles

    def _seen(self, tile: Tile, context: Context, device: torch.device) -> Seen:
        """On keys where they stand. Where some are hidden, sinks are the first that a row's document has left."""
        sinks = 0 if context.hides else self.sinks
        sees = partial(window_sees, width=self.width, sinks=sinks, causal=context.causal)
        visible, bias = seen_in(tile, sees, context, device)
        if self.sinks and context.hides:
            of_keys = context.key_mask if context.key_mask is not None else context.document_ids
            assert of_keys is not None
            num_keys = of_keys.shape[1]
            rank = replace(context, causal=True).counts_of(num_keys, num_keys, device)
            allowed, _ = seen_in(
                tile, partial(_any_sees, causal=context.causal), replace(context, position=None), device
            )
            parts = [(rank <= self.sinks)[..., part] for part in tile.keys]
            visible = visible | (allowed & torch.cat(parts, dim=-1).unsqueeze(2))
        return visible, bias

    def _seen_with_sinks(self, tile: Tile, sinks: FirstVisible, context: Context, device: torch.device) -> Seen:
        """On keys with the sinks before them."""
        _, (_, window) = sinks, tile.keys
        num_apart = sinks.places.shape[1]
        own = Tile(tile.rows, (slice(window.start - num_apart, window.stop - num_apart),))
        return self._beside_sinks(own, sinks, context, device)

    def _beside_sinks(
        self,
        tile: Tile,
        sinks: FirstVisible,
        context: Context,
        device: torch.device,
        key_mask: Bool[Tensor, "B last"] | None = None,
    ) -> Seen:
        """On the sinks, and after them the keys of the tile, where no row sees a key twice.

        Args:
            key_mask: of the tile's keys, in addition to that of the context.
        """
        sees = partial(window_sees, width=self.width, sinks=0, causal=context.causal)
        visible, bias = seen_in(tile, sees, context, device)
        if key_mask is not None:
            visible = visible & key_mask[:, None, None]
        if not sinks.places.shape[1]:
            return visible, bias
        away = torch.arange(tile.rows.start, tile.rows.stop, device=device)[:, None] - sinks.places[:, None, None]
        of_sinks = (away if context.causal else away.abs()) >= self.width
        of_sinks = of_sinks & sinks.there[:, None, None]
        visible = _side_by_side(of_sinks, visible)
        if bias is None:
            return visible, None
        at_sinks = context.bias_at(tile.rows, sinks.places)
        assert at_sinks is not None
        return visible, _side_by_side(at_sinks, bias)


def _any_sees(rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"], *, causal: bool) -> Bool[Tensor, "R K"]:
    earlier = keys[None, :] <= rows[:, None]
    return earlier if causal else torch.ones_like(earlier)


def _side_by_side(
    x: Shaped[Tensor, "#B heads R s"], y: Shaped[Tensor, "#B heads R K"]
) -> Shaped[Tensor, "#B heads R both"]:
    batch_size = len(y) if len(x) == 1 else len(x)
    return torch.cat([x.expand(batch_size, -1, -1, -1), y.expand(batch_size, -1, -1, -1)], dim=-1)
