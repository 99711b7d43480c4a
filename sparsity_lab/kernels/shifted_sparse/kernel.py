"""Shifted sparse attention, the S2-Attn of LongLoRA."""

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.cached import CachedKernel
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.kernels.parts.masking import first_visible
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.parts.tiles import Tile, seen_in, tiled_attention, whole_tile
from sparsity_lab.kernels.shifted_sparse.fast import group_attention, group_tiles
from sparsity_lab.kernels.shifted_sparse.formula import Groups, ShiftVariant
from sparsity_lab.kernels.softmax import Softmax, fused_attention, softmax_weights
from sparsity_lab.settings import SettingError, register


@register
class ShiftedSparse(CachedKernel):
    """Softmax attention inside groups of G neighbors in training, half of the heads with groups shifted by G / 2;
    softmax attention on all keys at inference. The S2-Attn of LongLoRA (arXiv 2309.12307).

    Heads 0 .. H // 2 - 1 are unshifted, the others shifted: at least two heads are needed for that. Any T will do:
    the last group is what is left. ``shifted_sparse/formula.py`` defines the groups.

    A position sees at most G - 1 positions back in the first layer, and G / 2 more in each further layer. So the last
    position depends on the whole past from depth 2 T / G - 1 on (``"wrap_causal"``: one layer less). That is 7 layers
    for ratio 1/4. A shallower model never gets a gradient for the longest dependencies.

    ``"fused"`` is PyTorch's fused kernel, on all groups in a batch, in tiles of query rows where there is a mask or a
    bias. Without them no tensor has more than T rows.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> bool(ShiftedSparse(group=4).weights(q, k, training=True)[0, 0, 7, 0] == 0)
    True

    Attributes:
        group: G, even. Exactly one of ``group`` and ``ratio`` is given.
        ratio: G over T, in (0, 1]; G is ratio times T rounded up to an even number.
        variant: how the shifted heads treat the first and the last G / 2 positions, which lie outside their full
            groups. ``"split"``: each half attends separately. ``"wrap_causal"``: together they form one more group,
            whose last half sees the first. ``"wrap_rolled"``: the published algorithm with a plain causal mask on
            rolled rows, where the first half sees the last half, the future. It **leaks**, at depth 2 T / G and
            beyond even the very token to predict, and is here for comparison only.
        shift: False leaves all heads unshifted, so that nothing ever passes between groups: the control.
        sparse_at_inference: keep the groups when ``training=False``. Decoding, and a key mask, then need groups that
            do not depend on T: ``group`` and ``"split"``. They begin at the first key of a sequence that may be seen,
            so that padding on the left changes nothing. In training groups lie by place, padding included.
    """

    group: int | None = None
    ratio: float | None = None
    variant: ShiftVariant = "split"
    shift: bool = True
    sparse_at_inference: bool = False

    former_fields: ClassVar[Mapping[str, str]] = {"sparse_in_use": "sparse_at_inference"}
    implementations = ("reference", "fused")
    reweightable = False

    def check(self) -> None:
        if (self.group is None) == (self.ratio is None):
            raise SettingError(
                "group", f"give {'group or ratio' if self.group is None else 'either group or ratio, not both'}"
            )
        if self.group is not None and (self.group < 2 or self.group % 2):
            raise SettingError("group", "an even number of at least 2", self.group)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise SettingError("ratio", "a number above 0 and at most 1", self.ratio)

    @classmethod
    def examples(cls) -> "tuple[ShiftedSparse, ...]":
        return (
            cls(ratio=0.25),
            cls(group=6, variant="wrap_causal"),
            cls(ratio=0.3, variant="wrap_rolled"),
            cls(group=8, sparse_at_inference=True),
            cls(group=8, shift=False),
        )

    @classmethod
    def benchmarked(cls) -> "tuple[ShiftedSparse, ...]":
        return (cls(ratio=0.25),)

    @property
    def leaks(self) -> bool:
        return self.shift and self.variant == "wrap_rolled"

    @property
    def at_inference(self) -> Kernel:
        return self if self.sparse_at_inference else Softmax()

    def group_size(self, length: int) -> int:
        """G of a sequence of ``length`` tokens: ``group``, or the least even number that is not below ``ratio`` times
        ``length``. A group may be longer than the sequence."""
        if self.ratio is None:
            assert self.group is not None
            return self.group
        # Up, so that there are no more than 1 / ratio groups; but not for the last digit of the product.
        return max(2, 2 * math.ceil(round(self.ratio * length / 2, 9)))

    def _init_state(self, rows: RowKind, capacity: int) -> KeyValueCache:
        if self.sparse_at_inference and self._length_decides:
            path = "group" if self.group is None else "variant"
            expected = (
                "group and variant='split', since decoding with sparse_at_inference cannot know the full length"
            )
            raise SettingError(path, expected, getattr(self, path))
        return super()._init_state(rows, capacity)

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        if self._is_sparse(context) and self.shift and q.shape[1] < 2:
            raise SettingError("q", "at least 2 heads, of which half are shifted", q.shape[1])
        if self.sparse_at_inference and not context.training:
            begin = "groups start at the first visible key"
            if context.document_ids is not None:
                raise SettingError("document_ids", f"not supported at inference: {begin}, not in each document")
            if context.key_mask is not None and self._length_decides:
                need = "needs group and variant='split' at inference"
                raise SettingError("key_mask", f"{need}: {begin}, and other groups depend on the length")

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        if not self._is_sparse(context):
            return softmax_weights(q, k, *context.visible_and_bias(q, k))
        whole, first = whole_tile(q, k, context), self._first_places(context)
        return torch.cat(
            [
                softmax_weights(q[:, heads], k[:, heads], *_seen(whole, groups, heads, context, first, q.device))
                for heads, groups in self._halves(q.shape[1], k.shape[2], context)
            ],
            dim=1,
        )

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        if not self._is_sparse(context):
            return fused_attention(q, k, v, context)
        num_rows, num_keys = q.shape[2], k.shape[2]
        plain = not context.hides and not context.has_bias and num_rows == num_keys
        first = self._first_places(context)
        halves = self._halves(q.shape[1], num_keys, context)
        sizes = [heads.stop - heads.start for heads, _ in halves]
        profile = profile_of(q.device)
        tile_rows = profile.rows(profile.window_rows, math.prod(q.shape[:2]) * num_keys * 4)
        # Split, not sliced: the gradient of a split is one copy for both halves.
        rows = zip(*(torch.split(x, sizes, dim=1) for x in (q, k, v)), strict=True)
        outs = []
        for (q_half, k_half, v_half), (heads, groups) in zip(rows, halves, strict=True):
            if plain:
                outs.append(group_attention(q_half, k_half, v_half, groups))
                continue
            seen = partial(_seen, groups=groups, heads=heads, context=context, first=first, device=q.device)
            tiles = group_tiles(context.query_start, num_rows, groups, tile_rows, moved=first is not None)
            outs.append(tiled_attention(q_half, k_half, v_half, context, tiles, seen))
        return torch.cat(outs, dim=1)

    @property
    def _length_decides(self) -> bool:
        """Whether the groups depend on the length of the sequence."""
        return self.group is None or self.variant != "split"

    def _first_places(self, context: Context) -> Int64[Tensor, "B 1"] | None:
        """Where the groups of each sequence begin; None: at 0."""
        if context.training or context.key_mask is None:
            return None
        return first_visible(context.key_mask, 1).places

    def _is_sparse(self, context: Context) -> bool:
        return context.training or self.sparse_at_inference

    def _halves(self, num_heads: int, length: int, context: Context) -> list[tuple[slice, Groups]]:
        """The unshifted heads and the shifted ones, with their groups."""
        num_unshifted = num_heads // 2
        make = partial(
            Groups, size=self.group_size(length), length=length, variant=self.variant, causal=context.causal
        )
        if not self.shift:
            return [(slice(0, num_heads), make(shifted=False))]
        return [
            (slice(0, num_unshifted), make(shifted=False)),
            (slice(num_unshifted, num_heads), make(shifted=True)),
        ]


def _seen(
    tile: Tile,
    groups: Groups,
    heads: slice,
    context: Context,
    first: Int64[Tensor, "B 1"] | None,
    device: torch.device,
) -> tuple[Bool[Tensor, "#B 1 R K"], Float[Tensor, "#B H R K"] | None]:
    def sees(rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"]) -> Bool[Tensor, "*B R K"]:
        return groups.sees(rows, keys) if first is None else groups.sees(rows - first, keys - first)

    visible, bias = seen_in(tile, sees, context, device)
    return visible, None if bias is None else bias[:, heads]
