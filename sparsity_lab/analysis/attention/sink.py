"""The attention sink: how much of a row goes to the first tokens, whatever they say.

The share of a row's absolute weight (``tiles``) on the first m positions, compared with m / n, which uniform
attention would give them. Only rows that see more than m keys count, for the others give all they have.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes

from sparsity_lab.analysis.attention.averages import head_rows
from sparsity_lab.analysis.attention.figure import plot_mass, reference_line
from sparsity_lab.analysis.attention.subjects import Models, Rows, Sequences, measured_layers, subjects_of
from sparsity_lab.analysis.attention.tiles import row_tiles
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.length_axis import TrainedRange
from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.generators import Batch, Task
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, check_least

_Means = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, repr=False)
class AttentionSink(Measurement):
    """Mass on the first tokens by model, length, layer and head. Made by ``attention_sink``.

    >>> attention_sink(model, task, [8], sequences=4).frame().columns[-3:]
    ['uniform', 'sequences', 'ratio']

    Attributes:
        first: m.
        trained: the trained lengths, None if no model tells.
    """

    first: int
    trained: TrainedRange | None
    _frame: pl.DataFrame

    def frame(self) -> pl.DataFrame:
        """One row per model, length, layer and head.

        Columns: ``arm``, ``length``, ``layer``, ``head``, ``first`` (m), ``sequences``, ``mass``, ``mass_se``,
        ``uniform`` (mean of m / n over the same rows) and ``ratio`` (mass / uniform). ``mass`` is the mean share of
        absolute weight on the first m tokens: first over the rows of a sequence that see more than m keys, then over
        sequences.
        """
        return self._frame

    @property
    def finding(self) -> str:
        """From where to where the mass on the first tokens goes."""
        return change_finding(self._frame, "length", "mass", "mass on the first tokens")

    def plot(self, ax: Axes | None = None, *, layer: int | None = None) -> Axes:
        """Draw the mass against length, and what uniform attention would give; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            layer: draw one layer only.
        """
        uniform = partial(reference_line, y="uniform", label="uniform attention, m / n")
        words = "the first token" if self.first == 1 else f"the first {self.first} tokens"
        return plot_mass(self._frame, self.trained, ax, layer, f"mass on {words}\n(share of a row)", uniform)


def attention_sink(
    models: Models,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    first: int = 1,
    rows: Rows = "all",
    sequences: int = 64,
    seed: int = 0,
) -> AttentionSink:
    """The share of attention on the first tokens, tile by tile.

    >>> found = attention_sink(model, task, [8], first=2, sequences=4)
    >>> found.frame()["first"].unique().to_list()
    [2]

    Args:
        models, data: see ``subjects``.
        lengths: lengths of the task; by default those that a run was evaluated at.
        first: m, how many tokens.
        rows: all, or only those whose target is scored.
        sequences: of each length.
        seed: of the sequences.

    Raises:
        SettingError: names the argument, what was expected and what came; also if no row sees more than m keys.
    """
    check_least(1, first=first)
    subjects = subjects_of(models)
    found = []

    def measure(piece: Sequences, record: LayerRecord) -> _Means:
        return _means(record, piece.counted(rows), first)

    for subject in subjects:
        for length, layer, parts in measured_layers(subject, data, lengths, sequences, seed, measure):
            mass, uniform = (np.concatenate(values) for values in zip(*parts, strict=True))
            known = (~np.isnan(mass)).sum(0)
            if not known.any():
                raise SettingError("first", f"fewer tokens than the rows see at length {length}", first)
            place: dict[str, Any] = {"arm": subject.label, "length": length, "layer": layer, "first": first}
            for row in head_rows({"mass": mass, "uniform": uniform}, errors=("mass",)):
                found.append(place | row | {"sequences": int(known[row["head"]])})
    frame = rows_frame(found).with_columns((pl.col("mass") / pl.col("uniform")).alias("ratio"))
    return AttentionSink(first=first, trained=subjects.trained, _frame=subjects.with_modules(frame))


def _means(record: LayerRecord, counted: torch.Tensor | None, first: int) -> _Means:
    """(B, H) means over each sequence's rows: mass on the first tokens, and m / n; NaN where no row counts."""
    shape = record.q.shape[:2]
    mass, uniform, number = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for tile in row_tiles(record, counted):
        used = tile.measured & (tile.num_keys > first)
        share = torch.where(used, tile.share(tile.size[..., :first].sum(-1)), 0.0)
        mass += share.double().sum(-1).cpu().numpy()
        uniform += torch.where(used, first / tile.num_keys, 0.0).double().sum(-1).cpu().numpy()
        number += used.sum(-1).cpu().numpy()
    with np.errstate(invalid="ignore"):
        return mass / number, uniform / number
