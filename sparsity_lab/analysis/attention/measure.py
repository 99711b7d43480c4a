"""What attention measures share: decoders with changed layers, means by sequence, and figures.

A sequence is the unit of standard errors, as in evaluation. A figure has one line for each model and layer, and thin
lines for its heads.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.analysis.attention.subjects import Sequences
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.lines import CHANCE, draw_curve, name_lines, note_below
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.style import GRAY, INK, look, new_axes, styled
from sparsity_lab.kernels import Kernel
from sparsity_lab.models.block import Mix
from sparsity_lab.settings import SettingError

Floats = NDArray[np.float64]
Draw = Callable[[Axes, pl.DataFrame], object]
"""Called with the axes and the drawn rows."""
Change = Callable[..., Tensor]
"""From the layer's own attention, its un-rotated q, k and v, and its ``gates`` where it has any, to the attention
output."""


@torch.no_grad()
def losses(
    sequences: Sequences, scored: Bool[Tensor, "B T"], changes: dict[int, Change] | None = None
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Loss in nats, and whether the likeliest token is right, at each of these positions in row-major order; the
    model is in use, not training.

    Args:
        scored: where; a subset of the batch's own scored positions.
        changes: what happens in which layer.
    """
    model, device = sequences.subject.decoder(), sequences.device
    tokens = sequences.tokens
    indices = model.sequence_indices(tokens, None)
    x, layers = model.embed(tokens, sequences.ids, indices), model.layers(indices)
    rows = scored.to(device).flatten().nonzero().squeeze(1)
    last = len(layers) - 1
    for layer, (block, kernel, position) in enumerate(layers):
        mix = _at_inference(kernel, position=position, params=block.kernel_params)
        if changes and layer in changes:
            mix = partial(changes[layer], mix)
        x = block(x, mix, rows if layer == last else None)
    log_probabilities = model.head(model.final_norm(x)).double().log_softmax(-1).cpu()
    targets = sequences.known_batch().targets[scored]
    return -log_probabilities.gather(1, targets[:, None])[:, 0], log_probabilities.argmax(-1) == targets


def scaled_queries(factor: float) -> Change:
    """The layer with all queries times ``factor``: other norms, the same directions."""
    return lambda mix, q, k, v, **gates: mix(factor * q, k, v, **gates)


def each_layer(sequences: Sequences, change: Callable[..., Tensor], *arguments: object) -> dict[int, Change]:
    """A change of every layer: ``change`` also gets, before what a ``Change`` gets, the layer's mechanism at
    inference without a position, its position scheme, and ``arguments``."""
    model = sequences.subject.decoder()
    layers = zip(model.blocks, model.config.kernels, model.config.positions, strict=True)
    return {
        layer: partial(change, _at_inference(kernel, params=block.kernel_params), scheme, *arguments)
        for layer, (block, kernel, scheme) in enumerate(layers)
    }


def _at_inference(kernel: Kernel, **arguments: object) -> Mix:
    return partial(kernel.attend, training=False, **arguments)  # type: ignore[arg-type]


def by_sequence(values: Float[Tensor, "N *more"], sequence: Int[Tensor, " N"], count: int) -> Floats:
    """(sequences, *more) means over the entries of each sequence 0 .. count - 1 that has any; NaN is no entry."""
    entries = values.double().cpu().numpy()
    rows = sequence.cpu().numpy()
    sums = np.zeros((count, *entries.shape[1:]))
    known = np.zeros(sums.shape)
    np.add.at(sums, rows, np.nan_to_num(entries))
    np.add.at(known, rows, ~np.isnan(entries))
    means: Floats = np.where(known > 0, sums / np.maximum(known, 1), np.nan)
    return means[np.isin(np.arange(count), rows)]


