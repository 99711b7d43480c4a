"""What ``check_position`` catches: each mutant breaks one property of a sound scheme."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_lab.kernels import BiasPosition, KernelPosition, RotaryPosition
from sparsity_lab.models import ALiBi, Learned, NoPE, PositionScheme, RoPE
from sparsity_lab.settings import register
from sparsity_lab.testing import check_position


class Wrapped(KernelPosition):
    """A sound position, for the mutants to break."""

    def __init__(self, sound: KernelPosition) -> None:
        self.sound = sound
        self.kind = sound.kind  # type: ignore[misc]
        self.batch_size, self.length = sound.batch_size, sound.length

    def rotate(self, x: Tensor, start: int = 0) -> Tensor:
        return self.sound.rotate(x, start)

    def bias(self, queries: slice, keys: slice) -> Tensor | None:
        return self.sound.bias(queries, keys)


class Rotation(RoPE):
    """RoPE whose position is ``wrapper`` around the sound one."""

    wrapper: type[Wrapped]

    def kernel_position(self, indices: Tensor, *of: object) -> RotaryPosition:  # type: ignore[override]
        return type(self).wrapper(super().kernel_position(indices, *of))  # type: ignore[arg-type,return-value]


class Bias(ALiBi):
    wrapper: type[Wrapped]

    def kernel_position(self, indices: Tensor, *of: object) -> BiasPosition:  # type: ignore[override]
        return type(self).wrapper(super().kernel_position(indices, *of))  # type: ignore[arg-type,return-value]


@register
class Stretching(Rotation):
    class wrapper(Wrapped):  # noqa: N801
        def rotate(self, x: Tensor, start: int = 0) -> Tensor:
            return 1.1 * super().rotate(x, start)


@register
class ForgetsItsStart(Rotation):
    class wrapper(Wrapped):  # noqa: N801
        def rotate(self, x: Tensor, start: int = 0) -> Tensor:
            return super().rotate(x, 0)


@register
class InPlace(Rotation):
    class wrapper(Wrapped):  # noqa: N801
        def rotate(self, x: Tensor, start: int = 0) -> Tensor:
            return x.copy_(super().rotate(x, start))


@register
class Widens(Rotation):
    class wrapper(Wrapped):  # noqa: N801
        def rotate(self, x: Tensor, start: int = 0) -> Tensor:
            return super().rotate(x.double(), start).double()


@register
class Uncovered(Rotation):
    class wrapper(Wrapped):  # noqa: N801
        def __init__(self, sound: KernelPosition) -> None:
            super().__init__(sound)
            self.length += 1


@register
class OfAnotherKind(ALiBi):
    kernel_kind = "rotate"


@register
class OfNoKind(NoPE):
    kernel_kind = "both"


@register
class IgnoresItsTile(Bias):
    class wrapper(Wrapped):  # noqa: N801
        def bias(self, queries: slice, keys: slice) -> Tensor | None:
            return super().bias(queries, slice(0, keys.stop - keys.start))


@register
class HidesKeys(Bias):
    class wrapper(Wrapped):  # noqa: N801
        def bias(self, queries: slice, keys: slice) -> Tensor | None:
            whole = super().bias(queries, keys)
            return None if whole is None else whole.masked_fill(whole < -5, -torch.inf)


@register
class Flat(Bias):
    class wrapper(Wrapped):  # noqa: N801
        def bias(self, queries: slice, keys: slice) -> Tensor | None:
            whole = super().bias(queries, keys)
            return None if whole is None else whole[0]


class _ByPlace(nn.Embedding):
    def forward(self, indices: Tensor) -> Tensor:
        return super().forward(indices) + torch.arange(indices.shape[1])[:, None]


@register
class EmbedsPlaces(Learned):
    def build(self, d_model: int) -> nn.Module:
        return _ByPlace(self.size, d_model)


class _Random(nn.Embedding):
    def forward(self, indices: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(indices), 0.5)


@register
class DrawsAtRandom(Learned):
    def build(self, d_model: int) -> nn.Module:
        return _Random(self.size, d_model)


@register
class Unlimited(Learned):
    def check_index(self, largest: int, path: str = "position") -> None:
        pass


@register
class NotRelative(Learned):
    relative = True


@register
class LooksAhead(Rotation):
    """The sign of all rows is that of the last."""

    class wrapper(Wrapped):  # noqa: N801
        def rotate(self, x: Tensor, start: int = 0) -> Tensor:
            return super().rotate(x, start) * x[:, :, -1:, :1].sign()


@register
class MixesSequences(Rotation):
    """The sign of all rows is that of the first sequence's first."""

    class wrapper(Wrapped):  # noqa: N801
        def rotate(self, x: Tensor, start: int = 0) -> Tensor:
            return super().rotate(x, start) * (x[:1, :, :1, :1].sign() if start == 0 else 1)


