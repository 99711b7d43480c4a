"""Entropy of attention rows: how widely a head looks, and how that moves with length.

With p the shares of a row (``tiles``) over the n keys up to its own position,

    H = - Σ_j p_j ln p_j  (nats),      H / ln n,      exp(H) / n.

H / ln n is 1 for uniform attention and 0 for a single key; exp(H) / n, the *effective support*, is the share of keys
that are really looked at. A mechanism keeps its *entropy invariant* if H stays while n grows; attention that dilutes
keeps H / ln n instead. Source: the length-scaled mechanisms of "Softplus Attention with Re-weighting", arXiv
2501.13428, and Chiang & Cholak 2022, which it builds on.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes

from sparsity_lab.analysis.attention.measure import AttentionMeasurement, of_layer, plot_lines
from sparsity_lab.analysis.attention.subjects import Models, Rows, Sequences, measured_layers, subjects_of
from sparsity_lab.analysis.attention.tiles import RowTile, row_tiles
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.generators import Batch, Task
from sparsity_lab.models.record import LayerRecord

_MEASURED = ("entropy", "normalized_entropy", "effective_support", "row_sum", "negative_share")


@dataclass(frozen=True, repr=False)
class AttentionEntropy(AttentionMeasurement):
    """Entropy by model, length, layer, head and row. Made by ``attention_entropy``.

    The frame has one row per model, length, layer, head and position; means over sequences. Columns: ``arm`` (model),
    ``length``, ``layer``, ``head``, ``row`` (position of the query, from 0), ``keys`` (n, the keys up to it) and
    ``sequences`` (that count here). ``entropy`` is in nats, ``normalized_entropy`` is H / ln n (null for n = 1),
    ``effective_support`` is exp(H) / n, and ``row_sum`` is Σ w. ``negative_share`` is the negative share of |w|;
    above 0, the entropy is that of |w|. ``empty_share`` is the share of sequences whose row has no weight at all.

    >>> found = attention_entropy(model, task, [8], sequences=4)
    >>> found.frame()["layer"].unique().to_list()
    [0]

    Attributes:
        trained: the trained lengths, None if no model tells.
        rows: which rows were measured, ``"all"`` or ``"scored"``.
    """

    rows: Rows

    def summary(self) -> pl.DataFrame:
        """One row per model, length, layer and head: the same columns, averaged over positions with n >= 2."""
        weight = pl.col("sequences")
        means = [((pl.col(name) * weight).sum() / weight.sum()).fill_nan(None).alias(name) for name in _MEASURED]
        keys = [name for name in ("arm", "length", "layer", "module", "head") if name in self._frame.columns]
        rows = self._frame.filter(pl.col("keys") > 1)
        return rows.group_by(keys, maintain_order=True).agg(*means, pl.col("empty_share").mean())

    def _drawn(self) -> tuple[pl.DataFrame, str]:
        """What the figure shows, and against what."""
        several = self._frame["length"].n_unique() > 1
        return (self.summary(), "length") if several else (_by_keys(self._frame), "keys")

    @property
    def finding(self) -> str:
        """From where to where the normalized entropy goes."""
        return change_finding(*self._drawn(), "normalized_entropy", "normalized entropy")

    def plot(self, ax: Axes | None = None, *, measure: str = "normalized_entropy", layer: int | None = None) -> Axes:
        """Draw ``measure`` against length; or, if there is one length only, against n. Returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            measure: ``"entropy"``, ``"normalized_entropy"`` or ``"effective_support"``.
            layer: draw one layer only.
        """
        labels = {
            "entropy": "entropy H (nats)",
            "normalized_entropy": "normalized entropy H / ln n\n(0 = one key, 1 = uniform)",
            "effective_support": "effective support exp(H) / n\n(share of visible keys)",
        }
        frame, x = self._drawn()

        def add(ax: Axes, drawn: pl.DataFrame) -> None:
            if x == "length":
                words = f"length (tokens; {_ROWS[self.rows]}; log scale)"
                length_axis(ax, drawn["length"].unique().to_list(), self.trained, words)
            else:
                most = max(2, *self._frame["keys"])
                length_axis(ax, [2**i for i in range(1, most.bit_length())], None, "visible keys n (log scale)")

        return plot_lines(ax, of_layer(frame, layer), x, measure, labels[measure], add)


_ROWS = {"all": "mean over rows", "scored": "scored rows"}


def attention_entropy(
    models: Models,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    rows: Rows = "all",
    positions: bool = True,
    sequences: int = 64,
    seed: int = 0,
) -> AttentionEntropy:
    """The entropy of attention rows, tile by tile, never a (T, T) map.

    >>> attention_entropy(model, task, [8], rows="scored", sequences=4).frame()["keys"].unique().to_list()
    [10]

    Args:
        models, data: see ``subjects``.
        lengths: lengths of the task; by default those that a run was evaluated at.
        rows: all, or only those whose target is scored.
        positions: False measures the weights that the same queries and keys would have without a rotation or a bias.
            Linear attention that rotates its numerators only is usually analyzed so, since its weights may be
            negative with the rotation.
        sequences: of each length.
        seed: of the sequences.

    Raises:
        SettingError: names the argument, what was expected and what came.
    """
    subjects = subjects_of(models)

    def measure(piece: Sequences, record: LayerRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _sums(record if positions else replace(record, position=None), piece.counted(rows))

    frames = [
        _frame(place, *(np.sum(part, axis=0) for part in zip(*parts, strict=True)))
        for place, parts in measured_layers(subjects, data, lengths, sequences, seed, measure)
    ]
    return AttentionEntropy(subjects.trained, subjects.with_modules(pl.concat(frames)), rows)


def _sums(record: LayerRecord, counted: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over sequences for each head and position of a layer. Then, for each position, how many rows had weight
    (H, T), and how many were counted (T,)."""
    _, num_heads, T, _ = record.q.shape
    sums = np.zeros((len(_MEASURED), num_heads, T))
    measured, number = np.zeros((num_heads, T), dtype=np.int64), np.zeros(T, dtype=np.int64)
    for tile in row_tiles(record, counted):
        sums[:, :, tile.rows] = torch.where(tile.measured, _statistics(tile), 0.0).double().sum(1).cpu().numpy()
        measured[:, tile.rows] = tile.measured.sum(0).cpu().numpy()
        number[tile.rows] = tile.counted.sum(0).cpu().numpy()
    return sums, measured, number


