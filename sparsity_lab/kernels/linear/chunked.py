"""Linear attention in time and memory linear in T, forward and backward.

The rows go in blocks of some chunks. A block's features are made when they are needed and dropped. Kept for the
backward pass are queries, keys, values, denominators, and the sums before each block. The backward pass takes the
blocks from the last to the first, each with its features and the sums inside it made again.

Shapes: B batch, H heads, T rows, D head size, E width of values, F features, N = B H sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsity_lab.kernels.linear.denominator import causal_total, causal_total_gradient, divisor
from sparsity_lab.kernels.linear.product import causal_product, causal_product_gradient
from sparsity_lab.kernels.linear.rotation import TurnedMap

__all__ = ["LinearCall", "chunked_attention", "continued_attention", "summed_attention"]

BLOCK_ROWS = 2048
"""Rows of all sequences together that are worked on at once: few enough that a block's features stay in the cache,
many enough that the calls cost little beside the work."""


@dataclass(frozen=True)
class LinearCall:
    """What a call computes.

    Attributes:
        features: of queries and keys.
        eps: added to the denominator.
        chunk: rows in a chunk.
        start: position of the first row.
    """

    features: TurnedMap
    eps: float
    chunk: int
    start: int = 0


def chunked_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    key_mask: Bool[Tensor, "B T"] | None,
    call: LinearCall,
) -> Float[Tensor, "B H T E"]:
    """Causal linear attention of whole sequences, in the dtype of q, computed in float32 at least."""
    out: Tensor = _Chunked.apply(q, k, v, key_mask, call)  # type: ignore[no-untyped-call]
    return out


def continued_attention(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H R D"],
    v: Float[Tensor, "B H R E"],
    key_mask: Bool[Tensor, "B R"] | None,
    call: LinearCall,
    S: Float[Tensor, "B H F E"],
    z: Float[Tensor, "B H F"],
) -> tuple[Float[Tensor, "B H R E"], Float[Tensor, "B H F E"], Float[Tensor, "B H F"]]:
    """The rows of tokens that follow those whose sums are S and z, and the sums after them. No gradient flows."""
    rows = _forward(q, k, v, key_mask, call, S.flatten(0, 1), z.flatten(0, 1))
    after, total_after = rows.sums[-1]
    return rows.out, after.view_as(S), total_after.view_as(z)


def summed_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    key_mask: Bool[Tensor, "B T"] | None,
    call: LinearCall,
) -> Float[Tensor, "B H T E"]:
    """The same where every row sees all keys: two sums over them, differentiated by autograd."""
    wide = torch.promote_types(q.dtype, torch.float32)
    above, below = call.features.query(q.to(wide), call.start)
    key_above, key_below = call.features.key(k.to(wide), 0)
    if key_mask is not None:
        key_above, key_below = (keys * key_mask[:, None, :, None] for keys in (key_above, key_below))
    total = divisor(below @ key_below.sum(-2).unsqueeze(-1), call.eps)
    return (above @ (key_above.mT @ v.to(wide)) / total).to(q.dtype)


@dataclass(frozen=True)
class _Rows:
    """What the forward pass makes: outputs, denominators, and the sums before each block and after the last."""

    out: Float[Tensor, "B H T E"]
    total: Float[Tensor, "B H T 1"]
    sums: list[tuple[Tensor, Tensor]]


def _forward(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    key_mask: Bool[Tensor, "B T"] | None,
    call: LinearCall,
    S: Float[Tensor, "N F E"],
    z: Float[Tensor, "N F"],
) -> _Rows:
    made = _Rows(q.new_empty(*q.shape[:3], v.shape[3]), z.new_empty(*q.shape[:3], 1), [(S, z)])
    for rows, size in _blocks(q, call.chunk):
        (above, below), _ = call.features.differentiated_query(_wide(q, rows), call.start + rows.start)
        (key_above, key_below), _ = call.features.differentiated_key(_wide(k, rows), call.start + rows.start)
        if key_mask is not None:
            key_above, key_below = _seen(key_above, key_mask[:, rows]), _seen(key_below, key_mask[:, rows])
        U = _chunks(_wide(v, rows), size)
        out, S = causal_product(_chunks(above, size), _chunks(key_above, size), U, S)
        total, z = causal_total(_chunks(below, size), _chunks(key_below, size), z)
        total = divisor(total, call.eps)
        made.out[:, :, rows] = out.div_(total).view(*above.shape[:-1], -1)
        made.total[:, :, rows] = total.view(*above.shape[:-1], 1)
        made.sums.append((S, z))
    return made


class _Chunked(torch.autograd.Function):
    """Whole sequences from empty sums, with the backward pass described above."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, call: LinearCall) -> Tensor:
        num_features = call.features.feature_map.parts * q.shape[-1]
        z = q.new_zeros(q.shape[0] * q.shape[1], num_features, dtype=torch.promote_types(q.dtype, torch.float32))
        made = _forward(q, k, v, key_mask, call, z.new_zeros(*z.shape, v.shape[-1]), z)
        before = [x for sums in made.sums[:-1] for x in sums]
        ctx.save_for_backward(q, k, v, key_mask, made.total, *before)
        ctx.call = call
        return made.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The forward pass runs inside a kernel, which switches autocast off. It would make the products of float32
        # rows in half the digits, and the sums with them.
        with torch.autocast(gradient.device.type, enabled=False):
            return *_backward(gradient, ctx.call, *ctx.saved_tensors), None, None


