"""Positions as a kernel meets them: a rotation of queries and keys, or a bias on scores.

A kernel position belongs to a *sequence*: it holds the sequence indices of all T positions, generated ones included,
and is asked for rows of them. So a cache remembers only how many tokens it has seen. A cached key keeps its index,
and the new token's index is the next one.

Shapes: B batch (1 where all sequences share their indices), T positions, H heads, R query rows, K keys, D head size.
"""

from abc import ABC
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.settings import SettingError


class KernelPosition(ABC):
    """What a kernel may do with positions: rotate rows, or add a bias to scores. This base does neither.

    >>> issubclass(RotaryPosition, KernelPosition), issubclass(BiasPosition, KernelPosition)
    (True, True)

    Attributes:
        kind: ``"rotate"`` or ``"bias"``; a kernel lists the kinds it takes in ``Kernel.positions``.
        batch_size: 1, or B where each sequence has its own indices.
        length: T, how many positions are covered.
        device: where its rows are; None for a position that works on any.
    """

    kind: ClassVar[str]
    batch_size: int
    length: int
    device: torch.device | None = None

    def check_heads(self, num_heads: int, head_dim: int) -> None:
        """Raise ``SettingError`` at ``position`` if it was made for heads of another number or size."""

    def rotate(self, x: Float[Tensor, "B H R D"], start: int = 0) -> Float[Tensor, "B H R D"]:
        """Rows of queries or keys that sit at positions ``start .. start + R - 1``, rotated, all heads alike: queries
        and keys may come in one piece. Here unchanged."""
        return x

    def bias(self, queries: slice, keys: slice) -> Float[Tensor, "B H R K"] | None:
        """What is added to the scores of these query rows on these keys; here None, nothing."""
        return None

    def bias_at(self, queries: slice, places: Int64[Tensor, "#B K"]) -> Float[Tensor, "B H R K"] | None:
        """``bias`` on keys at other positions in each sequence."""
        bias = self.bias(queries, slice(0, self.length))
        if bias is None:
            return None
        batch_size, (_, num_heads, num_rows, _) = max(len(bias), len(places)), bias.shape
        at = places[:, None, None].expand(batch_size, num_heads, num_rows, -1)
        return bias.expand(batch_size, -1, -1, -1).gather(3, at)


RotaryLayout = Literal["interleaved", "half"]
"""Which coordinates of a head of size D turn together: 2j and 2j + 1, or j and j + D/2."""


