"""The setting of softmax attention."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.kernel import Context, Kernel
from sparsity_lab.kernels.masking import visible_keys
from sparsity_lab.kernels.softmax.fused import fused_attention, fused_rows
from sparsity_lab.kernels.softmax.reference import softmax_attention, softmax_weights
from sparsity_lab.settings import register

__all__ = ["Softmax"]


@register
class Softmax(Kernel):
    """Softmax attention, o_i = Σ_j softmax_j(<q_i, k_j> / sqrt(D) + bias_ij) v_j.

    ``"fused"`` is PyTorch's fused kernel, in tiles of query rows where there is a mask or a bias; ``"reference"`` is
    the dense formula. A position rotates queries and keys, or adds its bias to the scores.
    """

    implementations = ("reference", "fused")

    def init_state(
        self,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> KeyValueCache:
        return KeyValueCache(batch_size, num_heads, head_dim, capacity, dtype=dtype, device=device)

    def _attend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], context: Context
    ) -> Float[Tensor, "B H T D"]:
        return _rotated_attention(context.rotate(q), context.rotate(k), v, context)

    def _weights(
        self, q_rows: Float[Tensor, "B H R D"], k: Float[Tensor, "B H T D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R T"]:
        rows = slice(query_start, query_start + q_rows.shape[2])
        visible, bias = _conditions(rows, k.shape[2], context, q_rows.device)
        weights = softmax_weights(context.rotate(q_rows, query_start), context.rotate(k), visible, bias)
        return weights.to(q_rows.dtype)

    def _prefill(
        self,
        q: Float[Tensor, "B H T D"],
        k: Float[Tensor, "B H T D"],
        v: Float[Tensor, "B H T D"],
        state: KeyValueCache,
        context: Context,
    ) -> Float[Tensor, "B H T D"]:
        k = context.rotate(k)
        state.append(k, v, context.key_mask)
        return _rotated_attention(context.rotate(q), k, v, context)

    def _decode(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"],
        v: Float[Tensor, "B H 1 D"],
        state: KeyValueCache,
        context: Context,
    ) -> Float[Tensor, "B H 1 D"]:
        start = state.length
        state.append(context.rotate(k, start), v)
        context = replace(context, key_mask=state.key_mask)
        q = context.rotate(q, start)
        if context.implementation == "fused":
            return fused_rows(q, state.keys, state.values, start, context)
        visible, bias = _conditions(slice(start, start + 1), start + 1, context, q.device)
        return softmax_attention(q, state.keys, state.values, visible, bias)


def _rotated_attention(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], context: Context
) -> Float[Tensor, "B H T D"]:
    if context.implementation == "fused":
        return fused_attention(q, k, v, context)
    T = q.shape[2]
    return softmax_attention(q, k, v, *_conditions(slice(0, T), T, context, q.device))


def _conditions(rows: slice, num_keys: int, context: Context, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Visible keys and bias of these query rows."""
    num_rows = rows.stop - rows.start
    visible = visible_keys(
        rows.start, num_rows, num_keys, causal=context.causal, key_mask=context.key_mask, device=device
    )
    return visible, context.bias(rows, slice(0, num_keys))
