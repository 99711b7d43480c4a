"""The setting of softmax attention."""

from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.cached import CachedKernel
from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.masking import visible_rows
from sparsity_lab.kernels.softmax.fused import fused_attention
from sparsity_lab.kernels.softmax.reference import softmax_attention, softmax_weights
from sparsity_lab.settings import register

__all__ = ["Softmax"]


@register
class Softmax(CachedKernel):
    """Softmax attention, o_i = Σ_j softmax_j(<q_i, k_j> / sqrt(D) + bias_ij) v_j.

    ``"fused"`` is PyTorch's fused kernel, in tiles of query rows where there is a mask or a bias, and two products
    where a single row is faster so; ``"reference"`` is the dense formula. A position rotates queries and keys, or
    adds its bias to the scores.
    """

    implementations = ("reference", "fused")

    def _rows(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B H K D"],
        v: Float[Tensor, "B H K D"],
        query_start: int,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        if context.implementation == "fused":
            return fused_attention(q, k, v, query_start, context)
        visible, bias = visible_rows(q, k, query_start, context)
        return softmax_attention(q, k, v, visible, bias)

    def _row_weights(
        self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B H K D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R K"]:
        return softmax_weights(q, k, *visible_rows(q, k, query_start, context))