def interleaved_order(head_dim: int) -> Int64[Tensor, " D"]:
    """0, D/2, 1, D/2 + 1, ...: rows x in the layout ``"half"`` are ``x[..., interleaved_order(D)]`` in
    ``"interleaved"``. Its ``argsort`` is the way back.

    >>> interleaved_order(6).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return torch.arange(head_dim).view(2, -1).T.flatten()


class RotaryPosition(KernelPosition):
    """Rotary positions: pairs of coordinates of a row at index m are turned by the angles m θ_j.

    A score then depends on indices through their difference only. Norms are kept. The turn is one complex product,
    in float32 at least, and the result has the dtype of what came.

    >>> position = RotaryPosition(torch.arange(4.0)[None, :, None])
    >>> position.rotate(torch.ones(1, 1, 4, 2)).shape
    torch.Size([1, 1, 4, 2])

    Args:
        angles: (B or 1, T, D/2) float64, m θ_j. Float64, because cos and sin of a large angle need its last digits.
        dtype: dtype of the rows that will be rotated; only float64 rows are turned in float64.
        layout: ``"interleaved"`` turns coordinates 2j and 2j + 1, as in the source (arXiv 2104.09864); ``"half"``
            turns j and j + D/2, as weights of Llama and GPT-NeoX want it.
    """

    kind = "rotate"

    def __init__(
        self,
        angles: Float[Tensor, "B T half"],
        dtype: torch.dtype = torch.float32,
        layout: RotaryLayout = "interleaved",
    ) -> None:
        real = torch.float64 if dtype == torch.float64 else torch.float32
        self._begin(torch.stack([angles.cos(), angles.sin()], dim=-1).to(real).unsqueeze(1), layout)

    def _begin(self, cos_sin: Float[Tensor, "#B 1 T half 2"], layout: RotaryLayout) -> None:
        self.layout = layout
        self.batch_size, _, self.length = cos_sin.shape[:3]
        self.device = cos_sin.device
        self._turn = torch.view_as_complex(cos_sin)  # (B, 1, T, D/2), for all heads

    def parts(self) -> tuple[Tensor]:
        """The tensors that ``of_parts`` makes it of."""
        return (torch.view_as_real(self._turn),)

    @classmethod
    def of_parts(
        cls, cos_sin: Float[Tensor, "#B 1 T half 2"], *, layout: RotaryLayout = "interleaved"
    ) -> "RotaryPosition":
        """Of what ``parts`` gave."""
        made = cls.__new__(cls)
        made._begin(cos_sin, layout)
        return made

    def check_heads(self, num_heads: int, head_dim: int) -> None:
        turned = 2 * self._turn.shape[-1]
        if turned != head_dim:
            raise SettingError("position", f"angles for heads of {head_dim} coordinates", f"{turned} coordinates")

    def rotate(self, x: Float[Tensor, "B H R D"], start: int = 0) -> Float[Tensor, "B H R D"]:
        turn = self._turn[:, :, start : start + x.shape[2]]
        rows = x.to(turn.real.dtype)
        if self.layout == "half":
            cos, sin = turn.real, turn.imag
            a, b = rows.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
        if torch.compiler.is_compiling():
            # Compilers fuse real arithmetic; a complex view breaks the graph, and crashed at a second length.
            return _turned(rows, torch.view_as_real(turn)).to(x.dtype)
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        pairs = rows.view(*x.shape[:-1], x.shape[-1] // 2, 2)
        if pairs.storage_offset() % 2 or any(stride % 2 for stride in pairs.stride()[:-1]):
            pairs = pairs.clone(memory_format=torch.contiguous_format)  # a complex view needs even strides
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x.dtype)


def _turned(rows: Float[Tensor, "B H R D"], turn: Float[Tensor, "#B 1 R half 2"]) -> Float[Tensor, "B H R D"]:
    """The same complex product in real numbers."""
    cos, sin = turn.unbind(-1)
    a, b = torch.unflatten(rows, -1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class BiasPosition(KernelPosition):
    """Linear bias by distance: - slope_h |m_query - m_key|, of each head h.

    >>> BiasPosition(torch.arange(3)[None], torch.tensor([0.5, 0.25])).length
    3

    Args:
        indices: (B or 1, T) sequence indices m.
        slopes: (H,) in the dtype the bias shall have, on the same device.

    Raises:
        SettingError: slopes on another device.
    """

    kind = "bias"

    def __init__(self, indices: Int64[Tensor, "B T"], slopes: Float[Tensor, " H"]) -> None:
        self.batch_size, self.length = indices.shape
        self.device = indices.device
        if slopes.device != indices.device:
            raise SettingError("slopes", f"the device of the indices, {indices.device}", slopes.device)
        self._indices = indices
        self._slopes = slopes

    def parts(self) -> tuple[Tensor, Tensor]:
        """The tensors that ``of_parts`` makes it of."""
        return self._indices, self._slopes

    def check_heads(self, num_heads: int, head_dim: int) -> None:
        if len(self._slopes) != num_heads:
            raise SettingError("position", f"slopes of {num_heads} heads", len(self._slopes))

    def bias(self, queries: slice, keys: slice) -> Float[Tensor, "B H R K"]:
        return self._bias(self._indices[:, queries], self._indices[:, keys])

    def bias_at(self, queries: slice, places: Int64[Tensor, "#B K"]) -> Float[Tensor, "B H R K"]:
        batch_size = max(len(places), self.batch_size)
        keys = self._indices.expand(batch_size, -1).gather(1, places.expand(batch_size, -1))
        return self._bias(self._indices[:, queries], keys)

    def _bias(self, rows: Int64[Tensor, "#B R"], keys: Int64[Tensor, "#B K"]) -> Float[Tensor, "B H R K"]:
        distance = (rows[:, :, None] - keys[:, None, :]).abs()
        return -self._slopes[:, None, None] * distance.unsqueeze(1)


class BiasTable(KernelPosition):
    """Any bias, as a table of what is added to each score.

    Args:
        table: (B or 1, H, rows, keys), of all rows and keys from 0 on.
    """

    kind = "bias"

    def __init__(self, table: Float[Tensor, "B H R K"]) -> None:
        self.batch_size, _, self.length, _ = table.shape
        self.device = table.device
        self._table = table

    def bias(self, queries: slice, keys: slice) -> Float[Tensor, "B H R K"]:
        return self._table[:, :, queries, keys]
