"""The power of the second stage: what it may be, and powers of a tile, in place.

Small whole exponents go by multiplication, which is many times faster than ``pow``.
"""

import torch
from torch import Tensor

from sparsity_lab.settings import SettingError

__all__ = ["amplification", "check_power", "power_and_slope"]

_MOST_MULTIPLIED = 64
"""Whole exponents up to here take at most a dozen multiplications."""


def check_power(name: str, p: float | None) -> None:
    """Refuse p < 1, where the slope at the threshold is infinite."""
    if p is not None and p < 1:
        raise SettingError(name, "a number of at least 1", p)


def amplification(p: float) -> float:
    """How many times the power amplifies relative errors of weights, in outputs and gradients."""
    # Below 2 the slope jumps at the threshold, or rises steeply from it.
    return p if p >= 2 else 10.0


def power_and_slope(r: Tensor, p: float, spare: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """r^p and r^(p-1), for r >= 0 and p >= 1; 0^0 is 0, the slope of relu at zero.

    The results lie in r and the two spare tensors, whose contents are lost; the third of them is free.
    """
    if p == 1:
        return r, torch.sign(r, out=spare[0])
    if p == 2:
        return torch.mul(r, r, out=spare[0]), r
    slope = _power(r, p - 1, spare)
    return r.mul_(slope), slope


def _power(r: Tensor, exponent: float, spare: tuple[Tensor, Tensor]) -> Tensor:
    """r^exponent in one of the spare tensors; r is kept. The exponent is positive and not 1."""
    if not exponent.is_integer() or exponent > _MOST_MULTIPLIED:
        return torch.pow(r, exponent, out=spare[0])
    free = list(spare)
    bits, square = int(exponent), r
    product: Tensor | None = None
    while True:
        if bits & 1:
            if product is None:
                product = square
            else:
                product = torch.mul(product, square, out=free.pop() if product is r else product)
        bits >>= 1
        if product is not None and not bits:
            return product
        # r is kept, and a product must not change with the square that it is.
        square = torch.mul(square, square, out=free.pop() if square is r or square is product else square)