def _backward(
    gradient: Tensor,
    call: LinearCall,
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    key_mask: Bool[Tensor, "B T"] | None,
    totals: Float[Tensor, "B H T 1"],
    *before: Tensor,
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T D"], Float[Tensor, "B H T E"]]:
    """Gradients of q, k and v.

    Args:
        before: the two sums before each block.
    """
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if not before:  # an empty batch
        return dq, dk, dv
    dS, dz = torch.zeros_like(before[0]), torch.zeros_like(before[1])
    blocks = zip(_blocks(q, call.chunk), before[::2], before[1::2], strict=True)
    for (rows, size), S, z in reversed(list(blocks)):
        (above, below), to_q = call.features.differentiated_query(_wide(q, rows), call.start + rows.start)
        (key_above, key_below), to_k = call.features.differentiated_key(_wide(k, rows), call.start + rows.start)
        if key_mask is not None:
            key_above, key_below = _seen(key_above, key_mask[:, rows]), _seen(key_below, key_mask[:, rows])
        # o = m / n: dm = do / n, and dn = - <dm, o> = - <Q, dQ> / n, for m is linear in Q. The last form needs no
        # output: one that was rounded to bfloat16 would spoil the gradients of rows with a small n.
        n = _chunks(totals[:, :, rows].contiguous(), size)
        dm = _chunks(_wide(gradient, rows), size) / n
        Q, K, U = _chunks(above, size), _chunks(key_above, size), _chunks(_wide(v, rows), size)
        d_above, d_key_above, dU, dS = causal_product_gradient(Q, K, U, S, dm, dS)
        dn = (Q * d_above).sum(-1, keepdim=True).div_(n).neg_()
        Q, K = _chunks(below, size), _chunks(key_below, size)
        d_below, d_key_below, dz = causal_total_gradient(Q, K, z, dn, dz)
        of_keys = to_k(d_key_above.view_as(key_above), d_key_below.view_as(key_below))
        dk[:, :, rows] = of_keys if key_mask is None else _seen(of_keys, key_mask[:, rows])
        dq[:, :, rows] = to_q(d_above.view_as(above), d_below.view_as(below))
        dv[:, :, rows] = dU.view(*above.shape[:-1], -1)
    return dq, dk, dv


def _blocks(q: Float[Tensor, "B H T D"], chunk: int) -> Iterator[tuple[slice, int]]:
    """Rows of each block and its chunk length: whole chunks, and at the end one chunk of what is left. An empty batch
    has no blocks."""
    batch_size, num_heads, length, _ = q.shape
    if not batch_size:
        return
    step = max(1, BLOCK_ROWS // (batch_size * num_heads * chunk)) * chunk
    whole = length - length % chunk
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole)), chunk
    if whole < length:
        yield slice(whole, length), length - whole


def _wide(x: Float[Tensor, "B H T D"], rows: slice) -> Float[Tensor, "B H R D"]:
    """These rows side by side, in float32 at least."""
    return x[:, :, rows].to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _chunks(x: Float[Tensor, "B H R columns"], size: int) -> Float[Tensor, "chunks C columns"]:
    return x.view(-1, size, x.shape[-1])


def _seen(keys: Float[Tensor, "B H R columns"], key_mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B H R columns"]:
    """Zeros where nobody may see a key, which takes it out of all sums."""
    return keys * key_mask[:, None, :, None]
