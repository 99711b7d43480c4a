"""The attention sink: how much of a row goes to the first tokens, whatever they say.

The share of a row's absolute weight (``tiles``) on the first m positions, compared with m / n, which uniform
attention would give them. Only rows that see more than m keys count, for the others give all they have.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes

from sparsity_lab.analysis.attention.measure import AttentionMeasurement, head_rows, plot_mass, reference_line
from sparsity_lab.analysis.attention.subjects import Models, Rows, Sequences, measured_layers, subjects_of
from sparsity_lab.analysis.attention.tiles import row_tiles
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.generators import Batch, Task
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, check_least


@dataclass(frozen=True, repr=False)
class AttentionSink(AttentionMeasurement):
    """Mass on the first tokens by model, length, layer and head. Made by ``attention_sink``.

    The frame has one row per model, length, layer and head. Columns: ``arm``, ``length``, ``layer``, ``head``,
    ``first`` (m), ``sequences``, ``mass``, ``mass_se``, ``uniform`` (mean of m / n over the same rows) and ``ratio``
    (mass / uniform). ``mass`` is the mean share of absolute weight on the first m tokens: first over the rows of a
    sequence that see more than m keys, then over sequences.

    >>> attention_sink(model, task, [8], sequences=4).frame().columns[-3:]
    ['uniform', 'sequences', 'ratio']

    Attributes:
        trained: the trained lengths, None if no model tells.
        first: m.
    """

    first: int

    told = ("length", "mass", "mass on the first tokens")

    def plot(self, ax: Axes | None = None, *, layer: int | None = None) -> Axes:
        """Draw the mass against length, and what uniform attention would give; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            layer: draw one layer only.
        """
        uniform = partial(reference_line, y="uniform", label="uniform attention, m / n")
        words = "the first token" if self.first == 1 else f"the first {self.first} tokens"
        return plot_mass(self, ax, layer, f"mass on {words}\n(share of a row)", uniform)


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
    subjects, found = subjects_of(models), []

    def measure(piece: Sequences, record: LayerRecord) -> np.ndarray:
        return _means(record, piece.counted(rows), first)

    for place, parts in measured_layers(subjects, data, lengths, sequences, seed, measure):
        mass, uniform = np.concatenate(parts, axis=1)
        known = (~np.isnan(mass)).sum(0)
        if not known.any():
            raise SettingError("first", f"fewer tokens than the rows see at length {place['length']}", first)
        for row in head_rows({"mass": mass, "uniform": uniform}, errors=("mass",)):
            found.append(place | {"first": first} | row | {"sequences": int(known[row["head"]])})
    frame = rows_frame(found).with_columns((pl.col("mass") / pl.col("uniform")).alias("ratio"))
    return AttentionSink(subjects.trained, subjects.with_modules(frame), first)


def _means(record: LayerRecord, counted: torch.Tensor | None, first: int) -> np.ndarray:
    """(2, B, H) means over each sequence's rows: mass on the first tokens, and m / n; NaN where no row counts."""
    sums = np.zeros((3, *record.q.shape[:2]))
    for tile in row_tiles(record, counted):
        used = tile.measured & (tile.num_keys > first)
        share = tile.share(tile.size[..., :first].sum(-1))
        for i, values in enumerate((share, first / tile.num_keys, torch.ones_like(share))):
            sums[i] += torch.where(used, values, 0.0).double().sum(-1).cpu().numpy()
    with np.errstate(invalid="ignore"):
        means: np.ndarray = sums[:2] / sums[2]
        return means
