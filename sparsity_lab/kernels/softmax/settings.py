"""The setting of softmax attention."""

from sparsity_lab.kernels.cached import CachedKernel
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.softmax.fused import fused_attention
from sparsity_lab.kernels.softmax.reference import softmax_weights
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

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        return softmax_weights(q, k, *context.visible_and_bias(q, k))

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        return fused_attention(q, k, v, context)
