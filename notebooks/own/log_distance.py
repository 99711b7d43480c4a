"""Your own position scheme: a penalty that grows with the logarithm of the distance."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.kernels import KernelPosition
from sparsity_lab.models import PositionScheme
from sparsity_lab.settings import SettingError, register


@register
class LogDistance(PositionScheme):
    """score_ij - slope log(1 + |m_i - m_j|), the same for all heads.

    Attributes:
        slope: at 1, a key at distance d weighs 1 / (1 + d) of what it would weigh nearby.
    """

    kernel_kind = "bias"  # kernels that take a bias take this scheme
    relative = True  # only differences of indices matter

    slope: float = 1.0

    def check(self) -> None:
        if self.slope <= 0:
            raise SettingError("slope", "a positive number", self.slope)

    def kernel_position(
        self, indices: Int64[Tensor, "B T"], num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> "LogBias":
        return LogBias(indices, self.slope)


class LogBias(KernelPosition):
    """The bias of some rows on some keys, computed when a kernel requests it."""

    kind = "bias"

    def __init__(self, indices: Int64[Tensor, "B T"], slope: float) -> None:
        self.batch_size, self.length = indices.shape
        self.device = indices.device
        self._indices = indices
        self._slope = slope

    def bias(self, queries: slice, keys: slice) -> Float[Tensor, "B H R K"]:
        distance = (self._indices[:, queries, None] - self._indices[:, None, keys]).abs()
        return -self._slope * torch.log1p(distance.float()).unsqueeze(1)
