"""What ``check_kernel`` catches: each mutant breaks one property of a sound kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_lab.kernels import Kernel, Softmax
from sparsity_lab.settings import register
from sparsity_lab.testing import check_kernel


class Unregistered(Softmax):
    pass


@register
class SlightlyOffWhenFast(Softmax):
    def attend(self, *rows: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return super().attend(*rows, **options) * (1 if options.get("implementation") == "reference" else 1.001)


class _OtherGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 1.01 * grad


@register
class OtherGradientWhenFast(Softmax):
    def attend(self, *rows: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        out = super().attend(*rows, **options)
        return out if options.get("implementation") == "reference" else _OtherGradient.apply(out)  # type: ignore[no-any-return]


@register
class IgnoresPaddingWhenFast(Softmax):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        if options.get("implementation") != "reference":
            options["key_mask"] = None
        return super().attend(q, k, v, **options)


@register
class LooksAhead(Softmax):
    def _rows(self, q: Tensor, k: Tensor, v: Tensor, *context: Any) -> Tensor:  # type: ignore[override]
        return super()._rows(q, k, v + v.roll(-1, dims=2), *context)


@register
class SeesOnlyTheFirst(Softmax):
    def _rows(self, q: Tensor, k: Tensor, v: Tensor, *context: Any) -> Tensor:  # type: ignore[override]
        return super()._rows(q * 0, k * 0, torch.where(torch.arange(v.shape[2])[:, None] == 0, v, 0), *context)


@register
class SaysItLeaks(Softmax):
    @property
    def leaks(self) -> bool:
        return True


@register
class OtherWeights(Softmax):
    def weights(self, *arguments: Any, **options: Any) -> Tensor:
        return 0.99 * super().weights(*arguments, **options)


@register
class WeightsFromRowZero(Softmax):
    def weights(self, q: Tensor, k: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return super().weights(q, k, **{**options, "query_start": 0})


@register
class DividesByNothing(Softmax):
    """Rows without keys are 0 / 0."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        out = super().attend(q, k, v, **options)
        return out / out.detach().any(dim=-1, keepdim=True)


@register
class DecodesSomethingElse(Softmax):
    def decode(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return 1.01 * super().decode(q, k, v, **options)


@register
class CountsKeyHeads(Softmax):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return super().attend(q, k, v, **options) * (1.0 if k.shape[1] in (1, q.shape[1]) else 2.0)


class _WithParameters(Softmax):
    """A sound kernel with one parameter, a scale of the output."""

    def _check_call(self, *arguments: Any) -> None:
        pass

    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module:
        scale = nn.Module()
        scale.factor = nn.Parameter(torch.randn((), generator=torch.Generator().manual_seed(seed)))
        return scale


@register
class IgnoresItsSeed(_WithParameters):
    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module:
        return super().build(num_heads, head_dim, int(torch.randint(2**31, ())))


@register
class DeadParameter(_WithParameters):
    pass


@register
class TakesAnyName(Softmax):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        if options.get("implementation") not in self.implementations:
            options["implementation"] = "auto"
        return super().attend(q, k, v, **options)


@register
class TwoOfAName(Softmax):
    implementations = ("reference", "reference")


MUTANTS: list[tuple[Kernel, str]] = [
    (Unregistered(), "is not registered as the kernel 'Softmax'"),
    (SlightlyOffWhenFast(), r"T=1, position=None, no padding, .* its output is off by 0.001 of its size"),
    (OtherGradientWhenFast(), "its gradient of v is off by"),
    (IgnoresPaddingWhenFast(), ", padding, .*: its output (is off|is not finite)"),
    (LooksAhead(), "token 1 changes a row before it"),
    (SeesOnlyTheFirst(), "token 1 does not change its own row|its output is off"),
    (SaysItLeaks(), "`leaks` is True, and later tokens do not change earlier rows"),
    (OtherWeights(), r"`weights\(q, k\) @ v` is off by 0.01"),
    (WeightsFromRowZero(), "the tile of `weights` with query_start=5 is off"),
    (DividesByNothing(), "is not finite"),
    (DecodesSomethingElse(), "and then decoded: its output is off by"),
    (CountsKeyHeads(), "the output of grouped heads is off by"),
    (IgnoresItsSeed(), "`build` gives another 'factor' for the same seed"),
    (DeadParameter(), "the parameter 'factor' gets no finite gradient"),
    (TakesAnyName(), "an unknown implementation is accepted"),
    (TwoOfAName(), "its implementations are"),
]


@pytest.mark.parametrize(("kernel", "message"), MUTANTS, ids=[type(kernel).__name__ for kernel, _ in MUTANTS])
def test_mutants_are_caught_and_named(kernel: Kernel, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_kernel(kernel)
