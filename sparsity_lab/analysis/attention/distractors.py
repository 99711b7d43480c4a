"""Distractors: what a wrong key with a high score does to the loss, and whether sharper attention suffers more.

In one layer, for the last scored row i of each sequence, the key and the value at one wrong position z are replaced
in all heads at once. Other rows and other layers see the original sequence.

- *Place*: z is drawn uniformly from 1 .. i - 1, never the first token, never a source of the target.
- *Key*: with b the head's best key (its largest weight in row i),

      k'_z = (1 - s) k_z + s k_b,

  where k_b is turned so that a rotary position meets it at z as it does at b. Strength s = 0 leaves the key, at
  s = 1 it is a perfect double of the best key, and s > 1 goes beyond. Unlike a factor on the norm of the key, this
  also means something where keys are normalized; there a mixture can score above the double. What tells places apart
  in another way, as a bias by distance, a window, or a rotation of features, still does: ``wrong_share`` says what
  weight the wrong key really drew.
- *Value*: the value that the partner sequence has under its own best key; sequences 2i and 2i + 1 are partners. So
  the wrong place offers what the head would rightly fetch from another sequence: plausible, and often wrong.

A mechanism that sharpens gives a copy of the best key as much weight as the best key itself, and nothing to the rest.
One that spreads its weight loses little to one more key, but had less to lose. Strength 0 is the control: only a
value at a place that was attended to before has changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from matplotlib.axes import Axes
from torch import Tensor

from sparsity_lab.analysis.attention.measure import (
    AttentionMeasurement,
    losses,
    mean_row,
    measured_length,
    of_layer,
    plot_lines,
)
from sparsity_lab.analysis.attention.subjects import Models, Sequences, sequences_of, subjects_of
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.analysis.style import GRAY
from sparsity_lab.generators import Batch, Task
from sparsity_lab.kernels import KernelPosition
from sparsity_lab.models.block import Mix
from sparsity_lab.settings import SettingError


@dataclass(frozen=True, repr=False)
class DistractorRobustness(AttentionMeasurement):
    """Loss by model, length, layer and strength of a planted wrong key. Made by ``distractor_robustness``.

    The frame has one row per model, length, layer and strength. Columns: ``arm``, ``length``, ``layer``, ``strength``
    (s), ``sequences``, ``loss_before`` and ``loss`` (in nats, for the one target of each sequence), and
    ``loss_change`` with ``loss_change_se`` (paired). Then ``accuracy_before`` and ``accuracy``. ``best_share`` and
    ``wrong_share`` are the shares of the row's absolute weight on the best key and on the wrong one, as means over
    heads.

    >>> found = distractor_robustness(model, task, [8], strengths=(0.0, 1.0), sequences=4)
    >>> found.frame()["strength"].unique().sort().to_list()
    [0.0, 1.0]

    Attributes:
        trained: the trained lengths, None if no model tells.
    """

    @property
    def finding(self) -> str:
        """From where to where the loss goes between no wrong key and the strongest."""
        shortest = self._frame.filter(pl.col("length") == pl.col("length").min())
        return change_finding(shortest, "strength", "loss_change", "change of loss")

    def plot(
        self,
        ax: Axes | None = None,
        *,
        measure: str = "loss_change",
        length: int | None = None,
        layer: int | None = None,
    ) -> Axes:
        """Draw the change against the strength of the wrong key; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            measure: ``"loss_change"``, ``"accuracy"`` or ``"wrong_share"``.
            length: by default the smallest measured one.
            layer: draw one layer only.
        """
        labels = {
            "loss_change": "change of loss\n(nats per target)",
            "accuracy": "accuracy (share of targets)",
            "wrong_share": "weight on the wrong key\n(share of a row, mean over heads)",
        }
        if measure not in labels:
            raise SettingError("measure", "a measure that can be drawn", measure, labels)
        length = measured_length("length", self._frame["length"], length)
        drawn = of_layer(self._frame.filter(length=length), layer).with_columns(head=pl.lit(0))

        def add(ax: Axes, _: pl.DataFrame) -> None:
            ax.axvline(1, color=GRAY, linewidth=0.8, zorder=0)
            ax.set_xlabel(f"strength of the wrong key at length {length}\n(1 = a double of the best key)")

        return plot_lines(ax, drawn, "strength", measure, labels[measure], add)


def distractor_robustness(
    models: Models,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    strengths: Sequence[float] = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5),
    layers: Iterable[int] | None = None,
    sequences: int = 64,
    seed: int = 0,
) -> DistractorRobustness:
    """How the loss moves when one wrong key is made to score like the best one, or higher, in one layer.

    >>> found = distractor_robustness(model, task, [8], strengths=(0.0, 1.0), layers=[0], sequences=4)
    >>> found.frame()["layer"].unique().to_list()
    [0]

    Args:
        models, data: see ``subjects``; not records. A mapping with ``run.with_kernel(...)`` compares mechanisms on
            the same weights and the same wrong places.
        lengths: lengths of the task; by default those that a run was evaluated at.
        strengths: s.
        layers: which layers, each on its own; by default all.
        sequences: of each length, an even number.
        seed: of the sequences and of the wrong places.

    Raises:
        SettingError: names the argument, what was expected and what came; also for a target without a wrong place
            before it.
    """
    subjects = subjects_of(models)
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        number = len(subject.decoder().blocks)
        wanted = list(range(number) if layers is None else layers)
        for layer in wanted:
            if not 0 <= layer < number:
                raise SettingError("layers", f"layers 0 .. {number - 1}", layer)
        for length, pieces in sequences_of(subject, data, lengths, sequences, seed, multiple=2):
            found: dict[tuple[int, float], list[np.ndarray]] = {}
            for piece in pieces:
                targets = _Targets.of(piece)
                before = torch.stack(losses(piece, targets.scored))
                for at in product(wanted, strengths):
                    after = _with_distractor(piece, targets, *at)
                    found.setdefault(at, []).append(torch.cat([before, after]).numpy())
            for (layer, strength), parts in found.items():
                place = {"arm": subject.label, "length": length, "layer": layer, "strength": float(strength)}
                rows.append(place | _row(np.concatenate(parts, axis=1)))
    return DistractorRobustness(subjects.trained, rows_frame(rows))


@dataclass(frozen=True)
class _Targets:
    """The last scored target of each sequence, and the wrong place of its distractor.

    Attributes:
        scored: (B, T), True at that target.
        row: (B,) its position.
        wrong: (B,) the wrong place.
    """

    scored: Bool[Tensor, "B T"]
    row: Int64[Tensor, " B"]
    wrong: Int64[Tensor, " B"]

    @classmethod
    def of(cls, piece: Sequences) -> "_Targets":
        batch = piece.known_batch()
        scored, T = batch.scored, batch.tokens.shape[1]
        if not scored.any(1).all():
            raise SettingError("data", "every sequence needs a scored target")
        row = torch.where(scored, torch.arange(T), -1).amax(1)
        allowed = (torch.arange(T) >= 1) & (torch.arange(T) < row[:, None])
        if batch.sources is not None:
            sources = batch.sources[torch.arange(len(batch)), row]
            # What pads the sources points at position 0, which is not allowed anyway.
            allowed = allowed.scatter(1, sources.clamp_min(0), False)
        if not allowed.any(1).all():
            raise SettingError("data", f"at length {piece.length} a target has no wrong position before it")
        uniform = torch.from_numpy(_uniform(piece, len(batch)))
        rank = (uniform * allowed.sum(1)).long() + 1
        wrong = (allowed.cumsum(1) < rank[:, None]).sum(1)
        return cls(torch.zeros_like(scored).scatter(1, row[:, None], True), row, wrong)


def _uniform(piece: Sequences, count: int) -> np.ndarray:
    """A number in [0, 1) for each sequence, the same for all models."""
    words = piece.stream.words("distractor", piece.length, piece.start, count, 1)[:, 0]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _with_distractor(piece: Sequences, targets: _Targets, layer: int, strength: float) -> Float[Tensor, "four B"]:
    """Loss, accuracy, share of the best and share of the wrong key, of each sequence."""
    model = piece.subject.decoder()
    block, kernel, position = model.layers(model.sequence_indices(piece.tokens, None))[layer]
    row, wrong = (own.to(piece.device) for own in (targets.row, targets.wrong))
    shares: list[Tensor] = []

    def change(
        mix: Mix, q: Tensor, k: Tensor, v: Tensor, *, gates: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "B H T D"]:
        """The layer's output, with the rows of the targets computed on keys and values with their distractor."""
        gates = gates or {}
        out = (mix(q, k, v, gates=gates) if gates else mix(q, k, v)).clone()
        B, H, _, _ = q.shape
        each = torch.arange(B)

        def rows_of_weights(keys: Tensor) -> Tensor:
            """(B, H, T), the weights of each sequence's own row."""
            weights = q.new_zeros(B, H, k.shape[2])
            for start in sorted(set(row.tolist())):
                here = row == start
                own = {name: logits[here] for name, logits in gates.items()}
                tile = kernel.weights(
                    q[here, :, start : start + 1], keys[here], query_start=start, training=False, position=position,
                    params=block.kernel_params, gates=own,
                )  # fmt: skip
                weights[here] = tile[:, :, 0].to(q.dtype)
            return weights

        # Heads that share their keys share their best key too: the one with the largest weight in all.
        plain = rows_of_weights(k).abs().view(B, k.shape[1], -1, k.shape[2]).sum(2)
        best = plain.argmax(-1)  # (B, G)
        heads = torch.arange(k.shape[1], device=k.device)
        best_key = k[each[:, None], heads, best]
        doubles = torch.stack([_moved(best_key[b], best[b], int(wrong[b]), position, b) for b in range(B)])
        k, wrong_value = k.clone(), v[each[:, None] ^ 1, heads, best[each ^ 1]]
        v = v.clone()
        k[each, :, wrong] = (1 - strength) * k[each, :, wrong] + strength * doubles
        v[each, :, wrong] = wrong_value
        weights = rows_of_weights(k)
        values = v.repeat_interleave(H // v.shape[1], dim=1)
        out[each, :, row] = (weights.unsqueeze(2) @ values).squeeze(2)
        size = weights.abs()
        total = size.sum(-1).clamp_min(torch.finfo(size.dtype).tiny)
        of_best = size.gather(-1, best.repeat_interleave(H // k.shape[1], dim=1)[..., None])[..., 0]
        shares.extend((own / total).mean(1).double().cpu() for own in (of_best, size[each, :, wrong]))
        return out

    return torch.stack([*losses(piece, targets.scored, {layer: change}), *shares])


def _moved(
    key: Float[Tensor, "G D"], came_from: Int64[Tensor, " G"], to: int, position: KernelPosition | None, sequence: int
) -> Float[Tensor, "G D"]:
    """Un-rotated keys that, rotated at ``to``, are what these are rotated at their own positions.

    A rotation is asked for its matrix by rotating the basis; its inverse is the transpose.
    """
    if position is None or position.kind != "rotate":
        return key
    basis = torch.eye(key.shape[1], dtype=key.dtype, device=key.device)[None, :, None]
    own = 0 if position.batch_size == 1 else sequence

    def matrix(at: int) -> Tensor:
        """(D, D), whose row i is the i-th basis vector rotated."""
        return position.rotate(basis, at)[own, :, 0]

    back = matrix(to).mT
    return torch.stack([one @ matrix(int(at)) @ back for one, at in zip(key, came_from, strict=True)])


def _row(values: np.ndarray) -> dict[str, Any]:
    loss_before, accuracy_before, loss, accuracy, best, wrong = values
    means = {
        "loss_before": loss_before,
        "loss": loss,
        "loss_change": loss - loss_before,
        "accuracy_before": accuracy_before,
        "accuracy": accuracy,
        "best_share": best,
        "wrong_share": wrong,
    }
    return {"sequences": values.shape[1], **mean_row(means, errors=("loss_change",))}
