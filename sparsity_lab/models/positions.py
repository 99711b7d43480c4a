"""Position schemes: what a decoder makes of sequence indices.

A scheme may add an embedding at the input, give the kernels a position (a rotation or a bias), both, or neither.
The index sampling decides which indices a sequence gets.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsity_lab.kernels import BiasPosition, KernelPosition, RotaryPosition
from sparsity_lab.kernels.position import RotaryLayout
from sparsity_lab.models.initial import EMBEDDING_STD
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, check_least, register


class PositionScheme(Setting, family="position"):
    """What positions do in a decoder; the defaults here do nothing.

    Attributes:
        kernel_kind: kind of the position that kernels get, ``"rotate"`` or ``"bias"``; None if they get none.
        relative: True if only differences of indices matter.
    """

    largest = LARGEST_SIZE

    kernel_kind: ClassVar[str | None] = None
    relative: ClassVar[bool] = False

    def limit(self) -> int | None:
        """The largest index it can serve; None if there is none."""
        return None

    def check_index(self, largest: int, path: str = "position") -> None:
        """Refuse indices up to ``largest`` if they pass the limit.

        Raises:
            SettingError: at ``path``, with the needed index and the largest supported one.
        """
        limit = self.limit()
        if limit is not None and largest > limit:
            raise SettingError(path, f"{self} supports indices up to {limit}, but the run needs index {largest}")

    def check_heads(self, num_heads: int, head_dim: int) -> None:
        """Raise ``SettingError`` if these heads cannot carry the scheme."""

    def build(self, d_model: int) -> nn.Module | None:
        """A module from (B or 1, T) indices to the (B or 1, T, d_model) embedding added at the input; or None."""
        return None

    def kernel_position(
        self, indices: Int64[Tensor, "B T"], num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KernelPosition | None:
        """What kernels get for sequences with these indices, (B, T) or (1, T) for all; or None.

        Args:
            dtype: of queries and keys.
        """
        return None


@register
class NoPE(PositionScheme):
    """No position signal; order enters only through the causal mask.

    >>> Decoder(position=NoPE()).position
    NoPE()
    """

    relative = True


@register
class Sinusoidal(PositionScheme):
    """Fixed embedding at the input: coordinates 2j, 2j + 1 are a sin(m θ_j), a cos(m θ_j).

    The rates are θ_j = base^(-2j / d_model). The amplitude a gives the waves the size of an initial token embedding;
    with a = 1 they would drown the tokens.

    >>> Decoder(position=Sinusoidal()).position
    Sinusoidal(base=10000.0)

    Attributes:
        base: the longest period is about 2π base.
    """

    base: float = 10000.0

    @classmethod
    def examples(cls) -> "tuple[Sinusoidal, ...]":
        return cls(), cls(base=100.0)

    def check(self) -> None:
        _check_above("base", self.base, 1.0)

    def build(self, d_model: int) -> nn.Module:
        return _SinusoidalEmbedding(d_model, self.base)


@register
class Learned(PositionScheme):
    """A learned embedding of each index 0 .. size - 1, added at the input. Longer sequences are refused.

    Attributes:
        size: number of indices.
    """

    size: int = 512

    @classmethod
    def examples(cls) -> "tuple[Learned, ...]":
        return cls(), cls(size=16)

    def check(self) -> None:
        check_least(1, size=self.size)

    def limit(self) -> int:
        return self.size - 1

    def build(self, d_model: int) -> nn.Module:
        return nn.Embedding(self.size, d_model)


@register
class RoPE(PositionScheme):
    """Rotary positions: pairs of coordinates of queries and keys turn by (m / scale) θ_j, θ_j = base^(-2j / D).

    >>> RoPE(base=500_000, scale=2)
    RoPE(base=500000.0, scale=2.0, layout='interleaved')

    Attributes:
        base: the longest period is about 2π base.
        scale: position interpolation; a model trained up to length L runs at N = scale L inside the angles it knows.
        layout: which coordinates are pair j: ``"interleaved"``, 2j and 2j + 1; ``"half"``, j and j + D/2, as in the
            weights of Llama and GPT-NeoX. ``kernels.interleaved_order`` takes rows from one to the other.
    """

    base: float = 10000.0
    scale: float = 1.0
    layout: RotaryLayout = "interleaved"
    kernel_kind = "rotate"
    relative = True

    @classmethod
    def examples(cls) -> "tuple[RoPE, ...]":
        return cls(), cls(base=100.0, scale=4.0), cls(layout="half")

    def check(self) -> None:
        _check_above("base", self.base, 1.0)
        _check_above("scale", self.scale, 0.0)

    def widened(self, factor: float) -> "RoPE":
        """Positions for a context ``factor`` times as long, in the angles of the one before: what was widened already
        is widened once more, by the product.

        Position interpolation (Chen et al., arXiv 2306.15595). The scale is part of the run's config, so it holds in
        training and at inference, for short sequences as for long ones.

        Raises:
            SettingError: a factor that is not above 0.
        """
        _check_above("factor", factor, 0.0)
        return self.replace(scale=self.scale * factor)

    def check_heads(self, num_heads: int, head_dim: int) -> None:
        if head_dim % 2:
            raise SettingError("num_heads", "an even head size d_model / num_heads for RoPE", head_dim)

    def kernel_position(
        self, indices: Int64[Tensor, "B T"], num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> RotaryPosition:
        return RotaryPosition(_angles(indices, head_dim, self.base, self.scale), dtype, self.layout)


@register
class ALiBi(PositionScheme):
    """Attention with linear biases: score_ij - slope_h |m_i - m_j|, with the published geometric slopes.

    >>> Decoder(position=ALiBi()).position
    ALiBi()
    """

    kernel_kind = "bias"
    relative = True

    def kernel_position(
        self, indices: Int64[Tensor, "B T"], num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> BiasPosition:
        # Scores are biased in float32 at least: a distance of some hundreds has no place in bfloat16's eight bits.
        wide = torch.promote_types(dtype, torch.float32)
        return BiasPosition(indices, alibi_slopes(num_heads, indices.device).to(wide))


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Float[Tensor, " H"]:
    """Slopes of ALiBi in float64: 2^(-8 h / H), h = 1 .. H, where H is a power of two.

    Otherwise, as published: the slopes of the next smaller power of two, P, then those of odd h for 2 P heads. They
    are computed where they are needed: a copy would wait for the device.
    """
    power = 1 << (num_heads.bit_length() - 1)
    of_power = 2 * torch.arange(1, power + 1, device=device)
    between = 2 * torch.arange(num_heads - power, device=device) + 1
    return torch.exp2(torch.cat([of_power, between]).double() * (-4 / power))


class _SinusoidalEmbedding(nn.Module):
    def __init__(self, d_model: int, base: float) -> None:
        super().__init__()
        self.d_model = d_model
        self.base = base

    def forward(self, indices: Int64[Tensor, "B T"]) -> Float[Tensor, "B T d_model"]:
        angles = _angles(indices, self.d_model + self.d_model % 2, self.base)
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return math.sqrt(2) * EMBEDDING_STD * waves[..., : self.d_model]


def _angles(indices: Int64[Tensor, "B T"], dim: int, base: float, scale: float = 1.0) -> Float[Tensor, "B T half"]:
    """(B, T, dim / 2) float64: (m / scale) base^(-2j / dim)."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=indices.device) / dim
    return (indices.double() / scale).unsqueeze(-1) * torch.exp(-math.log(base) * exponents)


def _check_above(path: str, value: float, bound: float) -> None:
    if not value > bound:
        raise SettingError(path, f"more than {bound:g}", value)
