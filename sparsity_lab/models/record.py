"""What a decoder's layer did with one batch, for analysis."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from sparsity_lab.kernels import Kernel, KernelPosition

__all__ = ["LayerRecord"]


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """Queries and keys of one layer, and all that is needed to compute its weights tile by tile.

    Attributes:
        q, k: (B, H, T, D) and (B, G, T, D), as projected, before any position.
        rotated_q, rotated_k: the same, rotated where the position rotates, else equal to ``q`` and ``k``.
        kernel, position, params: what the layer ran with.
    """

    q: Float[Tensor, "B H T D"]
    k: Float[Tensor, "B G T D"]
    rotated_q: Float[Tensor, "B H T D"]
    rotated_k: Float[Tensor, "B G T D"]
    kernel: Kernel
    position: KernelPosition | None
    params: nn.Module | None

    def weights(self, start: int, stop: int) -> Float[Tensor, "B H R T"]:
        """(B, H, stop - start, T): the reference attention weights, in use, of query rows ``start .. stop - 1``."""
        return self.kernel.weights(
            self.q[:, :, start:stop],
            self.k,
            query_start=start,
            training=False,
            position=self.position,
            params=self.params,
        )
