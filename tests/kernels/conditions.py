"""Positions and masks under which all kernels are tested."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsity_lab.kernels import BiasPosition, Kernel, KernelPosition, RotaryPosition
from sparsity_lab.kernels.parts.profile import PROFILES
from sparsity_lab.settings import kinds

__all__ = ["KERNELS", "cut_tiles", "linear_bias", "make_position", "padding", "rotary"]

KERNELS = [example for kind in kinds("kernel").values() if issubclass(kind, Kernel) for example in kind.examples()]
"""Every example of every registered kernel."""


def cut_tiles(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Tiles of these sizes on the CPU, by the fields of its profile."""
    monkeypatch.setitem(PROFILES, "cpu", replace(PROFILES["cpu"], **sizes))


def rotary(length: int, head_dim: int = 8, dtype: torch.dtype = torch.float64, offset: int = 0) -> RotaryPosition:
    rates = 100.0 ** (-torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    return RotaryPosition((torch.arange(length).double() + offset)[None, :, None] * rates, dtype)


def linear_bias(length: int, num_heads: int = 3, dtype: torch.dtype = torch.float64) -> BiasPosition:
    slopes = torch.tensor([0.5, 0.1, 0.02, 0.3][:num_heads], dtype=dtype)
    # Indices with gaps, of two sequences: a bias must follow indices, not places.
    gaps = torch.stack([torch.arange(length), torch.arange(length) + 7 * (torch.arange(length) > length // 2)])
    return BiasPosition(gaps, slopes)


def make_position(
    kind: str | None, length: int, *, head_dim: int = 8, num_heads: int = 3, dtype: torch.dtype = torch.float64
) -> KernelPosition | None:
    match kind:
        case "rotate":
            return rotary(length, head_dim, dtype)
        case "bias":
            return linear_bias(length, num_heads, dtype)
    return None


def padding(length: int) -> Tensor:
    """(2, T): left padding in the first sequence, so that its first rows see no key; right padding in the second."""
    key_mask = torch.ones(2, length, dtype=torch.bool)
    key_mask[0, : min(3, length)] = False
    key_mask[1, length - length // 4 :] = False
    return key_mask
