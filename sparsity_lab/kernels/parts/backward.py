"""How the backward pass of a mechanism runs."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["own_backward"]

Backward = Callable[..., Any]


def own_backward(backward: Backward) -> Backward:
    """For the ``backward`` of a ``torch.autograd.Function``: differentiable once, and with autocast off, as it was in
    the forward pass. It would make products of float32 rows in half the digits."""

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    once: Backward = once_differentiable(run)
    return once
