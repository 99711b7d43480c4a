"""Linear attention: weights are inner products of features, so that sums over keys replace the T x T map,

    w_ij = <φ(q_i), φ(k_j)> / (Σ_j' <φ(q_i), φ(k_j')> + eps)

over the keys that row i sees. What the features φ are, and where a rotary position meets them:

    "input"      φ(R_t q_t) and φ(R_i k_i) in numerator and denominator
    "numerator"  o_t = Σ_i <R_t φ(q_t), R_i φ(k_i)> v_i / (Σ_i <φ(q_t), φ(k_i)> + eps)
    "none"       no rotary position is taken

R_t turns each block of D features as it turns a query of D coordinates.

Shapes: (..., D) rows to (..., F) features. F is D times the map's ``parts``: the features are ``parts`` blocks of
width D, so that a rotary position can turn each block. Computed in float32 at least.

The fast form takes time and memory linear in T, forward and backward. The rows go in blocks of some chunks. A block's
features are made when they are needed and dropped. Kept for the backward pass are queries, keys, values,
denominators, and the sums before each block. The backward pass takes the blocks from the last to the first, each with
its features and the sums inside it made again.

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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import pad

from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import SettingError, check_least, register

# --- features, and the formula


Pullback = Callable[[Tensor], Tensor]
"""From the gradient of a function's result to the gradient of its argument."""