def _frame(place: dict[str, Any], sums: np.ndarray, measured: np.ndarray, number: np.ndarray) -> pl.DataFrame:
    head, row = np.nonzero(np.broadcast_to(number > 0, measured.shape))
    sequences = measured[head, row]
    with np.errstate(invalid="ignore"):
        means = sums[:, head, row] / sequences
    means[_MEASURED.index("normalized_entropy"), row == 0] = np.nan
    columns = {"head": head, "row": row, "keys": row + 1, "sequences": sequences}
    columns |= dict(zip(_MEASURED, means, strict=True)) | {"empty_share": 1 - sequences / number[row]}
    where = (pl.lit(value, pl.Int64 if name != "arm" else None).alias(name) for name, value in place.items())
    return pl.DataFrame(columns).select(*where, pl.col(pl.Int64), pl.col(pl.Float64).fill_nan(None))


def _statistics(tile: RowTile) -> torch.Tensor:
    """(measures, B, H, R), in the order of ``_MEASURED``."""
    entropy = tile.entropy
    negative = tile.share(tile.weights.clamp_max(0).sum(-1)).neg()
    most = tile.num_keys.clamp_min(2).log()
    support = entropy.exp() / tile.num_keys
    return torch.stack([entropy, entropy / most, support, tile.weights.sum(-1), negative])


def _by_keys(frame: pl.DataFrame) -> pl.DataFrame:
    """Means over neighboring positions, four groups for each doubling of n."""
    group = (pl.col("keys").log(2) * 4).round()
    means = [pl.col(name).mean() for name in ("keys", *_MEASURED)]
    rows = frame.filter(pl.col("keys") > 1)
    return rows.group_by("arm", "layer", "head", group.alias("_group"), maintain_order=True).agg(*means)
