"""Checks of what comes in: each error names the argument, what was expected and what came."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import SettingError, Shown

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class RowKind(NamedTuple):
    """What kind of rows of keys and values: all but how many.

    >>> k = torch.zeros(1, 2, 5, 8)
    >>> RowKind.of(k, k).head_dim
    8

    Attributes:
        head_dim: D, the width of keys.
        value_dim: E, the width of values.
    """

    batch_size: int
    num_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, k: Tensor, v: Tensor) -> "RowKind":
        """Of keys (B, H, K, D) and values (B, H, K, E)."""
        return cls(k.shape[0], k.shape[1], k.shape[3], v.shape[3], k.dtype, k.device)

    def empty(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values of so many rows, without meaning yet."""
        shape = self.batch_size, self.num_heads, num_rows
        widths = self.head_dim, self.value_dim
        keys, values = (torch.empty(*shape, width, dtype=self.dtype, device=self.device) for width in widths)
        return keys, values

    def __str__(self) -> str:
        values = "" if self.value_dim == self.head_dim else f", values of width {self.value_dim},"
        return f"(B, H, D) = {tuple(self[:3])}{values} in {self.dtype} on {self.device}"


def check_type(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse what is not of this kind; a truth value is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SettingError(name, expected, Shown(f"{value!r:.60}, of type {type(value).__name__}"))


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
    check_type(name, x, Tensor, "a tensor")
    check_dtype(name, x.dtype)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise SettingError(name, "shape (B, H, T, D) with H, T and D at least 1", tuple(x.shape))


def check_keys(name: str, x: Tensor, query_name: str, query: Tensor, expected: tuple[int, int, int]) -> None:
    """Refuse keys or values that do not fit the queries.

    Args:
        expected: their heads, number and width; the heads divide those of the queries.
    """
    check_rows(name, x)
    if query.shape[1] % expected[0]:
        raise SettingError(name, f"a number of heads that divides the {query.shape[1]} of {query_name}", expected[0])
    shape = (query.shape[0], *expected)
    if tuple(x.shape) != shape:
        raise SettingError(name, f"shape {shape}", tuple(x.shape))
    if x.dtype != query.dtype:
        raise SettingError(name, f"the dtype of {query_name}, {query.dtype}", x.dtype)
    if x.device != query.device:
        raise SettingError(name, f"the device of {query_name}, {query.device}", x.device)


def check_query_start(
    query_start: int | None, num_rows: int, num_keys: int, *, causal: bool, documents: bool = False
) -> int:
    """The position of the first query row: 0 where it need not be told.

    Raises:
        SettingError: fewer rows than keys under ``causal`` without it, or rows beyond the keys.
    """
    if query_start is None:
        if (causal or documents) and num_rows != num_keys:
            why = "under causal=True" if causal else "with document_ids"
            expected = f"the position of the first of {num_rows} queries among {num_keys} keys, {why}"
            raise SettingError("query_start", expected, None)
        return 0
    check_type("query_start", query_start, (int, np.integer, torch.SymInt), "a whole number")
    if query_start < 0 or query_start + num_rows > num_keys:
        expected = f"0 .. {num_keys - num_rows} ({num_rows} of {num_keys} rows)"
        raise SettingError("query_start", expected, query_start)
    return query_start


def check_per_key(name: str, x: Tensor | None, dtype: torch.dtype, meaning: str, q: Tensor, num_keys: int) -> None:
    """Refuse what is not one number of this dtype for each key, (B, K), on the device of the queries."""
    if x is None:
        return
    check_type(name, x, Tensor, f"a tensor of {dtype}, or None")
    if x.dtype != dtype:
        raise SettingError(name, meaning, x.dtype)
    if tuple(x.shape) != (q.shape[0], num_keys):
        raise SettingError(name, f"shape {(q.shape[0], num_keys)}", tuple(x.shape))
    if x.device != q.device:
        raise SettingError(name, f"the device of the queries, {q.device}", x.device)


def check_gates(given: Mapping[str, Tensor], wanted: tuple[str, ...], q: Tensor, num_keys: int) -> None:
    """Refuse gates that the kernel does not declare, miss, or do not fit the queries."""
    check_type("gates", given, Mapping, "a mapping from names to logits, or None")
    for name in given:
        if name not in wanted:
            raise SettingError("gates", "a gate that the kernel declares" if wanted else "no gates", name, wanted)
    shape = q.shape[0], q.shape[1], num_keys
    for name in wanted:
        if name not in given:
            raise SettingError("gates", f"{name!r} is missing; it has a logit for each head and key, shape {shape}")
        check_type(f"gates.{name}", given[name], Tensor, "a tensor")
        if tuple(given[name].shape) != shape:
            raise SettingError(f"gates.{name}", f"shape {shape}", tuple(given[name].shape))
        if not given[name].is_floating_point():
            raise SettingError(f"gates.{name}", "logits of a float type", given[name].dtype)
        if given[name].device != q.device:
            raise SettingError(f"gates.{name}", f"the device of the queries, {q.device}", given[name].device)


def check_covers(position: KernelPosition, q: Tensor, num_positions: int) -> None:
    """Refuse a position that does not fit the queries, or covers fewer positions than are needed."""
    if position.length < num_positions:
        raise SettingError("position", f"indices of at least {num_positions} positions", position.length)
    if position.batch_size not in (1, q.shape[0]):
        raise SettingError("position", f"indices of 1 or {q.shape[0]} sequences", position.batch_size)
    if position.device is not None and position.device != q.device:
        raise SettingError("position", f"one on the device of the queries, {q.device}", position.device)
    position.check_heads(q.shape[1], q.shape[3])


def check_device(params: nn.Module | None, device: torch.device) -> None:
    """Refuse parameters on another device than the queries."""
    for tensor in () if params is None else (*params.parameters(), *params.buffers()):
        if tensor.device != device:
            raise SettingError("params", f"parameters on the device of the queries, {device}", tensor.device)
