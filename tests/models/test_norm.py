"""The decoder's norm: PyTorch's to the bit, with gradients of its own on a CPU."""

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sparsity_lab.models.norm import RMSNorm, _RMSNorm

EPS = 1e-3


def norms(width: int, dtype: torch.dtype) -> tuple[RMSNorm, nn.RMSNorm]:
    """This one and PyTorch's, with the same weights."""
    own, other = RMSNorm(width, eps=EPS).to(dtype), nn.RMSNorm(width, eps=EPS).to(dtype)
    for norm in (own, other):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(3))
    return own, other


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 5, 16), (7, 64), (2, 65, 128), (0, 4, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_to_the_bit_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    own, other = norms(shape[-1], dtype)
    x, g = rows(*shape, dtype=dtype).requires_grad_(), rows(*shape, dtype=dtype, seed=1)
    got, expected = own(x), other(x)
    assert "_RMSNorm" in type(got.grad_fn).__name__
    assert torch.equal(got, expected)
    of_own = torch.autograd.grad(got, (x, own.weight), g)
    of_other = torch.autograd.grad(expected, (x, other.weight), g)
    for name, a, b in zip(("x", "weight"), of_own, of_other, strict=True):
        if b.numel():
            assert_close(f"gradient of {name}", a, b, 1e-5 if dtype == torch.float32 else 1e-13)


def test_gradients_by_finite_differences_once_and_twice() -> None:
    x, weight = (rows(*shape, dtype=torch.float64).requires_grad_() for shape in ((3, 4, 5), (5,)))
    assert torch.autograd.gradcheck(lambda *args: _RMSNorm.apply(*args, EPS), (x, weight))
    assert torch.autograd.gradgradcheck(lambda *args: _RMSNorm.apply(*args, EPS), (x, weight))
    # A weight that is not trained, as beside adapters.
    assert torch.autograd.gradcheck(lambda x: _RMSNorm.apply(x, weight.detach(), EPS), (x,))
    assert torch.autograd.gradgradcheck(lambda x: _RMSNorm.apply(x, weight.detach(), EPS), (x,))


def test_strided_rows() -> None:
    """Rows that do not lie side by side, and a gradient that is one number for all."""
    own, other = norms(6, torch.float32)
    x = rows(4, 6, 5).transpose(1, 2).requires_grad_()
    (got,), (expected,) = (torch.autograd.grad(norm(x).sum(), x) for norm in (own, other))
    assert_close("gradient", got, expected, 1e-5)


def test_others_look_at_it_as_at_pytorchs() -> None:
    """torch.func, half precision, autocast and the meta device."""
    own, other = norms(8, torch.float32)
    x = rows(3, 8)
    for norm in (own, other):
        weights = dict(norm.named_parameters())

        def loss(weights: dict[str, Tensor], x: Tensor, norm: nn.Module = norm) -> Tensor:
            out: Tensor = functional_call(norm, weights, (x,)).square().sum()
            return out

        found = vmap(grad(loss), in_dims=(None, 0))(weights, x)["weight"]
        torch.testing.assert_close(found, 2 * other(x) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS))
    half = rows(3, 8).bfloat16().requires_grad_()
    assert torch.equal(own.bfloat16()(half), other.bfloat16()(half))
    own, other = norms(8, torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (got,), (expected,) = (torch.autograd.grad(norm(x).sum(), x) for norm in (own, other))
    assert_close("under autocast", got, expected, 1e-5)
    assert own.to("meta")(torch.empty(3, 8, device="meta", requires_grad=True)).shape == (3, 8)
