"""What linear attention remembers between decoding steps: two sums, whatever the number of tokens."""

import torch

from sparsity_lab.kernels.arguments import RowKind
from sparsity_lab.kernels.cache import KernelState

__all__ = ["LinearState"]


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
