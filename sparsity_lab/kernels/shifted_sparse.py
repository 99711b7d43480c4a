"""Shifted sparse attention, the S2-Attn of LongLoRA: softmax attention inside groups of G neighbors.

The heads fall into two halves. In the first, position t lies in group floor(t / G). The second is shifted by g = G /
2. Let N' be the length T rounded up to whole groups. Position t has the rolled place p(t) = (t - g) mod N', in group
floor(p(t) / G). Its last group is the *wrap group*: the first g positions, and the positions from N' - g on. (Rolling
the other way gives the same groups.) Places of positions beyond T are empty.

A row sees the keys of its group, in causal attention

- ``"split"``: up to itself, and the two halves of the wrap group do not see each other;
- ``"wrap_causal"``: up to itself;
- ``"wrap_rolled"``: up to its own rolled place, so that the first g rows see keys from N' - g on, the future.

Without ``causal`` it sees all of them, where the halves of the wrap group stay apart in ``"split"``.

Source: Chen et al., "LongLoRA", arXiv 2309.12307; the variants are those of its reference code and its figures.

The fast form is PyTorch's fused kernel. Without mask and bias the groups of half the heads are one batched call.
Nothing is rolled or padded: groups are slices, and only a wrap group whose halves see each other is put together from
two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Seen, Values, Weights
from sparsity_lab.kernels.kernel import CachedKernel, Kernel
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.kernels.parts.fused import Tile, disjoint, scaled_dot_product, seen_in, tiled_attention, whole_tile
from sparsity_lab.kernels.parts.masking import first_visible
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.softmax import Softmax, fused_attention, softmax_weights
from sparsity_lab.settings import SettingError, register

# --- groups


ShiftVariant = Literal["split", "wrap_causal", "wrap_rolled"]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of one half of the heads.

    Attributes:
        size: G, even.
        length: T; the groups of ``"split"`` are the same for every T.
        shifted: by G / 2.
        causal: see above.
    """

    size: int
    length: int
    variant: ShiftVariant
    shifted: bool
    causal: bool

    def sees(self, rows: Int64[Tensor, "*B R"], keys: Int64[Tensor, "*B K"]) -> Bool[Tensor, "*B R K"]:
        """(R, K): True where the row at position i sees the key at position j."""
        i, j = rows[..., :, None], keys[..., None, :]
        if not self.shifted:
            sees = i // self.size == j // self.size
            return sees & (j <= i) if self.causal else sees
        g = self.size // 2
        place_i, place_j = (i - g) % self.whole, (j - g) % self.whole
        sees = place_i // self.size == place_j // self.size
        if self.variant == "split":
            sees &= (i < g) == (j < g)
        if self.causal:
            sees &= place_j <= place_i if self.variant == "wrap_rolled" else j <= i
        return sees

    @property
    def whole(self) -> int:
        """N', the length rounded up to whole groups."""
        return -(-self.length // self.size) * self.size

    @property
    def wrap(self) -> tuple[int, int]:
        """The end of the first half of the wrap group and the start of its last half, if it is one group. The last
        half is empty if the last unshifted group is at most half full. Both within 0 .. T."""
        g = self.size // 2
        return min(g, self.length), min(self.whole - g, self.length)


# --- the fast form


HeadRows = tuple[Tensor, ...]
"""Queries, keys and values of the same heads and positions, (B, H, T, D) each."""


def group_attention(q: Queries, k: Keys, v: Values, groups: Groups) -> Outputs:
    """(B, H, T, E): every row attends inside its group; queries and keys come rotated."""
    rows = q, k, v
    if not groups.shifted:
        outs = _consecutive(rows, groups)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    first_stop, last_start = groups.wrap
    if groups.variant == "split":
        first, others = _split(rows, first_stop)
        return torch.cat([_attend(first, groups), *_consecutive(others, groups)], dim=2)
    first, middle, last = _split(rows, first_stop, last_start)
    if groups.variant == "wrap_causal":
        (out_first,), (out_last,) = _split((_attend(_joined(first, last), groups),), first_stop)
    else:
        (out_last,), (out_first,) = _split((_attend(_joined(last, first), groups),), last[0].shape[2])
    return torch.cat([out_first, *_consecutive(middle, groups), out_last], dim=2)


def group_tiles(
    query_start: int, num_rows: int, groups: Groups, tile_rows: int, *, moved: bool = False
) -> list[Tile]:
    """Tiles of the rows at positions ``query_start`` and on.

    Args:
        moved: the groups of each sequence begin somewhere else.
    """
    stop = query_start + num_rows
    borders = [*range(query_start, stop, tile_rows), stop]
    if moved:
        before = groups.size - 1
        after = 0 if groups.causal else before
        return [
            Tile(slice(a, b), (slice(max(a - before, 0), min(b + after, groups.length)),))
            for a, b in pairwise(borders)
        ]
    return [Tile(slice(a, b), _keys_of(a, b, groups)) for a, b in pairwise(borders)]


def _keys_of(start: int, stop: int, groups: Groups) -> tuple[slice, ...]:
    """Ranges that hold all keys that rows start .. stop - 1 see: from the first one's group to the last one's."""
    size, length = groups.size, groups.length
    g = size // 2 if groups.shifted else 0
    first, last = (start + g) // size * size - g, -(-(stop + g) // size) * size - g
    ranges = [(max(first, 0), stop if groups.causal else min(last, length))]
    if groups.shifted and groups.variant != "split":
        first_stop, last_start = groups.wrap
        if stop > last_start:
            ranges.append((0, first_stop))
        if start < first_stop and not (groups.causal and groups.variant == "wrap_causal"):
            ranges.append((last_start, length))
    return disjoint(ranges)


def _consecutive(rows: HeadRows, groups: Groups) -> list[Tensor]:
    """The outputs of consecutive groups from the first row on: of the whole ones, and of the rest."""
    batch_size, num_heads, length, _ = rows[0].shape
    num_groups = length // groups.size
    whole, rest = _split(rows, num_groups * groups.size)
    outs = []
    if num_groups:
        # Groups join the batch, not the heads: the fused kernel writes (B, T, H, D), whose groups are views.
        apart = (x.reshape(batch_size, num_heads, num_groups, groups.size, x.shape[3]) for x in whole)
        out = _attend(tuple(x.transpose(1, 2).flatten(0, 1) for x in apart), groups)
        out = out.reshape(batch_size, num_groups, num_heads, groups.size, out.shape[3])
        outs.append(out.transpose(1, 2).flatten(2, 3))
    if rest[0].shape[2]:
        outs.append(_attend(rest, groups))
    return outs


def _attend(rows: HeadRows, groups: Groups) -> Tensor:
    q, k, v = rows
    return scaled_dot_product(q, k, v, is_causal=groups.causal)


def _split(rows: HeadRows, *borders: int) -> list[HeadRows]:
    """The rows between the borders. Not by slices: the gradient of a split is one copy for all its parts."""
    sizes = [stop - start for start, stop in pairwise((0, *borders, rows[0].shape[2]))]
    return list(zip(*(torch.split(x, sizes, dim=2) for x in rows), strict=True))


def _joined(first: HeadRows, second: HeadRows) -> HeadRows:
    return tuple(torch.cat(pair, dim=2) for pair in zip(first, second, strict=True))


# --- the class


@register
class ShiftedSparse(CachedKernel):
    """Softmax attention inside groups of G neighbors in training, half of the heads with groups shifted by G / 2;
    softmax attention on all keys at inference. The S2-Attn of LongLoRA (arXiv 2309.12307).

    Heads 0 .. H // 2 - 1 are unshifted, the others shifted: at least two heads are needed for that. Any T will do:
    the last group is what is left. The text at the top of the file defines the groups.

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
) -> Seen:
    def sees(rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"]) -> Bool[Tensor, "*B R K"]:
        return groups.sees(rows, keys) if first is None else groups.sees(rows - first, keys - first)

    visible, bias = seen_in(tile, sees, context, device)
    return visible, None if bias is None else bias[:, heads]
