"""In which precision a mechanism runs, forward and backward."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backward = Callable[..., Any]


def own_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: which dtype a step is computed in a mechanism decides itself, from that of its rows."""
    return torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext()


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for tensors like this."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def own_backward(backward: Backward) -> Backward:
    """For the ``backward`` of a ``torch.autograd.Function``: differentiable once, and with autocast off, as it was in
    the forward pass. It would make products of float32 rows in half the digits."""

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        with own_precision(gradients[0]):
            return backward(ctx, *gradients)

    once: Backward = once_differentiable(run)
    return once
