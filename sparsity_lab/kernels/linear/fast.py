"""Linear attention in time and memory linear in T, forward and backward, and one step of decoding.

The rows go in blocks of some chunks. A block's features are made when they are needed and dropped. Kept for the
backward pass are queries, keys, values, denominators, and the sums before each block. The backward pass takes the
blocks from the last to the first, each with its features and the sums inside it made again.

The numerator is o_t = Σ_{i<=t} <Q_t, K_i> U_i. Inside a chunk, the C x C products are formed. Earlier tokens enter
through the sum S = Σ_i K_i U_iᵀ, which is carried from chunk to chunk. Denominator, n_t = <Q_t, Σ_{i<=t} K_i>:
running sums of features, no products of rows.

One decoding step is S_t = S + K_t v_tᵀ, z_t = z + K_t, o_t = S_tᵀ Q_t / (<z_t, Q_t> + eps), with the features Q_t and
K_t of the new token's query and key. Sums of products, for the matrices of one row are too small for matrix products
to pay.

Shapes: B batch, H heads, T rows, D head size, E width of values, F features; N = B H sequences of n chunks of C rows.
Chunked rows are (N n, C, features or columns) with the chunks of a sequence side by side; sums are (N, F, E) and
(N, F).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.linear.formula import Features, FeaturesPullback, TurnedMap
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.profile import profile_of


def causal_total(
    Q: Float[Tensor, "chunks C F"], K: Float[Tensor, "chunks C F"], z: Float[Tensor, "N F"]
) -> tuple[Float[Tensor, "chunks C 1"], Float[Tensor, "N F"]]:
    """<Q_t, z_t> with z_t = z + Σ_{i<=t} K_i, and the sum after the last row.

    Args:
        z: the sum before the first row.
    """
    running, after = _running(K, z)
    return running.mul_(Q).sum(-1, keepdim=True), after


def causal_total_gradient(
    Q: Float[Tensor, "chunks C F"],
    K: Float[Tensor, "chunks C F"],
    z: Float[Tensor, "N F"],
    dn: Float[Tensor, "chunks C 1"],
    dz: Float[Tensor, "N F"],
) -> tuple[Float[Tensor, "chunks C F"], Float[Tensor, "chunks C F"], Float[Tensor, "N F"]]:
    """Gradients of Q, K and z: dQ_t = dn_t z_t, and dK_t = dz + Σ_{i>=t} dn_i Q_i.

    Args:
        dn: the gradient of the totals.
        dz: the gradient of the sum after the last row.
    """
    running, _ = _running(K, z)
    later, before = _running(_backwards(dn * Q, len(z)), dz)
    return running.mul_(dn), _backwards(later, len(z)), before


def divisor(total: Tensor, eps: float) -> Tensor:
    """What rows are divided by, n_t + eps; a row of nothing over nothing is nothing."""
    total = total + eps
    return total.masked_fill(total == 0, 1.0)


def _backwards(x: Float[Tensor, "chunks C F"], num_sequences: int) -> Float[Tensor, "chunks C F"]:
    return x.view(num_sequences, -1, x.shape[-1]).flip(1).view_as(x)


def _running(K: Float[Tensor, "chunks C F"], z: Float[Tensor, "N F"]) -> tuple[Tensor, Float[Tensor, "N F"]]:
    """z plus the sum of the rows up to each, (N n, C, F), and up to the last."""
    inside = K.cumsum(1)
    ends = inside[:, -1].view(len(z), -1, z.shape[-1])
    sums = torch.cat([z[:, None], ends], dim=1).cumsum(1)
    return inside.add_(sums[:, :-1].flatten(0, 1)[:, None]), sums[:, -1]


def causal_product(
    Q: Float[Tensor, "chunks C F"],
    K: Float[Tensor, "chunks C F"],
    U: Float[Tensor, "chunks C E"],
    S: Float[Tensor, "N F E"],
) -> tuple[Float[Tensor, "chunks C E"], Float[Tensor, "N F E"]]:
    """o = Q S + tril(Q Kᵀ) U of each chunk, and the sum after the last.

    Args:
        S: the sum before the first chunk.
    """
    before, after = _running_sums(K, U, S)
    return torch.bmm(Q, before).baddbmm_(_lower(Q, K), U), after


def causal_product_gradient(
    Q: Float[Tensor, "chunks C F"],
    K: Float[Tensor, "chunks C F"],
    U: Float[Tensor, "chunks C E"],
    S: Float[Tensor, "N F E"],
    dO: Float[Tensor, "chunks C E"],
    R: Float[Tensor, "N F E"],
) -> tuple[
    Float[Tensor, "chunks C F"], Float[Tensor, "chunks C F"], Float[Tensor, "chunks C E"], Float[Tensor, "N F E"]
]:
    """Gradients of Q, K, U and S:

        dQ = dO Sᵀ + tril(dO Uᵀ) K        dK = U Rᵀ + tril(dO Uᵀ)ᵀ Q        dU = K R + tril(Q Kᵀ)ᵀ dO

    of each chunk, where S is the sum before it, and R, the gradient of the sum after it, is Σ_i Q_i dO_iᵀ over all
    later rows.

    Args:
        S: the sum before the first chunk.
        dO: the gradient of the rows.
        R: the gradient of the sum after the last chunk.
    """
    before, _ = _running_sums(K, U, S)
    after, dS = _running_sums(Q, dO, R, backwards=True)
    G = _lower(dO, U)
    dQ = torch.bmm(dO, before.mT).baddbmm_(G, K)
    dK = torch.bmm(U, after.mT).baddbmm_(G.mT, Q)
    dU = torch.bmm(K, after).baddbmm_(_lower(Q, K).mT, dO)
    return dQ, dK, dU, dS


def _lower(Q: Float[Tensor, "chunks C F"], K: Float[Tensor, "chunks C F"]) -> Float[Tensor, "chunks C C"]:
    return torch.bmm(Q, K.mT).tril_()


def _running_sums(
    K: Float[Tensor, "chunks C F"],
    U: Float[Tensor, "chunks C E"],
    S: Float[Tensor, "N F E"],
    backwards: bool = False,
) -> tuple[Float[Tensor, "chunks F E"], Float[Tensor, "N F E"]]:
    """S plus the sum Σ_i K_i U_iᵀ over all rows before each chunk, and over all rows; ``backwards``: after each."""
    own = torch.bmm(K.mT, U).view(len(S), -1, *S.shape[1:])
    if profile_of(S.device).asynchronous:
        parts = torch.cat([own, S[:, None]], dim=1).flip(1) if backwards else torch.cat([S[:, None], own], dim=1)
        sums = parts.cumsum(1)
        before = sums[:, :-1].flip(1) if backwards else sums[:, :-1]
        return before.flatten(0, 1), sums[:, -1]
    order = list(range(own.shape[1]))
    if backwards:
        order.reverse()
    sums = torch.empty_like(own)
    sums[:, order[0]] = S
    for i, following in pairwise(order):
        torch.add(sums[:, i], own[:, i], out=sums[:, following])
    return sums.flatten(0, 1), sums[:, order[-1]] + own[:, order[-1]]


@dataclass(frozen=True)
class LinearCall:
    """What a call computes.

    Attributes:
        features: of queries and keys.
        eps: added to the denominator.
        chunk: rows in a chunk.
        key_mask: which keys may be seen; None: all.
        start: position of the first row.
    """

    features: TurnedMap
    eps: float
    chunk: int
    key_mask: Bool[Tensor, "B K"] | None
    start: int


def chunked_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    call: LinearCall,
) -> Float[Tensor, "B H T E"]:
    """Causal linear attention of whole sequences, in the dtype of q, computed in float32 at least."""
    out: Tensor = _Chunked.apply(q, k, v, call)  # type: ignore[no-untyped-call]
    return out


def continued_attention(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H R D"],
    v: Float[Tensor, "B H R E"],
    call: LinearCall,
    S: Float[Tensor, "B H F E"],
    z: Float[Tensor, "B H F"],
) -> tuple[Float[Tensor, "B H R E"], Float[Tensor, "B H F E"], Float[Tensor, "B H F"]]:
    """The rows of tokens that follow those whose sums are S and z, and the sums after them. No gradient flows."""
    rows = _forward(q, k, v, call, S.flatten(0, 1), z.flatten(0, 1))
    after, total_after = rows.sums[-1]
    return rows.out, after.view_as(S), total_after.view_as(z)


def summed_attention(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    call: LinearCall,
) -> Float[Tensor, "B H R E"]:
    """The same where every row sees all keys: two sums over them, differentiated by autograd."""
    wide = torch.promote_types(q.dtype, torch.float32)
    (above, below), (key_above, key_below) = _features(q.to(wide), k.to(wide), call, 0)
    total = divisor(below @ key_below.sum(-2).unsqueeze(-1), call.eps)
    return (above @ (key_above.mT @ v.to(wide)) / total).to(q.dtype)


@dataclass(frozen=True)
class _ForwardPass:
    """What the forward pass makes: outputs, denominators, and the sums before each block and after the last."""

    out: Float[Tensor, "B H T E"]
    total: Float[Tensor, "B H T 1"]
    sums: list[tuple[Tensor, Tensor]]


def _forward(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
    call: LinearCall,
    S: Float[Tensor, "N F E"],
    z: Float[Tensor, "N F"],
) -> _ForwardPass:
    made = _ForwardPass(q.new_empty(*q.shape[:3], v.shape[3]), z.new_empty(*q.shape[:3], 1), [(S, z)])
    for rows, size in _blocks(q, call):
        ((above, below), _), ((key_above, key_below), _) = _of_block(q, k, call, rows)
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
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: LinearCall) -> Tensor:
        num_features = call.features.feature_map.parts * q.shape[-1]
        z = q.new_zeros(q.shape[0] * q.shape[1], num_features, dtype=torch.promote_types(q.dtype, torch.float32))
        made = _forward(q, k, v, call, z.new_zeros(*z.shape, v.shape[-1]), z)
        before = [x for sums in made.sums[:-1] for x in sums]
        ctx.save_for_backward(q, k, v, made.total, *before)
        ctx.call = call
        return made.out

    @staticmethod
    @own_backward
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(gradient, ctx.call, *ctx.saved_tensors), None


def _backward(
    gradient: Tensor,
    call: LinearCall,
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T E"],
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
    blocks = zip(_blocks(q, call), before[::2], before[1::2], strict=True)
    for (rows, size), S, z in reversed(list(blocks)):
        ((above, below), to_q), ((key_above, key_below), to_k) = _of_block(q, k, call, rows)
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
        dk[:, :, rows] = of_keys if call.key_mask is None else of_keys * call.key_mask[:, None, rows, None]
        dq[:, :, rows] = to_q(d_above.view_as(above), d_below.view_as(below))
        dv[:, :, rows] = dU.view(*above.shape[:-1], -1)
    return dq, dk, dv


def _blocks(q: Float[Tensor, "B H T D"], call: LinearCall) -> Iterator[tuple[slice, int]]:
    """Rows of each block and its chunk length: whole chunks, and at the end one chunk of what is left. An empty batch
    has no blocks."""
    (batch_size, num_heads, length, head_dim), chunk = q.shape, call.chunk
    if not batch_size:
        return
    profile, num_features = profile_of(q.device), call.features.feature_map.parts * head_dim
    # Some twenty tensors of features are there at a time: they take five budgets.
    most = profile.rows(profile.linear_rows, 4 * num_features * 4)
    step = max(1, most // (batch_size * num_heads * chunk)) * chunk
    whole = length - length % chunk
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole)), chunk
    if whole < length:
        yield slice(whole, length), length - whole


def _features(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    call: LinearCall,
    key_start: int,
) -> tuple[Features, Features]:
    """Of queries, and of keys that may be seen."""
    queries, keys = call.features.query(q, call.start), call.features.key(seen_keys(k, call.key_mask), key_start)
    return queries, _seen(keys, call.key_mask)


def _of_block(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    call: LinearCall,
    rows: slice,
) -> tuple[tuple[Features, FeaturesPullback], tuple[Features, FeaturesPullback]]:
    """The same of these rows, with the ways back for their gradients."""
    start = call.start + rows.start
    mask = None if call.key_mask is None else call.key_mask[:, rows]
    queries = call.features.differentiated_query(_wide(q, rows), start)
    keys, to_k = call.features.differentiated_key(seen_keys(_wide(k, rows), mask), start)
    return queries, (_seen(keys, mask), to_k)


def _wide(x: Float[Tensor, "B H T D"], rows: slice) -> Float[Tensor, "B H R D"]:
    """These rows side by side, in float32 at least."""
    return x[:, :, rows].to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _chunks(x: Float[Tensor, "B H R columns"], size: int) -> Float[Tensor, "chunks C columns"]:
    return x.view(-1, size, x.shape[-1])


def seen_keys(k: Float[Tensor, "B H K D"], key_mask: Bool[Tensor, "B K"] | None) -> Float[Tensor, "B H K D"]:
    """Zeros in place of keys that nobody may see: a power of what stands there may be infinite."""
    return k if key_mask is None else k.masked_fill(~key_mask[:, None, :, None], 0.0)


def _seen(features: Features, key_mask: Bool[Tensor, "B R"] | None) -> Features:
    """Zeros where nobody may see a key, which takes it out of all sums."""
    if key_mask is None:
        return features
    above, below = (keys * key_mask[:, None, :, None] for keys in features)
    return above, below


def recurrent_attention(
    q: Float[Tensor, "B H 1 D"],
    k: Float[Tensor, "B H 1 D"],
    v: Float[Tensor, "B H 1 E"],
    call: LinearCall,
    S: Float[Tensor, "B H F E"],
    z: Float[Tensor, "B H F"],
) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H F E"], Float[Tensor, "B H F"]]:
    """The row of the token after those whose sums are S and z, in the dtype of q, and the sums after it."""
    (above, below), (key_above, key_below) = _features(q.to(S.dtype), k.to(S.dtype), call, call.start)
    S = torch.addcmul(S, key_above.mT, v.to(S.dtype))
    z = z + key_below.squeeze(2)
    total = divisor((below.squeeze(2) * z).sum(-1, keepdim=True), call.eps)
    out = (above.mT * S).sum(2) / total
    return out.unsqueeze(2).to(q.dtype), S, z
