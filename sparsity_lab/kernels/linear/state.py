"""What linear attention remembers between decoding steps: two sums, whatever the number of tokens."""

import torch

from sparsity_lab.kernels.cache import KernelState

__all__ = ["LinearState"]


class LinearState(KernelState):
    """Sums over the tokens seen, in float32 at least: a sum that every token enters with rounding needs the digits.

    Attributes:
        S: (B, H, F, D): Σ_i φ(k_i) v_iᵀ, of the numerator's features.
        z: (B, H, F): Σ_i φ(k_i), of the denominator's.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        num_features: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(capacity=None)
        wide = torch.promote_types(dtype, torch.float32)
        self.S = torch.zeros(batch_size, num_heads, num_features, head_dim, dtype=wide, device=device)
        self.z = torch.zeros(batch_size, num_heads, num_features, dtype=wide, device=device)
