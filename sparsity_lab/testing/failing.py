"""How a check fails: with the object, what is wrong, and what to do about it."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["differs", "made", "must_raise", "require"]

Value = TypeVar("Value")


def require(holds: bool, subject: object, wrong: str, remedy: str) -> None:
    """Raise ``AssertionError`` unless it holds."""
    if not holds:
        raise AssertionError(f"{subject}: {wrong}. {remedy}")


def made(make: Callable[[], Value], subject: object, what: str, remedy: str) -> Value:
    """What ``make`` returns; a failure that says ``what`` could not be done if it raises."""
    try:
        return make()
    except Exception as error:
        raise AssertionError(f"{subject}: {what}: {type(error).__name__}: {error}. {remedy}") from error


def must_raise(call: Callable[[], object], kind: type[Exception], subject: object, what: str, remedy: str) -> None:
    """Raise ``AssertionError`` unless the call raises an exception of this kind."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(
            f"{subject}: {what} raises {type(error).__name__}, not {kind.__name__} ({error}). {remedy}"
        ) from error
    raise AssertionError(f"{subject}: {what} is accepted, not refused with {kind.__name__}. {remedy}")


def differs(first: Any, second: Any) -> bool:
    """Whether two tensors, arrays, numbers, or tuples of them differ; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype != second.dtype or not torch.equal(first, second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return not np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) != len(second) or any(map(differs, first, second))
    if hasattr(first, "order_pmf"):  # a law of positions, which need not define equality
        return type(first) is not type(second) or differs(first.order_pmf(), second.order_pmf())
    return bool(first != second)
