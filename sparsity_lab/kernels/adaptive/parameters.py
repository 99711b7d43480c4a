"""The trainable weights of the block score."""

import torch
from torch import Tensor, nn

__all__ = ["BlockScore"]


class BlockScore(nn.Module):
    """The weights of variance and box in the block score, for each head of keys.

    Attributes:
        beta: (G, 2), β₁ and β₂.
    """

    def __init__(self, num_heads: int, beta: tuple[float, float]) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([beta] * num_heads))

    def extra_repr(self) -> str:
        return f"num_heads={len(self.beta)}"

    def forward(self) -> Tensor:
        """(G, 2): β."""
        return self.beta
