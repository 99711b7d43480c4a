"""What ``check_kernel`` catches: each mutant breaks one property of a sound kernel."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from sparsity_lab.kernels import CachedKernel, Context, Kernel, Softmax, softmax_weights
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


class _Attends(CachedKernel):
    """A sound kernel with a fast form; its mutants see other keys, or other gates."""

    implementations = ("reference", "fast")
    positions = frozenset({"rotate"})

    def _weights(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return softmax_weights(q, k, context.visible(q, k))

    def _fast(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        return (self._weights(q, k, context).to(v.dtype) @ v).to(q.dtype)


@register
class IgnoresDocuments(_Attends):
    def _weights(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return super()._weights(q, k, replace(context, document_ids=None))


@register
class IgnoresDocumentsWhenFast(_Attends):
    def _fast(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        return super()._fast(q, k, v, replace(context, document_ids=None))


@register
class AlwaysCausal(_Attends):
    def _weights(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return super()._weights(q, k, replace(context, causal=True))


@register
class RowsAreTheLast(_Attends):
    def _fast(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        return super()._fast(q, k, v, context.at(k.shape[2] - q.shape[2]))


@register
class AsWideAsKeys(_Attends):
    def _fast(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        out = super()._fast(q, k, v, context)
        return out * (torch.arange(out.shape[-1]) < q.shape[-1])


@register
class AfterBlocksOf64(_Attends):
    def _fast(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        starts = range(0, q.shape[2], 64)
        return torch.cat([super(AfterBlocksOf64, self)._fast(q[:, :, i : i + 64], k, v, context) for i in starts], 2)


@register
class DeadGate(_Attends):
    gates = ("key",)


@register
class GateLearnsNothing(_Attends):
    gates = ("key",)

    def _weights(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return softmax_weights(q, k, context.visible(q, k), logsigmoid(context.gates["key"]).unsqueeze(2))

    def _fast(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        return super()._fast(q, k, v, replace(context, gates={"key": context.gates["key"].detach()}))


class _Sharpened(_Attends):
    """A sound kernel with a parameter that its fast form reads as well."""

    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module:
        scale = nn.Module()
        scale.factor = nn.Parameter(1 + torch.rand((), generator=torch.Generator().manual_seed(seed)))
        return scale

    def _factor(self, context: Context) -> Tensor:
        factor = context.params.factor if context.params is not None else torch.ones(())
        assert isinstance(factor, Tensor)
        return factor

    def _weights(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        return super()._weights(q * self._factor(context).to(q.dtype), k, context)


@register
class OtherGradientOfParameters(_Sharpened):
    def _factor(self, context: Context) -> Tensor:
        factor = super()._factor(context)
        return factor if context.implementation == "reference" else 1.5 * factor - 0.5 * factor.detach()


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
    (IgnoresDocuments(), "the output of documents is off"),
    (IgnoresDocumentsWhenFast(), "'fast', .*the output of documents is off"),
    (AlwaysCausal(), "without causal no row sees a later key"),
    (RowsAreTheLast(), r"the output of rows 11 \.\. 19 alone is off"),
    (AsWideAsKeys(), "the output of values of width 11 is off"),
    (AfterBlocksOf64(), "T=301, .*its output is off"),
    (DeadGate(), "the gate 'key' changes nothing"),
    (GateLearnsNothing(), "its gradient of the gate 'key' is off"),
    (OtherGradientOfParameters(), "'fast', .*its gradient of the parameter 'factor' is off by 0.5"),
    (TwoOfAName(), "its implementations are"),
]


@pytest.mark.parametrize(("kernel", "message"), MUTANTS, ids=[type(kernel).__name__ for kernel, _ in MUTANTS])
def test_mutants_are_caught_and_named(kernel: Kernel, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_kernel(kernel)
