"""How a check fails: with the object, what is wrong, and what to do about it."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

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


def without_global_randomness(call: Callable[[], Value], subject: object, what: str) -> Value:
    """What ``call`` returns, which must be the same under every global seed of torch, numpy and ``random``, and leave
    the generators of torch and numpy as they are. (That of ``random`` is moved by some checkers of types.)"""
    remedy = "Take all randomness from what is passed in: words, a stream, a seed or a generator."
    results = []
    for seed in (0, 1):
        with _global_seed(seed):
            before = _global_states()
            results.append(call())
            moved = differs(_global_states(), before)
        require(not moved, subject, f"{what} moves the global generator of torch or numpy", remedy)
    found = f"{what} gives something else the second time, or under another global seed"
    require(not differs(results[1], results[0]), subject, found, remedy)
    return results[0]


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Other global seeds for a while."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _global_states() -> tuple[object, ...]:
    return tuple(np.random.get_state()), torch.get_rng_state()


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
