"""The trainable weights of the block score."""

import torch
from torch import Tensor, nn

from sparsity_lab.kernels.adaptive.scores import ScoreWeights

__all__ = ["BlockScore"]


class BlockScore(nn.Module):
    """The weights of variance, box and residual in the block score, for each head of keys.

    Attributes:
        beta: (G, 2), β₁ and β₂; a buffer where it is not learned.
        query, key: (G, 3D, r), W_q, normal with variance 1 / (3D), and W_k, zero, so that training starts from the
            score without a residual; None without one.
    """

    beta: Tensor

    def __init__(
        self,
        num_heads: int,
        beta: tuple[float, float],
        *,
        learn_beta: bool = True,
        head_dim: int = 0,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        initial = torch.tensor([beta] * num_heads)
        if learn_beta:
            self.beta = nn.Parameter(initial)
        else:
            self.register_buffer("beta", initial, persistent=False)
        self.query: nn.Parameter | None = None
        self.key: nn.Parameter | None = None
        if rank:
            size, generator = (num_heads, 3 * head_dim, rank), torch.Generator().manual_seed(seed)
            self.query = nn.Parameter(torch.randn(size, generator=generator) / size[1] ** 0.5)
            self.key = nn.Parameter(torch.zeros(size))

    def extra_repr(self) -> str:
        return f"num_heads={len(self.beta)}, rank={0 if self.query is None else self.query.shape[-1]}"

    def forward(self) -> ScoreWeights:
        """The weights as the score takes them."""
        return ScoreWeights(self.beta, self.query, self.key)
