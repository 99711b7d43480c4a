"""The run-time type checker of the tests: beartype on every function whose signature names shapes.

Other functions are left alone, so that bad input reaches the library's own checks and their messages.
"""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])


def names_shapes(hint: Any) -> bool:
    """True if a jaxtyping annotation is part of the hint."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(names_shapes(part) for part in get_args(hint))


def check(function: AnyCallable) -> AnyCallable:
    """The function, checked if its signature names shapes."""
    hints = getattr(function, "__annotations__", {}).values()
    return beartype(function) if any(names_shapes(hint) for hint in hints) else function
