"""Checks of what comes in: each error names the argument, what was expected and what came."""

from typing import NamedTuple

import torch
from torch import Tensor

from sparsity_lab.settings import SettingError

__all__ = ["RowKind", "check_dtype", "check_key_mask", "check_keys", "check_rows", "known_device"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class RowKind(NamedTuple):
    """What kind of rows of keys and values: all but how many."""

    batch_size: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "RowKind":
        """Of (B, H, T, D) rows."""
        batch_size, num_heads, _, head_dim = x.shape
        return cls(batch_size, num_heads, head_dim, x.dtype, x.device)

    def __str__(self) -> str:
        return f"(B, H, D) = {tuple(self[:3])} in {self.dtype} on {self.device}"


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Refuse what is no dtype of rows."""
    if dtype not in _DTYPES:
        raise SettingError(name, "float16, bfloat16, float32 or float64", dtype)


def known_device(name: str, device: torch.device | str) -> torch.device:
    """The device as tensors on it name it, with its index; refuse one that PyTorch does not know or cannot reach."""
    try:
        return torch.empty(0, device=device).device
    # What PyTorch raises for names it does not know, for builds without the device, and for machines without it.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise SettingError(name, "a device that PyTorch has here, such as 'cpu'", device) from error


def check_rows(name: str, x: Tensor) -> None:
    """Refuse what is no (B, H, T, D) of a float dtype with at least one head, position and coordinate."""
    check_dtype(name, x.dtype)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise SettingError(name, "shape (B, H, T, D) with H, T and D at least 1", tuple(x.shape))


def check_keys(name: str, x: Tensor, query_name: str, query: Tensor, num_heads: int, num_keys: int) -> None:
    """Refuse keys or values that do not fit the queries.

    Args:
        num_heads: of keys and values; it divides the number of query heads.
        num_keys: T of keys and values.
    """
    check_rows(name, x)
    batch_size, query_heads, _, head_dim = query.shape
    if query_heads % num_heads:
        raise SettingError(name, f"a number of heads that divides the {query_heads} of {query_name}", num_heads)
    expected = batch_size, num_heads, num_keys, head_dim
    if tuple(x.shape) != expected:
        raise SettingError(name, f"shape {expected}", tuple(x.shape))
    if x.dtype != query.dtype:
        raise SettingError(name, f"the dtype of {query_name}, {query.dtype}", x.dtype)
    if x.device != query.device:
        raise SettingError(name, f"the device of {query_name}, {query.device}", x.device)


def check_key_mask(key_mask: Tensor | None, query: Tensor, length: int) -> None:
    """Refuse a mask that is not (B, T) bool on the device of the queries."""
    if key_mask is None:
        return
    if key_mask.dtype != torch.bool:
        raise SettingError("key_mask", "bool, True where a key may be seen", key_mask.dtype)
    if tuple(key_mask.shape) != (query.shape[0], length):
        raise SettingError("key_mask", f"shape {(query.shape[0], length)}", tuple(key_mask.shape))
    if key_mask.device != query.device:
        raise SettingError("key_mask", f"the device of the queries, {query.device}", key_mask.device)