@register
class IgnoresIndices(RoPE):
    def kernel_position(self, indices: Tensor, *of: Any) -> RotaryPosition:
        return super().kernel_position(torch.arange(indices.shape[1]).expand_as(indices), *of)


@register
class OneIndex(RoPE):
    def kernel_position(self, indices: Tensor, *of: Any) -> RotaryPosition:
        return super().kernel_position(0 * indices, *of)


@register
class OfTheFirstSequence(ALiBi):
    def kernel_position(self, indices: Tensor, *of: Any) -> BiasPosition:
        return super().kernel_position(indices[:1].expand_as(indices), *of)


@register
class ChangesIndices(ALiBi):
    """From the first index on, in place."""

    def kernel_position(self, indices: Tensor, *of: Any) -> BiasPosition:
        indices -= indices[:, :1].clone()
        return super().kernel_position(indices, *of)


@register
class Jitters(ALiBi):
    def kernel_position(self, indices: Tensor, *of: Any) -> BiasPosition:
        return super().kernel_position(indices + torch.randint(9, indices.shape), *of)


@register
class SeededGlobally(RoPE):
    def kernel_position(self, indices: Tensor, *of: Any) -> RotaryPosition:
        return super().kernel_position(indices * (1 + torch.initial_seed() % 7), *of)


class _ChangesIndices(nn.Embedding):
    def forward(self, indices: Tensor) -> Tensor:
        return super().forward(indices.clamp_(max=10))


@register
class EmbedsAndChanges(Learned):
    def build(self, d_model: int) -> nn.Module:
        return _ChangesIndices(self.size, d_model)


@register
class OneEmbedding(Learned):
    def build(self, d_model: int) -> nn.Module:
        module = super().build(d_model)
        nn.init.ones_(module.weight)  # type: ignore[arg-type]
        return module


@register
class ShortByOne(Learned):
    def build(self, d_model: int) -> nn.Module:
        return nn.Embedding(self.size - 1, d_model)


@register
class SaysNoLimit(Learned):
    def limit(self) -> None:  # type: ignore[override]
        return None


@register
class IndexErrorBeyond(Learned):
    def check_index(self, largest: int, path: str = "position") -> None:
        if largest >= self.size:
            raise IndexError(largest)


MUTANTS: list[tuple[PositionScheme, str]] = [
    (Stretching(), "rotate changes norms by a factor of up to 1 ± 0.1"),
    (ForgetsItsStart(), "rows 5 and on, rotated with start=5"),
    (InPlace(), "rotate changes the rows it is given"),
    (Widens(), "into torch.float64 of shape"),
    (Uncovered(), r"\(batch_size, length\) = \(2, 13\)"),
    (OfAnotherKind(), "kernel_kind is 'rotate', and kernel_position gives 'bias'"),
    (OfNoKind(), "its kernel_kind is 'both'"),
    (IgnoresItsTile(), "the bias of rows 3 .. 6 on keys 1 .. 5"),
    (HidesKeys(), "the bias on a visible key is not finite"),
    (Flat(), r"has shape \(4, 12, 12\)"),
    (EmbedsPlaces(), "an index has another embedding at another place"),
    (DrawsAtRandom(), "its embedding moves the global generator"),
    (Unlimited(), "index 512, beyond its limit, is accepted"),
    (LooksAhead(), "in a decoder, the last token changes earlier outputs by"),
    (MixesSequences(), "a sequence alone differs from the same in a batch|rotated with start=5"),
    (IgnoresIndices(), "what its position does at an index depends on more than the index"),
    (OneIndex(), "its position does the same at all indices"),
    (OfTheFirstSequence(), "what its position does at an index depends on more than the index"),
    (ChangesIndices(), "its position changes the indices it is given"),
    (Jitters(), "its position moves the global generator of torch"),
    (SeededGlobally(), "its position gives something else .* under another global seed"),
    (EmbedsAndChanges(), "its embedding changes the indices it is given"),
    (OneEmbedding(), "all indices have the same embedding"),
    (ShortByOne(), "its embedding fails: IndexError"),
    (SaysNoLimit(), "its embedding fails: IndexError.*or say the largest one in `limit"),
    (IndexErrorBeyond(), "beyond its limit, raises IndexError, not SettingError"),
    (NotRelative(), "it says it is relative, and indices moved by 500 change outputs"),
]


@pytest.mark.parametrize(("scheme", "message"), MUTANTS, ids=[type(scheme).__name__ for scheme, _ in MUTANTS])
def test_mutants_are_caught_and_named(scheme: PositionScheme, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_position(scheme)