def mean_and_error(values: Floats) -> tuple[float | None, float | None]:
    """Mean of (sequences,) values and its standard error, s / sqrt(n); None where there are too few."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if known.size else None
    return mean, float(known.std(ddof=1) / math.sqrt(known.size)) if known.size > 1 else None


def mean_row(values: Mapping[str, Floats], errors: Collection[str] = ()) -> dict[str, Any]:
    """The mean of (sequences,) values by name, and for those in ``errors`` the standard error as ``<name>_se``. NaN
    is no value."""
    row: dict[str, Any] = {}
    for name, of in values.items():
        row[name], error = mean_and_error(of)
        if name in errors:
            row[f"{name}_se"] = error
    return row


def head_rows(values: Mapping[str, Floats], errors: Collection[str] = ()) -> list[dict[str, Any]]:
    """``mean_row`` for each ``head``, from (sequences, H) values."""
    num_heads = next(iter(values.values())).shape[1]
    return [
        {"head": head} | mean_row({name: of[:, head] for name, of in values.items()}, errors)
        for head in range(num_heads)
    ]


def measured_length(
    path: str, lengths: Iterable[int], wanted: int | None, trained: TrainedRange | None = None
) -> int:
    """The wanted one of the measured lengths; by default the largest trained one, or without these the smallest.

    Raises:
        SettingError: at ``path``; a length that was not measured.
    """
    known = sorted(set(lengths))
    if wanted is not None and wanted not in known:
        raise SettingError(path, "a measured length", wanted, [str(length) for length in known])
    inside = [length for length in known if trained is not None and trained.holds(length)]
    return wanted or (inside or known[:1])[-1]


@dataclass(frozen=True, repr=False)
class AttentionMeasurement(Measurement):
    """Numbers by model, length and layer.

    Attributes:
        trained: the trained lengths, None if no model tells.
    """

    trained: TrainedRange | None
    _frame: pl.DataFrame

    told: ClassVar[tuple[str, str, str]]
    """For the finding: the columns of the two axes, and what the second is in words."""

    def frame(self) -> pl.DataFrame:
        """The numbers; the class describes their columns."""
        return self._frame

    @property
    def finding(self) -> str:
        """From where to where the measure goes."""
        return change_finding(self._frame, *self.told)


def of_layer(frame: pl.DataFrame, layer: int | None) -> pl.DataFrame:
    """The rows of one layer, or all.

    Raises:
        SettingError: no such layer.
    """
    known = sorted(frame["layer"].unique().to_list())
    if layer is not None and layer not in known:
        raise SettingError("layer", "a layer that was measured", layer, [str(one) for one in known])
    return frame if layer is None else frame.filter(pl.col("layer") == layer)


def plot_lines(ax: Axes | None, frame: pl.DataFrame, x: str, y: str, words: str, add: Draw) -> Axes:
    """Plot y against x for each model and layer, the mean over heads and each head; returns the axes.

    Args:
        ax: by default new axes with room for names at the ends of lines.
        words: of the vertical axis.
        add: draws what else belongs there.
    """
    with styled():
        ax = new_axes(5.8, 3.3) if ax is None else ax
        series = frame.select("arm", "layer").unique(maintain_order=True)
        for index, (arm, layer) in enumerate(series.iter_rows()):
            part = frame.filter(arm=arm, layer=layer).drop_nulls(y).sort(x)
            mean = part.group_by(x, maintain_order=True).agg(pl.col(y).mean())
            each = [(one[x], one[y]) for one in part.partition_by("head", maintain_order=True)]
            draw_curve(ax, mean[x], mean[y], look(index), f"{arm}, layer {layer}", each=each)
        add(ax, frame)
        ax.set_ylabel(words)
        if frame[y].count() == 0:
            none = "no row with weight on two keys"
            ax.text(0.5, 0.6, none, transform=ax.transAxes, ha="center", color=GRAY)
        name_lines(ax)
        note_below(ax, ["line: mean over heads; thin: each head"] if frame["head"].n_unique() > 1 else [])
    return ax


def plot_mass(found: AttentionMeasurement, ax: Axes | None, layer: int | None, words: str, reference: Draw) -> Axes:
    """Plot the column ``mass`` against ``length`` with what ``reference`` draws; returns the axes."""

    def add(ax: Axes, drawn: pl.DataFrame) -> None:
        reference(ax, drawn)
        length_axis(ax, drawn["length"].unique().to_list(), found.trained, "length (tokens, log scale)")
        ax.set_ylim(-0.03, 1.03)

    return plot_lines(ax, of_layer(found.frame(), layer), "length", "mass", words, add)


def reference_line(ax: Axes, frame: pl.DataFrame, y: str, label: str, color: str = INK) -> None:
    """Draw the mean of y at each length as a dotted line."""
    level = frame.drop_nulls(y).group_by("length").agg(pl.col(y).mean()).sort("length")
    ax.plot(level["length"], level[y], zorder=1, color=color, linewidth=0.9, linestyle=CHANCE, label=label)
