"""Your own attention mechanism: softmax with scores multiplied by a constant."""

from sparsity_lab.kernels import CachedKernel, Context, Keys, Queries, Weights, softmax_weights
from sparsity_lab.settings import SettingError, register


@register
class SharpSoftmax(CachedKernel):
    """w_ij = softmax_j(c <q_i, k_j> / sqrt(D) + bias_ij).

    Attributes:
        sharpness: c; 1 is plain softmax.
    """

    sharpness: float = 2.0

    def check(self) -> None:
        if self.sharpness <= 0:
            raise SettingError("sharpness", "a positive number", self.sharpness)

    # Queries and keys are already rotated. The context says which keys a row sees, and the bias of their scores.
    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        return softmax_weights(self.sharpness * q, k, *context.visible_and_bias(q, k))
