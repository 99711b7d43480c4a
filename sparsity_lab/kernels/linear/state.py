"""What linear attention remembers between decoding steps: two sums, whatever the number of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.settings import SettingError

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

    def check(self, v: Float[Tensor, "B H R D"], num_features: int) -> None:
        """Refuse values of another batch, heads, head size or dtype than those of the sums, or other features.

        Raises:
            SettingError: at ``state``.
        """
        like = torch.promote_types(v.dtype, torch.float32), (*v.shape[:2], num_features, v.shape[3])
        room = self.S.dtype, tuple(self.S.shape)
        if like != room:
            raise SettingError("state", f"rows of dtype {room[0]} and (B, H, F, D) = {room[1]}", like)
