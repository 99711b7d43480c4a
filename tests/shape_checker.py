"""The run-time type checker of the tests: beartype on every function whose signature names shapes.

Other functions are left alone, so that bad input reaches the library's own checks and their messages. A check takes
longer than most of what it checks, so a function is checked in its first calls of each test and no more.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

__all__ = ["CHECKED_CALLS", "check", "forget_calls", "install"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

CHECKED_CALLS = 8
"""Of each function in each test."""

_calls: Counter[Any] = Counter()
_jaxtyped = jaxtyping.jaxtyped


def install(packages: Sequence[str]) -> None:
    """Check what is imported from the packages from now on."""
    # The hook writes ``@jaxtyping.jaxtyped(typechecker=...)`` above every function and class.
    jaxtyping.jaxtyped = _checked_at_first
    install_import_hook(packages, "shape_checker.check")


def forget_calls() -> None:
    """Another test begins."""
    _calls.clear()


def names_shapes(hint: Any) -> bool:
    """True if a jaxtyping annotation is part of the hint."""
    if isinstance(hint, str):
        return "[Tensor," in hint
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(names_shapes(part) for part in get_args(hint))


def check(function: Decorated) -> Decorated:
    """The function, checked if its signature names shapes."""
    hints = getattr(function, "__annotations__", {}).values()
    return beartype(function) if any(names_shapes(hint) for hint in hints) else function


def _checked_at_first(*, typechecker: Callable[..., Any]) -> Callable[[Decorated], Decorated]:
    def decorate(function: Decorated) -> Decorated:
        if not any(names_shapes(hint) for hint in getattr(function, "__annotations__", {}).values()):
            return function
        checked: Any = _jaxtyped(function, typechecker=typechecker)
        if isinstance(function, type):
            return checked

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            # Compilers cannot trace what counts.
            if jaxtyping.config.jaxtyping_disable or _calls[function] >= CHECKED_CALLS:
                return function(*args, **kwargs)
            _calls[function] += 1
            return checked(*args, **kwargs)

        return counted

    return decorate
