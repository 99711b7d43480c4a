"""The mass that attention puts on the true sources of a scored target, and where the rest goes.

With p the shares of the row of a scored target (``tiles``), S its sources, k = |S|, n the keys it sees:

    mass          Σ_{j in S} p_j
    decoy mass    Σ of the k largest p_j outside S: what goes to equally many wrong places
    wrong support exp(H_wrong) / (n - k), H_wrong the entropy of p outside S: 1 if the rest is spread evenly, small if
                  it sits at few wrong places

Mass is measured against the truth of the task: a head may well do without it, if another layer has moved the
information before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.analysis.attention.measure import (
    AttentionMeasurement,
    by_sequence,
    head_rows,
    plot_mass,
    reference_line,
)
from sparsity_lab.analysis.attention.subjects import Models, Sequences, Subject, measured_layers, subjects_of
from sparsity_lab.analysis.attention.tiles import RowTile, row_tiles
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.generators import Batch, Task
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError

MASSES = ("mass", "decoy_mass", "wrong_support")


@dataclass(frozen=True, repr=False)
class PlantedMass(AttentionMeasurement):
    """Mass on the true sources by model, length, layer and head. Made by ``planted_mass``.

    The frame has one row per model, length, layer and head. Columns: ``arm``, ``length``, ``layer``, ``head``,
    ``sequences`` and ``targets`` (the number measured: those with a source and another key). The rest are means over
    the targets of a sequence, then over sequences: ``mass`` with its standard error ``mass_se``, ``uniform``,
    ``decoy_mass`` and ``wrong_support``. ``uniform`` is k / n, the mass that uniform attention puts on the sources.
    All are shares, 0 to 1.

    >>> found = planted_mass(model, task, [8], sequences=4)
    >>> found.frame()["targets"].unique().to_list()
    [4]

    Attributes:
        trained: the trained lengths, None if no model tells.
    """

    told = ("length", "mass", "mass on the true sources")

    def plot(self, ax: Axes | None = None, *, layer: int | None = None) -> Axes:
        """Draw the mass against length, and what uniform attention would give; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            layer: draw one layer only.
        """
        uniform = partial(reference_line, y="uniform", label="uniform attention, k / n")
        words = "mass on the true sources\n(share of a scored target's row)"
        return plot_mass(self, ax, layer, words, uniform)


def planted_mass(
    models: Models,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    sequences: int = 64,
    seed: int = 0,
) -> PlantedMass:
    """The share of attention on ``batch.sources`` in the rows of scored targets, and on the strongest wrong places.

    >>> planted_mass(model, task, [8, 16], sequences=4).frame()["length"].unique().sort().to_list()
    [8, 16]

    Args:
        models, data: see ``subjects``; records need their batch.
        lengths: lengths of the task; by default those that a run was evaluated at.
        sequences: of each length.
        seed: of the sequences.

    Raises:
        SettingError: names the argument, what was expected and what came; also for a task without sources.
    """
    subjects = subjects_of(models)
    rows: list[dict[str, Any]] = []
    for place, targets in targets_of(subjects, data, lengths, sequences, seed):
        place |= {"sequences": targets.num_sequences, "targets": len(targets.k)}
        place |= {"uniform": float(targets.mean_of(targets.k / targets.n).mean())}
        rows += [place | row for row in head_rows({name: targets.means(name) for name in MASSES}, errors=("mass",))]
    return PlantedMass(subjects.trained, rows_frame(rows))


@dataclass(frozen=True)
class Targets:
    """Scored targets of one layer at one length, as numbers.

    Attributes:
        values: (N, H, measures), in the order of ``MASSES``; a support is NaN where nothing is wrong.
        sequence: (N,) sequence of each target, from 0.
        k, n: (N,) its sources and its visible keys.
    """

    values: Float[Tensor, "N H measures"]
    sequence: Int[Tensor, " N"]
    k: Int[Tensor, " N"]
    n: Int[Tensor, " N"]

    @property
    def num_sequences(self) -> int:
        """Sequences with a target."""
        return len(set(self.sequence.tolist()))

    def without(self, group: int, groups: int) -> "Targets":
        """All but those of every ``groups``-th of the sequences that have any, from number ``group`` on."""
        rank = torch.unique(self.sequence, return_inverse=True)[1]
        kept = rank % groups != group
        return Targets(self.values[kept], self.sequence[kept], self.k[kept], self.n[kept])

    def means(self, name: str) -> NDArray[np.float64]:
        """(sequences, H) means over the targets of each sequence."""
        return self.mean_of(self.values[..., MASSES.index(name)])

    def mean_of(self, values: Float[Tensor, "N *more"]) -> NDArray[np.float64]:
        """(sequences, *more) means of numbers of each target."""
        return by_sequence(values, self.sequence, int(self.sequence.max()) + 1)


def targets_of(
    subjects: Iterable[Subject], data: Task | Batch | None, lengths: Iterable[int] | None, count: int, seed: int
) -> Iterator[tuple[dict[str, Any], Targets]]:
    """(``arm``, ``length`` and ``layer``, targets) for each model, length and layer."""
    for place, parts in measured_layers(subjects, data, lengths, count, seed, _measure):
        joined = Targets(*map(torch.cat, zip(*parts, strict=True)))
        if not len(joined.k):
            expected = f"no scored target at length {place['length']} has both a source and another key"
            raise SettingError("data", expected)
        yield place, joined


def _measure(piece: Sequences, record: LayerRecord) -> list[Tensor]:
    """The fields of ``Targets``."""
    sources = piece.known_batch().sources
    if sources is None:
        raise SettingError("data", "the task does not declare the sources of its targets")
    sources = sources.to(record.q.device)
    k = (sources >= 0).sum(-1)
    n = torch.arange(1, sources.shape[1] + 1, device=k.device).expand_as(k)
    found = [[record.q.new_zeros(0, record.q.shape[1], len(MASSES))], *([k.new_zeros(0)] for _ in range(3))]
    for tile in row_tiles(record, (k > 0) & (k < n)):
        measures = _masses(tile, sources[:, tile.rows], k[:, tile.rows])
        values = measures.movedim(1, 2)[tile.counted].to(record.q.dtype)
        sequence = tile.counted.nonzero()[:, 0] + piece.start
        own = (values, sequence, k[:, tile.rows][tile.counted], n[:, tile.rows][tile.counted])
        for parts, part in zip(found, own, strict=True):
            parts.append(part)
    return [torch.cat(parts).cpu() for parts in found]


def _masses(tile: RowTile, sources: Int[Tensor, "B R K"], k: Int[Tensor, "B R"]) -> Float[Tensor, "B H R measures"]:
    # What pads a row of sources repeats its first source, which changes nothing where all are cleared.
    own = torch.where(sources >= 0, sources, sources[..., :1].clamp_min(0))
    places = own[:, None].expand(-1, tile.size.shape[1], -1, -1)
    on_sources = torch.where(sources[:, None] >= 0, tile.size.gather(-1, places), 0.0).sum(-1)
    wrong = RowTile(tile.start, tile.size.scatter(-1, places, 0.0), tile.counted)
    strongest = wrong.weights.topk(min(sources.shape[-1], wrong.weights.shape[-1]), dim=-1).values
    rank = torch.arange(strongest.shape[-1], device=k.device)
    decoys = torch.where(rank < k[:, None, :, None], strongest, 0.0).sum(-1)
    others = (tile.num_keys - k).clamp_min(1)
    support = wrong.entropy.exp() / others[:, None]
    masses = torch.stack([tile.share(on_sources), tile.share(decoys), support], dim=-1)
    masses[..., -1] = masses[..., -1].masked_fill(wrong.total == 0, torch.nan)
    return masses.masked_fill(~tile.measured[..., None], torch.nan)
