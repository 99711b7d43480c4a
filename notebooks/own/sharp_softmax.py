"""An attention mechanism of one's own: softmax whose scores are multiplied by a constant."""

from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels import CachedKernel, Context
from sparsity_lab.kernels.masking import visible_rows
from sparsity_lab.kernels.softmax.reference import softmax_attention, softmax_weights
from sparsity_lab.settings import SettingError, register


@register
class SharpSoftmax(CachedKernel):
    """w_ij = softmax_j(c <q_i, k_j> / sqrt(D) + bias_ij).

    Attributes:
        sharpness: c; 1 is plain softmax.
    """

    implementations = ("reference",)  # the first is the dense reference; a fast form would come after it

    sharpness: float = 2.0

    def check(self) -> None:
        if self.sharpness <= 0:
            raise SettingError("sharpness", "a positive number", self.sharpness)

    # Queries and keys come rotated; rows are `query_start` and on. The cache for decoding comes with `CachedKernel`.
    def _rows(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B H K D"],
        v: Float[Tensor, "B H K D"],
        query_start: int,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        return softmax_attention(self.sharpness * q, k, v, *visible_rows(q, k, query_start, context))

    def _row_weights(
        self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B H K D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R K"]:
        return softmax_weights(self.sharpness * q, k, *visible_rows(q, k, query_start, context))
