"""Mechanisms that remember keys and values: they define the output of some rows on all keys, the rest is here."""

from abc import abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.weighing import WeighingKernel

__all__ = ["CachedKernel"]


class CachedKernel(WeighingKernel):
    """A mechanism whose decoding state is a cache of rotated keys and of values.

    A subclass defines ``_rows`` and ``_row_weights``. Both get rotated queries and keys, and the key mask of all keys
    in the context.
    """

    @abstractmethod
    def _rows(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B G K D"],
        v: Float[Tensor, "B G K D"],
        query_start: int,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        """The output of query rows ``query_start .. query_start + R - 1`` on keys 0 .. K - 1 by
        ``context.implementation``; a row may see keys up to its own. K = query_start + R in decoding and K = R = T
        in ``attend``."""

    def _init_state(
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
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T D"], context: Context
    ) -> Float[Tensor, "B H T D"]:
        return self._rows(context.rotate(q), context.rotate(k), v, 0, context)

    def _extend(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B G R D"],
        v: Float[Tensor, "B G R D"],
        state: KeyValueCache,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        start = state.length
        q, k = context.rotate_both(q, k, start)
        state.append(k, v, context.key_mask)
        context = replace(context, key_mask=state.key_mask)
        return self._rows(q, state.keys, state.values, start, context)
