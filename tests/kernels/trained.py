"""Parameters as training leaves them, no longer at their start."""

import torch

from sparsity_lab.kernels import AdaptiveSparse, BlockScore

__all__ = ["trained"]


def trained(kernel: AdaptiveSparse, num_heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> BlockScore:
    """The weights of the block score, each moved by a normal step."""
    params, generator = kernel.build(num_heads, head_dim, 0), torch.Generator().manual_seed(7)
    assert params is not None
    with torch.no_grad():
        for parameter in params.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return params.to(dtype)