class FeatureMap(ABC):
    """How queries and keys become features.

    Attributes:
        parts: how many blocks of D features there are.
    """

    parts: ClassVar[int]

    @abstractmethod
    def query(self, q: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        """Features of queries, by the formula."""

    @abstractmethod
    def key(self, k: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        """Features of keys, by the formula."""

    def differentiated_query(self, q: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows F"], Pullback]:
        """Features of queries, and the way back for their gradient. A map may know a faster one than autograd's."""
        return differentiate(self.query, q)

    def differentiated_key(self, k: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows F"], Pullback]:
        """The same of keys."""
        return differentiate(self.key, k)


def differentiate(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Pullback]:
    """function(x) and its pullback, by autograd."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
    return y.detach(), lambda gradient: torch.autograd.grad(y, x, gradient)[0]


@dataclass(frozen=True)
class Elementwise(FeatureMap):
    """φ(x) = 1 + elu(x), which is positive, or relu(x); the same for queries and keys."""

    feature: Literal["elu", "relu"]
    parts = 1

    def query(self, q: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return 1 + functional.elu(q) if self.feature == "elu" else q.relu()

    def key(self, k: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return self.query(k)


Rotation = Literal["input", "numerator", "none"]

Features = tuple[Tensor, Tensor]
"""(B, H, R, F) features of the numerator, and those of the denominator: the same tensor unless a position turns only
the former."""

FeaturesPullback = Callable[[Tensor, Tensor], Tensor]
"""From the gradients of both features to that of the rows; the first may be overwritten."""


def linear_weights(queries: Features, keys: Features, visible: Bool[Tensor, "#B 1 R K"], eps: float) -> Weights:
    """(B, H, R, K) weights. A row that sees no key, or whose features are all zero, has weights of zero."""
    above, below = ((Q @ K.mT).masked_fill(~visible, 0.0) for Q, K in zip(queries, keys, strict=True))
    return above / divisor(below.sum(-1, keepdim=True), eps)


# --- the fast form

Chunks = Float[Tensor, "chunks C F"]  # features, the chunks of a sequence side by side
Columns = Float[Tensor, "chunks C E"]
Numbers = Float[Tensor, "chunks C 1"]
Sums = Float[Tensor, "N F E"]
Totals = Float[Tensor, "N F"]


def causal_total(Q: Chunks, K: Chunks, z: Totals) -> tuple[Numbers, Totals]:
    """<Q_t, z_t> with z_t = z + Σ_{i<=t} K_i, and the sum after the last row.

    Args:
        z: the sum before the first row.
    """
    running, after = _running(K, z)
    return running.mul_(Q).sum(-1, keepdim=True), after


def causal_total_gradient(Q: Chunks, K: Chunks, z: Totals, dn: Numbers, dz: Totals) -> tuple[Chunks, Chunks, Totals]:
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


def _backwards(x: Chunks, num_sequences: int) -> Chunks:
    return x.view(num_sequences, -1, x.shape[-1]).flip(1).view_as(x)


def _running(K: Chunks, z: Totals) -> tuple[Tensor, Totals]:
    """z plus the sum of the rows up to each, (N n, C, F), and up to the last."""
    inside = K.cumsum(1)
    ends = inside[:, -1].view(len(z), -1, z.shape[-1])
    sums = torch.cat([z[:, None], ends], dim=1).cumsum(1)
    return inside.add_(sums[:, :-1].flatten(0, 1)[:, None]), sums[:, -1]


def causal_product(Q: Chunks, K: Chunks, U: Columns, S: Sums) -> tuple[Columns, Sums]:
    """o = Q S + tril(Q Kᵀ) U of each chunk, and the sum after the last.

    Args:
        S: the sum before the first chunk.
    """
    before, after = _running_sums(K, U, S)
    return torch.bmm(Q, before).baddbmm_(_lower(Q, K), U), after


def causal_product_gradient(
    Q: Chunks, K: Chunks, U: Columns, S: Sums, dO: Columns, R: Sums
) -> tuple[Chunks, Chunks, Columns, Sums]:
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


def _lower(Q: Chunks, K: Chunks) -> Float[Tensor, "chunks C C"]:
    return torch.bmm(Q, K.mT).tril_()


def _running_sums(
    K: Chunks, U: Columns, S: Sums, backwards: bool = False
) -> tuple[Float[Tensor, "chunks F E"], Sums]:
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
        feature_map, rotation, position: what features are, and where a position turns them.
        eps: added to the denominator.
        chunk: rows in a chunk.
        key_mask: which keys may be seen; None: all.
        start: position of the first row.
    """

    feature_map: FeatureMap
    rotation: Rotation
    position: KernelPosition | None
    eps: float
    chunk: int
    key_mask: Bool[Tensor, "B K"] | None
    start: int

    def features(self, q: Queries, k: Keys, key_start: int) -> tuple[Features, Features]:
        """Of queries, and of keys that may be seen, by the formula."""
        queries = self.feature_map.query(self._turned_input(q, self.start))
        keys = self.feature_map.key(self._turned_input(_seen_keys(k, self.key_mask), key_start))
        return self._turned(queries, self.start), _seen(self._turned(keys, key_start), self.key_mask)

    def of_block(
        self, q: Queries, k: Keys, rows: slice
    ) -> tuple[tuple[Features, FeaturesPullback], tuple[Features, FeaturesPullback]]:
        """The same of these rows, with the ways back for their gradients."""
        start, mask = self.start + rows.start, None if self.key_mask is None else self.key_mask[:, rows]
        queries = self._differentiated(self.feature_map.differentiated_query, _wide(q, rows), start)
        seen = _seen_keys(_wide(k, rows), mask)
        keys, to_k = self._differentiated(self.feature_map.differentiated_key, seen, start)
        return queries, (_seen(keys, mask), to_k)

    def _differentiated(
        self, apply: Callable[[Tensor], tuple[Tensor, Pullback]], x: Tensor, start: int
    ) -> tuple[Features, FeaturesPullback]:
        if self.position is not None and self.rotation == "numerator":
            plain, pullback = apply(x)
            turned, from_turned = differentiate(lambda plain: self._turned(plain, start)[0], plain)
            return (turned, plain), lambda above, below: pullback(from_turned(above).add_(below))
        if self.position is not None:
            x, from_input = differentiate(lambda x: self._turned_input(x, start), x)
            plain, pullback = apply(x)
            return (plain, plain), lambda above, below: from_input(pullback(above.add_(below)))
        plain, pullback = apply(x)
        return (plain, plain), lambda above, below: pullback(above.add_(below))

    def _turned_input(self, x: Float[Tensor, "B H R D"], start: int) -> Float[Tensor, "B H R D"]:
        return x if self.position is None or self.rotation == "numerator" else self.position.rotate(x, start)

    def _turned(self, plain: Float[Tensor, "B H R F"], start: int) -> Features:
        if self.position is None or self.rotation == "input":
            return plain, plain
        blocks = plain.chunk(self.feature_map.parts, dim=-1)
        return torch.cat([self.position.rotate(block, start) for block in blocks], dim=-1), plain


def chunked_attention(q: Queries, k: Keys, v: Values, call: LinearCall) -> Outputs:
    """Causal linear attention of whole sequences, in the dtype of q, computed in float32 at least."""
    out: Tensor = _Chunked.apply(q, k, v, call)  # type: ignore[no-untyped-call]
    return out


def continued_attention(
    q: Queries, k: Keys, v: Values, call: LinearCall, S: Float[Tensor, "B H F E"], z: Float[Tensor, "B H F"]
) -> tuple[Outputs, Float[Tensor, "B H F E"], Float[Tensor, "B H F"]]:
    """The rows of tokens that follow those whose sums are S and z, and the sums after them. No gradient flows."""
    out, _, sums = _forward(q, k, v, call, S.flatten(0, 1), z.flatten(0, 1))
    after, total_after = sums[-1]
    return out, after.view_as(S), total_after.view_as(z)


def summed_attention(q: Queries, k: Keys, v: Values, call: LinearCall) -> Outputs:
    """The same where every row sees all keys: two sums over them, differentiated by autograd."""
    wide = torch.promote_types(q.dtype, torch.float32)
    (above, below), (key_above, key_below) = call.features(q.to(wide), k.to(wide), 0)
    total = divisor(below @ key_below.sum(-2).unsqueeze(-1), call.eps)
    return (above @ (key_above.mT @ v.to(wide)) / total).to(q.dtype)


def _forward(
    q: Queries, k: Keys, v: Values, call: LinearCall, S: Sums, z: Totals
) -> tuple[Outputs, Float[Tensor, "B H R 1"], list[tuple[Sums, Totals]]]:
    """Outputs, denominators, and the sums before each block and after the last."""
    made, totals, sums = q.new_empty(*q.shape[:3], v.shape[3]), z.new_empty(*q.shape[:3], 1), [(S, z)]
    for rows, size in _blocks(q, call):
        ((above, below), _), ((key_above, key_below), _) = call.of_block(q, k, rows)
        U = _chunks(_wide(v, rows), size)
        out, S = causal_product(_chunks(above, size), _chunks(key_above, size), U, S)
        total, z = causal_total(_chunks(below, size), _chunks(key_below, size), z)
        total = divisor(total, call.eps)
        made[:, :, rows] = out.div_(total).view(*above.shape[:-1], -1)
        totals[:, :, rows] = total.view(*above.shape[:-1], 1)
        sums.append((S, z))
    return made, totals, sums


class _Chunked(torch.autograd.Function):
    """Whole sequences from empty sums, with the backward pass described above."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: LinearCall) -> Tensor:
        num_features = call.feature_map.parts * q.shape[-1]
        z = q.new_zeros(q.shape[0] * q.shape[1], num_features, dtype=torch.promote_types(q.dtype, torch.float32))
        out, totals, sums = _forward(q, k, v, call, z.new_zeros(*z.shape, v.shape[-1]), z)
        before = [x for both in sums[:-1] for x in both]
        ctx.save_for_backward(q, k, v, totals, *before)
        ctx.call = call
        return out

    @staticmethod
    @own_backward
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(gradient, ctx.call, *ctx.saved_tensors), None


def _backward(
    gradient: Tensor,
    call: LinearCall,
    q: Queries,
    k: Keys,
    v: Values,
    totals: Float[Tensor, "B H T 1"],
    *before: Tensor,
) -> tuple[Queries, Keys, Values]:
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
        ((above, below), to_q), ((key_above, key_below), to_k) = call.of_block(q, k, rows)
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


def _blocks(q: Queries, call: LinearCall) -> Iterator[tuple[slice, int]]:
    """Rows of each block and its chunk length: whole chunks, and at the end one chunk of what is left. An empty batch
    has no blocks."""
    (batch_size, num_heads, length, head_dim), chunk = q.shape, call.chunk
    if not batch_size:
        return
    profile, num_features = profile_of(q.device), call.feature_map.parts * head_dim
    # Some twenty tensors of features are there at a time: they take five budgets.
    most = profile.rows(profile.linear_rows, 4 * num_features * 4)
    step = max(1, most // (batch_size * num_heads * chunk)) * chunk
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


def _seen_keys(k: Keys, key_mask: Bool[Tensor, "B K"] | None) -> Keys:
    """Zeros in place of keys that nobody may see: a power of what stands there may be infinite."""
    return k if key_mask is None else k.masked_fill(~key_mask[:, None, :, None], 0.0)


def _seen(features: Features, key_mask: Bool[Tensor, "B R"] | None) -> Features:
    """Zeros where nobody may see a key, which takes it out of all sums."""
    if key_mask is None:
        return features
    above, below = (keys * key_mask[:, None, :, None] for keys in features)
    return above, below


def recurrent_attention(
    q: Queries, k: Keys, v: Values, call: LinearCall, S: Float[Tensor, "B H F E"], z: Float[Tensor, "B H F"]
) -> tuple[Outputs, Float[Tensor, "B H F E"], Float[Tensor, "B H F"]]:
    """The row of the token after those whose sums are S and z, in the dtype of q, and the sums after it."""
    (above, below), (key_above, key_below) = call.features(q.to(S.dtype), k.to(S.dtype), call.start)
    S = torch.addcmul(S, key_above.mT, v.to(S.dtype))
    z = z + key_below.squeeze(2)
    total = divisor((below.squeeze(2) * z).sum(-1, keepdim=True), call.eps)
    out = (above.mT * S).sum(2) / total
    return out.unsqueeze(2).to(q.dtype), S, z


# --- the classes


class LinearState(KernelState):
    """Sums over the tokens seen, in float32 at least: a sum that every token enters with rounding needs the digits.

    Attributes:
        S: (B, H, F, E): Σ_i φ(k_i) v_iᵀ, of the numerator's features.
        z: (B, H, F): Σ_i φ(k_i), of the denominator's.
    """

    def __init__(self, rows: RowKind, num_features: int) -> None:
        super().__init__(capacity=None)
        wide = torch.promote_types(rows.dtype, torch.float32)
        self.z = torch.zeros(rows.batch_size, rows.num_heads, num_features, dtype=wide, device=rows.device)
        self.S = self.z.new_zeros(*self.z.shape, rows.value_dim)


class FeatureKernel(Kernel):
    """Attention whose weights are inner products of features, divided by their sum."""

    implementations = ("reference", "chunked")

    eps: float
    rotation: Rotation
    chunk: int

    @property
    @abstractmethod
    def feature_map(self) -> FeatureMap:
        """How queries and keys become features."""

    @property
    def positions(self) -> frozenset[str]:
        return frozenset() if self.rotation == "none" else frozenset({"rotate"})

    def check(self) -> None:
        check_least(0, eps=self.eps)
        check_least(1, chunk=self.chunk)

    def _prepare(self, q: Queries, k: Keys, context: Context, key_start: int = 0) -> tuple[Queries, Keys]:
        return q, k  # a position may turn features instead of rows

    def _call(self, context: Context) -> LinearCall:
        turned = self.feature_map, self.rotation, context.position
        return LinearCall(*turned, self.eps, self.chunk, context.key_mask, context.query_start)

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        if context.document_ids is not None and context.implementation == "chunked":
            raise SettingError("document_ids", "not supported by 'chunked'; use implementation='reference'")

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        wide = torch.promote_types(k.dtype, torch.float32)
        features = self._call(context).features(q.to(wide), k.to(wide), 0)
        return linear_weights(*features, context.visible(q, k), self.eps)

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        if not context.causal:
            return summed_attention(q, k, v, self._call(context))
        before, num_rows = context.query_start, q.shape[2]
        after = k.shape[2] - before - num_rows
        if before or after:
            q = pad(q, (0, 0, before, after))  # sums run over all keys, so there is a row for each
        out = chunked_attention(q, k, v, self._call(context.at(0)))
        return out[:, :, before : before + num_rows] if before or after else out

    def _init_state(self, rows: RowKind, capacity: int) -> LinearState:
        return LinearState(rows, self.feature_map.parts * rows.head_dim)

    def _extend(self, q: Queries, k: Keys, v: Values, state: LinearState, context: Context) -> Outputs:
        form = recurrent_attention if q.shape[2] == 1 else continued_attention
        out, state.S, state.z = form(q, k, v, self._call(context), state.S, state.z)
        state.advance(q.shape[2])
        return out


@register
class Linear(FeatureKernel):
    """Linear attention: o_t = Σ_{i<=t} <φ(q_t), φ(k_i)> v_i / (Σ_{i<=t} <φ(q_t), φ(k_i)> + eps).

    With relu the norm of a query cancels; with 1 + elu it matters little.

    ``"chunked"`` is linear in T in time and memory; without ``causal`` it is one sum over all keys.

    Attributes:
        feature: ``"elu"``, φ(x) = 1 + elu(x); ``"relu"``, φ(x) = relu(x).
        eps, rotation, chunk: as of ``NormAwareLinear``.
    """

    feature: Literal["elu", "relu"] = "elu"
    eps: float = 1e-6
    rotation: Rotation = "input"
    chunk: int = 64

    @classmethod
    def examples(cls) -> "tuple[Linear, ...]":
        return cls(chunk=8), cls(feature="relu", rotation="numerator")

    @property
    def feature_map(self) -> Elementwise:
        return Elementwise(self.feature)
