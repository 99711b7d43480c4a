"""Weights of a layer, a tile of query rows at a time, so that memory is that of a few rows at any length.

*Shares*. A measure treats a row as a distribution over keys. Rows of softmax, LSSA and LSSAR are one. Those of ReLU
and of sigmoid without normalization do not sum to one, and those of linear attention with rotated numerators may be
negative too. A measure therefore takes the share of absolute weight,

    p_ij = |w_ij| / Σ_j |w_ij|,

which is w itself if w is a distribution. Frames show how far it is from one: ``row_sum`` is Σ_j w_ij, and
``negative_share`` is the share of absolute weight that is negative. A row without any weight has no distribution: it
is left out and counted (``empty_share``).

Shapes: B batch, H heads, R rows of a tile, T keys, of which the first n may be seen by a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, Shown

TILE_WEIGHTS = 2**20
"""Weights of a tile, at most, as long as that allows one row: 4 MiB, and a reference holds some copies of it."""


@dataclass(frozen=True)
class RowTile:
    """The weights of neighboring query rows.

    Attributes:
        start: position of the first row.
        weights: (B, H, R, T) float32 or float64; T ends at the last key that a row of the tile may see.
        counted: (B, R), the rows that are to be measured.
    """

    start: int
    weights: Float[Tensor, "B H R T"]
    counted: Bool[Tensor, "B R"]

    @property
    def rows(self) -> slice:
        """The rows' positions."""
        return slice(self.start, self.start + self.weights.shape[2])

    @cached_property
    def num_keys(self) -> Int64[Tensor, " R"]:
        """n of each row: the keys up to its own position. A window or a selection that a mechanism adds is its own
        doing, and shows in the measures."""
        return torch.arange(self.rows.start, self.rows.stop, device=self.weights.device) + 1

    @cached_property
    def size(self) -> Float[Tensor, "B H R T"]:
        """|w|."""
        return self.weights.abs()

    @cached_property
    def total(self) -> Float[Tensor, "B H R"]:
        """Σ_j |w_ij|."""
        return self.size.sum(-1)

    @cached_property
    def measured(self) -> Bool[Tensor, "B H R"]:
        """Rows that are counted and have any weight."""
        return self.counted[:, None] & (self.total > 0)

    def share(self, weight: Float[Tensor, "B H R"]) -> Float[Tensor, "B H R"]:
        """This part of each row's absolute weight, over the whole; 0 for rows without any."""
        return weight / self.total.masked_fill(self.total == 0, 1.0)

    @property
    def entropy(self) -> Float[Tensor, "B H R"]:
        """H = - Σ_j p_ij ln p_ij in nats; with S = Σ|w| it is ln S - Σ |w| ln|w| / S."""
        moment = torch.xlogy(self.size, self.size).sum(-1)
        log_total = self.total.masked_fill(self.total == 0, 1.0).log()
        return (log_total - self.share(moment)).clamp_min(0.0)


def row_tiles(record: LayerRecord, counted: Bool[Tensor, "B T"] | None = None) -> Iterator[RowTile]:
    """The tiles of a layer's rows in ascending order; only those that hold rows to be measured.

    Args:
        counted: which rows of which sequences are to be measured; None measures all. Padding never is.

    Raises:
        SettingError: a measured row whose weights are not finite.
    """
    batch_size, num_heads, T, _ = record.q.shape
    if counted is None:
        counted = torch.ones(batch_size, T, dtype=torch.bool)
    counted = counted.to(record.q.device)
    if record.key_mask is not None:
        counted = counted & record.key_mask
    most = max(1, TILE_WEIGHTS // (batch_size * num_heads * T))
    for start, stop in _stretches(counted.any(0).nonzero().squeeze(1).tolist(), most):
        with torch.no_grad():
            weights = record.weights(start, stop)[..., :stop]
        tile = RowTile(start, weights, counted[:, start:stop])
        # A row of NaN would pass for one without any weight.
        if not tile.total.masked_select(tile.counted[:, None]).isfinite().all():
            found = Shown(f"NaN or infinity in rows {start} to {stop - 1}")
            raise SettingError("models", "finite attention weights", found)
        yield tile


def _stretches(rows: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Ascending rows as ranges of neighbors, each of at most ``most``."""
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1 or i - first == most:
            yield rows[first], rows[i - 1] + 1
            first = i
