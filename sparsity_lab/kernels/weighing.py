"""Mechanisms whose rows weigh keys that are known before any score is."""

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.counts import visible_counts
from sparsity_lab.kernels.kernel import Kernel

__all__ = ["WeighingKernel"]


class WeighingKernel(Kernel):
    """A mechanism whose output rows are weights, of keys that their positions tell, times values.

    A subclass defines ``_row_weights``, and ``_key_counts`` if a row does not see all keys up to its own.

    Attributes:
        reweightable: whether ``Reweighted`` takes it as its base.
    """

    reweightable: ClassVar[bool] = True

    @abstractmethod
    def _row_weights(
        self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B G K D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R K"]:
        """The reference weights of rows ``query_start`` and on, in float32 at least; queries and keys come rotated,
        and the context has the key mask of all keys."""

    def _key_counts(
        self, query_start: int, num_rows: int, num_keys: int, context: Context, device: torch.device
    ) -> Int64[Tensor, "#B 1 R"]:
        """How many keys each of these rows sees, n_i; 1 where it sees none."""
        return visible_counts(query_start, num_rows, num_keys, context, device)

    def _weights(
        self, q_rows: Float[Tensor, "B H R D"], k: Float[Tensor, "B G T D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R T"]:
        rotated = context.rotate(q_rows, query_start), context.rotate(k)
        return self._row_weights(*rotated, query_start, context).to(q_rows.dtype)
