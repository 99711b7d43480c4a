"""What ``torch.nn.functional.scaled_dot_product_attention`` can do in anyone's model, every registered kernel can.

It is the control: each test runs on it as well, behind the interface of kernels.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from sparsity_lab.kernels import Kernel, Softmax
from sparsity_lab.settings import SettingError

B, H, D = 2, 4, 8

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def params_of(kernel: Kernel, dtype: torch.dtype = torch.float32) -> nn.Module | None:
    params = kernel.build(kernel.own_heads(H, H), D, seed=3)
    return None if params is None else params.to(dtype)


def tolerance_of(kernel: Kernel, dtype: torch.dtype = torch.float32) -> float:
    """Relative to the largest entry; a mechanism that amplifies rounding says by how much."""
    return 1e-10 if dtype == torch.float64 else kernel.rounding * 2e-5


def forms(kernel: Kernel) -> list[tuple[str, torch.dtype]]:
    """Every implementation with a dtype that it runs in."""
    first, *others = kernel.implementations
    return [(first, torch.float64), *((name, torch.float32) for name in others)]


def outcome(call: Callable[..., Tensor], *rows: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradients of all rows."""
    out = call(*rows, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, rows, weight)]


def assert_same(what: str, got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, x, y, factor in zip(("output", *"qkv"), got, expected, (1, 10, 10, 10), strict=True):
        assert_close(f"{what}: {name}", x, y, factor * tolerance)


# --- R new rows on K cached keys, and values of another width


@pytest.mark.parametrize("width", [D, 3, 20])
@pytest.mark.parametrize("implementation", Softmax.implementations)
def test_new_rows_are_those_of_the_lower_right(implementation: str, width: int) -> None:
    """PyTorch's own mask for rows that come after cached keys."""
    (q,) = random_rows(B, H, 5, D, count=1)
    (k,) = random_rows(B, H, 300, D, count=1, seed=1)
    (v,) = random_rows(B, H, 300, width, count=1, seed=2)

    def control(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(5, 300))

    got = outcome(Softmax().attend, q, k, v, query_start=295, implementation=implementation)
    assert_same("lower right", got, outcome(control, q, k, v), 1e-12)


@every_kernel
@pytest.mark.parametrize("width", [D, 3, 12])
def test_new_rows_on_cached_keys(kernel: Kernel, width: int) -> None:
    """The last rows alone on all keys are the last rows of the whole, in outputs and gradients of every form, with
    values of any width."""
    for implementation, dtype in forms(kernel):
        q, k = random_rows(B, H, 30, D, count=2, dtype=dtype)
        (v,) = random_rows(B, H, 30, width, count=1, seed=1, dtype=dtype)
        options: dict[str, Any] = {"implementation": implementation, "params": params_of(kernel, dtype)}
        options["training"] = False
        last = outcome(
            lambda q, k, v, options=options: kernel.attend(q[:, :, 23:], k, v, query_start=23, **options), q, k, v
        )
        whole = outcome(lambda q, k, v, options=options: kernel.attend(q, k, v, **options)[:, :, 23:], q, k, v)
        assert_same(implementation, last, whole, tolerance_of(kernel, dtype))


@every_kernel
def test_rows_without_a_place_are_refused(kernel: Kernel) -> None:
    """PyTorch's causal flag counts from the first key, a cache from the last: neither is guessed."""
    q, k = torch.zeros(B, H, 2, D), torch.zeros(B, H, 6, D)
    with pytest.raises(SettingError, match="^query_start: expected the position of the first of 2 rows") as caught:
        kernel.attend(q, k, k, params=params_of(kernel))
    assert "\n" not in str(caught.value)
