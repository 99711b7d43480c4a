"""Softmax attention: w_ij = exp(s_ij) / Σ_j' exp(s_ij') over the keys that row i sees, s_ij = <q_i, k_j> / sqrt(D) +
bias_ij.

The formula is dense, in float32 at least. The fast form is PyTorch's fused kernel, in memory linear in T. Without
mask and bias it is one call. With either, the fused kernel needs an (R, K) mask. So rows are processed in tiles,
whose masks are made on demand and made again in the backward pass instead of being stored. A single row, as in
decoding, is two products where that is faster.
"""

import math
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import CachedKernel
from sparsity_lab.kernels.parts.fused import masked_attention, scaled_dot_product
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.settings import register


def softmax_weights(
    q: Queries, k: Keys, visible: Bool[Tensor, "#B 1 R K"], bias: Float[Tensor, "#B #H #R K"] | None = None
) -> Weights:
    """(B, H, R, K) weights, float32 or float64: rows sum to one, or to zero where no key is seen.

    >>> q = torch.zeros(1, 1, 2, 4)
    >>> softmax_weights(q, q, visible_keys(0, 2, 2, causal=True)).tolist()
    [[[[1.0, 0.0], [0.5, 0.5]]]]

    Args:
        bias: of the scores; with one row for all, as a gate of each key gives it.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    # A row of nothing but -inf would give NaN, also as a gradient: it keeps its scores, and its weights are cleared.
    some = visible.any(-1, keepdim=True)
    weights = scores.masked_fill(some & ~visible, -math.inf).softmax(-1)
    return weights.masked_fill(~visible, 0.0)


def fused_attention(q: Queries, k: Keys, v: Values, context: Context, *, factor: float = 1.0) -> Outputs:
    """(B, H, R, E) output; queries and keys come rotated.

    Args:
        factor: of the scores, without their bias.
    """
    scale = factor / math.sqrt(q.shape[-1])
    num_rows, num_keys, query_start = q.shape[2], k.shape[2], context.query_start
    last_row = num_rows == 1 and query_start == num_keys - 1
    if last_row and context.document_ids is None and _by_products(q) and not torch.is_grad_enabled():
        return _last_row(q, k, v, context, scale)
    if not context.hides and not context.has_bias:
        # PyTorch's causal flag counts from the first key, so it fits whole sequences; one last row sees all. It must
        # not hang on a size, which a compiler keeps as a symbol.
        if num_rows == num_keys:
            return scaled_dot_product(q, k, v, is_causal=context.causal, scale=scale)
        if last_row or not context.causal:
            return scaled_dot_product(q, k, v, scale=scale)
    profile = profile_of(q.device)
    size = profile.rows(profile.softmax_rows, math.prod(q.shape[:2]) * num_keys * 4)
    if num_rows <= size:
        return _masked_rows(q, k, v, context, scale)
    tiles = []
    for first in range(0, num_rows, size):
        start, stop = query_start + first, query_start + min(first + size, num_rows)
        last = stop if context.causal else num_keys
        rows = partial(_masked_rows, context=context.at(start), scale=scale)
        tile = q[:, :, first : first + size], k[:, :, :last], v[:, :, :last]
        # Nothing random runs inside, so the global generator is left alone.
        tiles.append(checkpoint(rows, *tile, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(tiles, dim=2)


def is_one_call(q: Queries, k: Keys, context: Context) -> bool:
    """Whether ``fused_attention`` is one call of PyTorch's kernel."""
    plain = context.implementation == "fused" and not context.hides and not context.has_bias
    return plain and q.shape[2] > 1 and (q.shape[2] == k.shape[2] or not context.causal)


def _by_products(q: Float[Tensor, "B H 1 D"]) -> bool:
    """Whether one row is faster as two products: the fused kernel works in blocks of rows. On a CPU products of half
    precision are slow, and less exact."""
    return q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)


def _last_row(q: Queries, k: Keys, v: Values, context: Context, scale: float) -> Outputs:
    """(B, H, 1, E): the last row, on all keys."""
    scores, bias = q * scale @ k.mT, context.bias(slice(k.shape[2] - 1, k.shape[2]), slice(0, k.shape[2]))
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if context.key_mask is None:
        return scores.softmax(-1) @ v
    unseen = ~context.key_mask[:, None, None]
    # A row that sees nothing gives NaN, all of which is cleared.
    return scores.masked_fill(unseen, -math.inf).softmax(-1).masked_fill(unseen, 0.0) @ v


def _masked_rows(q: Queries, k: Keys, v: Values, context: Context, scale: float) -> Outputs:
    """(B, H, R, E): rows on the first K keys, under an explicit mask."""
    padded = context.key_mask is not None
    return masked_attention(q, k, v, *context.visible_and_bias(q, k), padded=padded, scale=scale)


@register
class Softmax(CachedKernel):
    """Softmax attention, o_i = Σ_j softmax_j(<q_i, k_j> / sqrt(D) + bias_ij) v_j.

    ``"fused"`` is PyTorch's fused kernel, in tiles of query rows if there is a mask or a bias. A single row uses two
    products where that is faster. ``"reference"`` is the dense formula. A position rotates queries and keys, or adds
    its bias to the scores.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> weights = Softmax().weights(q, k)
    >>> weights.sum(-1).allclose(torch.ones(())), bool(weights[0, 0, 0, 1] == 0)
    (True, True)
    """

    implementations = ("reference", "fused")

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        return softmax_weights(q, k, *context.visible_and_bias(q, k))

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        return fused_attention(q, k, v, context)

    def _traceable(self, q: Queries, k: Keys, context: Context) -> bool:
        return is_one_call(q, k, context)
