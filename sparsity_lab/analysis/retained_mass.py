"""How much of dense attention a sparse mechanism keeps.

Take a row of a layer with its own queries and keys. Dense softmax attention would put the weight p_j on key j. The
mechanism sees the keys S, those of non-zero weight at inference:

    mass     ρ = Σ_{j in S} p_j, the share kept; the row is off by 1 - ρ in total variation
    budget   |S| over the number of keys that dense attention sees
    recall   of the k complete blocks before the row's own with the most dense mass, the share that is kept
    oracle   Σ p_j over the own block as the mechanism sees it and as many past blocks as it keeps, the best ones
    gap      oracle - mass, what a better choice of as many blocks would add; negative by rounding only

A block counts as kept if the row sees any of its keys. For mechanisms that do not choose by block, such as a window,
the oracle therefore gets the whole of a partly visible block. For ``AdaptiveSparse`` its audit adds ``estimated``,
what the mechanism itself believes ρ to be, and silent misses, the rows with ρ < p that it believes to be at least p.

Source: sheet "adaptive sparse attention" 8. Compared is with softmax, so ρ says little of a mechanism that was
trained to something else.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import pad

from sparsity_lab.analysis.attention.measure import AttentionMeasurement, head_rows, plot_mass, reference_line
from sparsity_lab.analysis.attention.subjects import Models, Sequences, measured_layers, subjects_of
from sparsity_lab.analysis.attention.tiles import RowTile, row_tiles
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.analysis.style import look
from sparsity_lab.generators import Batch, Task
from sparsity_lab.kernels import AdaptiveSparse, Softmax
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, check_least

_MEASURES = ("mass", "below", "budget", "recall", "oracle", "estimated", "silent_misses")


@dataclass(frozen=True, repr=False)
class RetainedMass(AttentionMeasurement):
    """Retained mass by model, length, layer and head. Made by ``retained_mass``.

    The frame has one row per model, length, layer and head. Columns: ``arm``, ``length``, ``layer``, ``head``,
    ``sequences``, ``rows`` (of each) and ``block_size``. The rest are means over the rows of a sequence, then over
    sequences: ``mass`` with its standard error ``mass_se``, ``below``, ``budget``, ``recall``, ``oracle`` and
    ``gap``. ``below`` is the share of rows with ρ < p. ``estimated`` and ``silent_misses`` are null except for
    ``AdaptiveSparse``. Rows without a complete block before them are not looked at.

    >>> dense = retained_mass(model, task, [32], sequences=2, block_size=8)
    >>> dense.frame()["mass"].round(3).unique().to_list()
    [1.0]

    Attributes:
        trained: the trained lengths, None if no model tells.
        p: the mass below which a row counts as a miss.
        k: of the recall.
    """

    p: float
    k: int

    told = ("length", "mass", "retained mass")

    def summary(self) -> pl.DataFrame:
        """Means over heads."""
        names = [*_MEASURES[:5], "gap", *_MEASURES[5:]]
        keys = [name for name in ("arm", "length", "layer", "module") if name in self._frame.columns]
        return self._frame.group_by(keys, maintain_order=True).agg(pl.col(names).mean())

    def plot(self, ax: Axes | None = None, *, layer: int | None = None) -> Axes:
        """Draw the retained mass against length, and the oracle's; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            layer: draw one layer only.
        """
        words = "retained mass of dense attention\n(share of a row)"
        return plot_mass(self, ax, layer, words, _oracle)


def _oracle(ax: Axes, frame: pl.DataFrame) -> None:
    for index, (_, part) in enumerate(frame.group_by("arm", "layer", maintain_order=True)):
        label = "_reference" if index else "dotted: the best blocks, as many"
        reference_line(ax, part, "oracle", label, look(index).color)


def retained_mass(
    models: Models,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    p: float = 0.9,
    k: int = 4,
    block_size: int = 16,
    rows: int = 32,
    sequences: int = 16,
    seed: int = 0,
) -> RetainedMass:
    """What share of dense attention the mechanism of each layer keeps, and how well it chooses.

    >>> found = retained_mass(model, task, [32], sequences=2, block_size=8, rows=4)
    >>> found.frame()["rows"].unique().to_list()
    [4]

    Args:
        models, data: see ``attention.subjects``.
        lengths: lengths of the task; by default those that a run was evaluated at.
        p: a row with less mass is a miss.
        k: of the recall.
        block_size: of mechanisms without blocks of their own; ``AdaptiveSparse`` has its own.
        rows: of each sequence, evenly spread; each costs a dense row.
        sequences: of each length.
        seed: of the sequences.

    Raises:
        SettingError: names the argument, what was expected and what came; also for sequences of one block.
    """
    check_least(1, k=k, block_size=block_size, rows=rows)
    if not 0 < p <= 1:
        raise SettingError("p", "a share above 0, at most 1", p)
    subjects = subjects_of(models)
    found = []

    def measure(_: Sequences, record: LayerRecord) -> tuple[int, int, Tensor]:
        own = record.kernel.block_size if isinstance(record.kernel, AdaptiveSparse) else block_size
        chosen = _spread(record.q.shape[2], own, rows)
        return own, len(chosen), _measure(record, chosen, own, p, k)

    for place, parts in measured_layers(subjects, data, lengths, sequences, seed, measure):
        own, looked_at, _ = parts[0]
        values = torch.cat([part for _, _, part in parts]).cpu().numpy()
        place |= {"sequences": len(values), "rows": looked_at, "block_size": own}
        measures = {name: values[..., i] for i, name in enumerate(_MEASURES)}
        found += [place | row for row in head_rows(measures, errors=("mass",))]
    frame = rows_frame(found).with_columns(gap=pl.col("oracle") - pl.col("mass"))
    names = ("sequences", "rows", "block_size", "mass", "mass_se", "below", "budget", "recall", "oracle", "gap")
    frame = frame.select("arm", "length", "layer", "head", *names, "estimated", "silent_misses")
    return RetainedMass(subjects.trained, subjects.with_modules(frame), p, k)


def _spread(length: int, block_size: int, count: int) -> list[int]:
    """Evenly spread rows with a complete block before them, the last row among them."""
    available = length - block_size
    if available < 1:
        raise SettingError("lengths", f"more than a block of {block_size} tokens", length)
    count = min(count, available)
    return [block_size + (i + 1) * available // count - 1 for i in range(count)]


@torch.no_grad()
def _measure(
    record: LayerRecord, rows: list[int], block_size: int, p: float, k: int
) -> Float[Tensor, "B H measures"]:
    """Means over the rows; NaN for what the mechanism does not tell."""
    batch_size = record.q.shape[0]
    counted = torch.zeros(batch_size, record.q.shape[2], dtype=torch.bool, device=record.q.device)
    counted[:, rows] = True
    dense = dataclasses.replace(record, kernel=Softmax(), params=None)
    tiles: Iterator[tuple[RowTile, RowTile]] = zip(row_tiles(record, counted), row_tiles(dense, counted), strict=True)
    parts = [_of_rows(seen, full, block_size, p, k) for seen, full in tiles]
    values = torch.cat(parts, dim=2)
    told = torch.full((*values.shape[:3], 2), torch.nan, dtype=values.dtype, device=values.device)
    if isinstance(record.kernel, AdaptiveSparse):
        position = torch.tensor(rows, device=record.q.device).expand(batch_size, -1)
        audit = record.kernel.audit(record.q, record.k, rows=position, position=record.position, params=record.params)
        told[..., 0] = audit.estimated
        told[..., 1] = ((audit.retained < p) & (audit.estimated >= p)).to(values.dtype)
    measures = torch.cat([values, told], dim=-1)
    if record.key_mask is None:
        return measures.mean(2)
    return measures.masked_fill(~record.key_mask[:, None, rows, None], torch.nan).nanmean(2)


def _of_rows(seen: RowTile, full: RowTile, block_size: int, p: float, k: int) -> Float[Tensor, "B H R measures"]:
    """Mass, miss, budget, recall and oracle of neighboring rows."""
    dense, kept = full.weights.double(), seen.weights != 0
    mass = (dense * kept).sum(-1)
    of_block, any_kept, past = _in_blocks(dense, kept, seen.start, block_size)
    budget = kept.sum(-1) / full.num_keys
    wanted = of_block.masked_fill(~past, -1.0)
    best = wanted.topk(min(k, wanted.shape[-1]), dim=-1)
    counts = best.values >= 0
    recall = (any_kept.gather(-1, best.indices) & counts).sum(-1) / counts.sum(-1)
    number = (any_kept & past).sum(-1, keepdim=True)
    ranked = wanted.clamp_min(0.0).sort(-1, descending=True).values.cumsum(-1)
    chosen = pad(ranked, (1, 0)).gather(-1, number)[..., 0]
    # The own block, and what comes after it, as the mechanism sees it.
    kept_of_block, _, _ = _in_blocks(dense * kept, kept, seen.start, block_size)
    own = kept_of_block.masked_fill(past, 0.0).sum(-1)
    return torch.stack([mass, (mass < p).double(), budget.double(), recall.double(), own + chosen], dim=-1)


def _in_blocks(
    weights: Float[Tensor, "B H R T"], kept: Bool[Tensor, "B H R T"], start: int, block_size: int
) -> tuple[Float[Tensor, "B H R n"], Bool[Tensor, "B H R n"], Bool[Tensor, "R n"]]:
    """Mass of each block, whether any of its keys is kept, and whether it is complete and before the row's own."""
    num_blocks = math.ceil(weights.shape[-1] / block_size)
    rest = (0, num_blocks * block_size - weights.shape[-1])
    mass = torch.unflatten(pad(weights, rest), -1, (num_blocks, block_size)).sum(-1)
    any_kept = torch.unflatten(pad(kept, rest), -1, (num_blocks, block_size)).any(-1)
    own = torch.arange(start, start + weights.shape[2], device=weights.device) // block_size
    return mass, any_kept, torch.arange(num_blocks, device=weights.device) < own[:, None]
