"""Whether a head's entropy follows the norms of queries and keys, by observation and by intervention.

*Observed*: Spearman's correlation of H with the query norm ||q_i||, and with the mean norm of the n keys that the row
sees. H grows with n whatever the norms do, so a plain correlation would measure position. Two ways around that are
reported: ranks among rows of equal n (over the sequences of a batch), then pooled; and H / ln n over all rows.

*Intervened*: all queries of a layer (or all keys) times c, directions kept, and

    dH / d ln r = (H(c = e^δ) - H(c = e^-δ)) / 2δ,  δ = 0.05,

averaged over rows; and the loss of the model with the queries of that one layer times c.

*Exact*, for softmax with scores s_j = r a_j + b_j, r the query norm and b a bias that does not scale:

    dH / dr = - Cov_p(a, s), without a bias - r Var_p(a);    dH / d ln r = - Cov_p(r a, s).

Softmax entropy therefore falls with the query norm in every row, unless all a_j are equal. No other mechanism has
such a law for each row. Source: "NaLaFormer: Norm-Aware Linear Attention", arXiv 2506.21137, for the question and the
measure; the derivation is the lab's own.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from scipy.stats import rankdata
from torch import Tensor

from sparsity_lab.analysis.attention.measure import (
    AttentionMeasurement,
    Change,
    by_sequence,
    head_rows,
    losses,
    mean_row,
    measured_length,
    of_layer,
    plot_lines,
    scaled_queries,
)
from sparsity_lab.analysis.attention.subjects import Models, Rows, Sequences, sequences_of, subjects_of
from sparsity_lab.analysis.attention.tiles import RowTile, row_tiles
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.analysis.style import GRAY
from sparsity_lab.generators import Batch, Task
from sparsity_lab.kernels import Softmax
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError

_STEP = 0.05  # δ, in ln r
_ROUNDING = 1e-6  # of float32 sums, beside their size


def softmax_entropy_slope(a: Float[Tensor, "*rows n"], r: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """dH/dr = - r Var_p(a), the slope of the entropy of p = softmax(r a), in nats for each unit of r.

    >>> softmax_entropy_slope(torch.tensor([0.0, 1.0]), torch.tensor(0.0)).item()
    -0.0

    Args:
        a: scores for each unit of the query norm, <q / ||q||, k_j> times any fixed scale.
        r: query norms.
    """
    return -r * _covariance((r[..., None] * a).softmax(-1), a, a)


@dataclass(frozen=True, repr=False)
class NormSensitivity(AttentionMeasurement):
    """How entropy and loss follow norms, by model, length, layer and head. Made by ``norm_sensitivity``.

    The frame has one row per model, length, layer and head. Columns: ``arm``, ``length``, ``layer``, ``head``,
    ``sequences``, ``query_norm`` and ``key_norm`` (means) and ``entropy`` (nats, mean over rows with n >= 2).

    - ``query_spearman`` and ``key_spearman`` rank rows of equal n; they are null for one sequence.
    - ``query_spearman_normalized`` and ``key_spearman_normalized`` use H / ln n over all rows.
    - ``query_slope`` and ``key_slope`` are dH / d ln r in nats, with all queries or all keys rescaled.
    - ``exact_query_slope`` is the law for softmax; it is null for other mechanisms.
    - ``negative_share`` is the negative share of |w|; above 0, the entropy is that of |w|.

    A correlation is null where norms or entropies do not vary.

    >>> found = norm_sensitivity(model, task, [8], factors=(0.5, 2.0), sequences=4)
    >>> found.sweep()["factor"].unique().sort().to_list()
    [0.5, 1.0, 2.0]

    Attributes:
        trained: the trained lengths, None if no model tells.
    """

    _sweep: pl.DataFrame

    def sweep(self) -> pl.DataFrame:
        """One row per model, length, layer, head and factor.

        Columns: ``arm``, ``length``, ``layer``, ``head``, ``factor`` (c, which multiplies all queries of the layer),
        ``entropy`` (nats, mean over rows with n >= 2) and ``entropy_change`` (from c = 1). Columns of the whole layer
        are ``loss`` (nats per scored target), ``loss_change`` (from c = 1, on the same sequences) and
        ``loss_change_se``; they are null for bare records.
        """
        return self._sweep

    @property
    def finding(self) -> str:
        """From where to where the entropy goes between the smallest and the largest norms."""
        length = measured_length("length", self._sweep["length"], None, self.trained)
        return change_finding(self._sweep.filter(length=length), "factor", "entropy_change", "change of entropy")

    def plot(
        self,
        ax: Axes | None = None,
        *,
        measure: str = "entropy_change",
        length: int | None = None,
        layer: int | None = None,
    ) -> Axes:
        """Draw the change against the factor on the query norm; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            measure: ``"entropy_change"`` or ``"loss_change"``.
            length: by default the largest trained one that was measured, else the smallest.
            layer: draw one layer only.
        """
        labels = {
            "entropy_change": "change of entropy (nats)",
            "loss_change": "change of loss\n(nats per scored target)",
        }
        if measure not in labels:
            raise SettingError("measure", "a measure of the sweep", measure, labels)
        length = measured_length("length", self._sweep["length"], length, self.trained)
        drawn = of_layer(self._sweep.filter(length=length), layer)
        if measure == "loss_change":  # a loss belongs to the layer, not to a head
            drawn = drawn.filter(head=0)
        factors = sorted(drawn["factor"].unique().to_list())

        def add(ax: Axes, _: pl.DataFrame) -> None:
            ax.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
            ax.axvline(1, color=GRAY, linewidth=0.8, zorder=0)
            ax.set_xscale("log")
            ax.set_xlim(factors[0] / 1.1, factors[-1] * 1.1)
            ax.xaxis.set_major_locator(FixedLocator(factors))
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_xlabel(f"query norms of the layer, times (log scale; at length {length})")

        return plot_lines(ax, drawn, "factor", measure, labels[measure], add)


def norm_sensitivity(
    models: Models,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    factors: Sequence[float] = (0.5, 0.71, 1.41, 2.0),
    rows: Rows = "all",
    positions: bool = True,
    sequences: int = 64,
    seed: int = 0,
) -> NormSensitivity:
    """Correlation of entropy with norms, its slope under rescaled norms, and what the rescaling does to the loss.

    >>> found = norm_sensitivity(model, task, [8], factors=(2.0,), sequences=4)
    >>> found.frame()["head"].unique().sort().to_list()
    [0, 1]

    Args:
        models, data: see ``subjects``. Bare records give no loss.
        lengths: lengths of the task; by default those that a run was evaluated at.
        factors: what query norms are multiplied by; 1 is always among them.
        rows: all, or only those whose target is scored. Entropy is that of rows with n >= 2.
        positions: False measures the weights that the same queries and keys would have without a rotation or a bias;
            the loss is always that of the model as it is.
        sequences: of each length.
        seed: of the sequences.

    Raises:
        SettingError: names the argument, what was expected and what came.
    """
    if any(not 0 < factor < math.inf for factor in factors):
        raise SettingError("factors", "positive finite numbers", factors)
    every_factor = sorted({1.0, *map(float, factors)})
    subjects = subjects_of(models)
    frame: list[dict[str, Any]] = []
    sweep: list[dict[str, Any]] = []
    for subject in subjects:
        for length, pieces in sequences_of(subject, data, lengths, sequences, seed):
            layers: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
            lost: dict[tuple[int, float], list[np.ndarray]] = {}
            for piece in pieces:
                counted = piece.counted(rows)
                for layer, record in enumerate(piece.records()):
                    seen = record if positions else replace(record, position=None)
                    layers.setdefault(layer, []).append(_measure(seen, counted, every_factor))
                if subject.model is not None:
                    for changed, values in _losses(piece, len(layers), every_factor).items():
                        lost.setdefault(changed, []).append(values)
            for layer, parts in layers.items():
                place: dict[str, Any] = {"arm": subject.label, "length": length, "layer": layer}
                by_row, means = map(np.concatenate, zip(*parts, strict=True))
                losses_at = {factor: np.concatenate(lost[layer, factor]) for factor in every_factor if lost}
                frame += [place | row for row in _frame_rows(by_row, means)]
                sweep += [place | row for row in _sweep_rows(means[..., len(_MEANS) :], every_factor, losses_at)]
    return NormSensitivity(
        subjects.trained, subjects.with_modules(rows_frame(frame)), subjects.with_modules(rows_frame(sweep))
    )


_MEANS = ("query_norm", "key_norm", "entropy", "query_slope", "key_slope", "exact_query_slope", "negative_share")


@torch.no_grad()
def _measure(
    record: LayerRecord, counted: Bool[Tensor, "B T"] | None, factors: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """(B, H, T, 3) entropy, query norm and key norm of each measured row, NaN elsewhere. And (B, H, what) means over
    the rows of each sequence, of ``_MEANS`` and then of the entropy at each factor."""
    batch_size, num_heads, T, _ = record.q.shape
    if counted is None:
        counted = torch.ones(batch_size, T, dtype=torch.bool)
    counted = counted.to(record.q.device).clone()
    counted[:, 0] = False  # with one key there is nothing to distribute
    query_norm = record.q.norm(dim=-1)
    seen = torch.arange(1, T + 1, device=record.q.device)
    key_norm = (record.k.norm(dim=-1).cumsum(-1) / seen).repeat_interleave(num_heads // record.k.shape[1], dim=1)

    entropy_of = attrgetter("entropy")

    def entropies(query: float, key: float = 1.0) -> Tensor:
        return _by_row(_scaled(record, query, key), counted, entropy_of)[0]

    laws = [partial(_exact_slope, record)] if isinstance(record.kernel, Softmax) else []
    entropy, negative, *exact = _by_row(record, counted, entropy_of, _negative_share, *laws)
    up, down = math.exp(_STEP), math.exp(-_STEP)
    by_query = (entropies(up) - entropies(down)) / (2 * _STEP)
    by_key = (entropies(1.0, up) - entropies(1.0, down)) / (2 * _STEP)
    swept = [entropy if factor == 1 else entropies(factor) for factor in factors]
    values = [query_norm, key_norm, entropy, by_query, by_key, *(exact or [entropy * torch.nan]), negative, *swept]
    known = [value.masked_fill(entropy.isnan(), torch.nan) for value in values]
    means = torch.stack([value.double().nanmean(-1) for value in known], dim=-1)
    return torch.stack([entropy, *known[:2]], dim=-1).cpu().numpy(), means.cpu().numpy()


def _by_row(
    record: LayerRecord, counted: Bool[Tensor, "B T"], *measures: Callable[[RowTile], Float[Tensor, "B H R"]]
) -> Float[Tensor, "measures B H T"]:
    """Numbers of each counted row, NaN elsewhere."""
    found = record.q.new_full((len(measures), *record.q.shape[:3]), torch.nan)
    for tile in row_tiles(record, counted):
        for own, measure in zip(found, measures, strict=True):
            own[..., tile.rows] = measure(tile).masked_fill(~tile.measured, torch.nan).to(own.dtype)
    return found


def _negative_share(tile: RowTile) -> Float[Tensor, "B H R"]:
    return tile.share(tile.weights.clamp_max(0).sum(-1)).neg()


def _scaled(record: LayerRecord, query: float, key: float = 1.0) -> LayerRecord:
    """The layer with all queries and all keys times a factor."""
    return replace(
        record,
        q=query * record.q,
        k=key * record.k,
        rotated_q=query * record.rotated_q,
        rotated_k=key * record.rotated_k,
    )


def _exact_slope(record: LayerRecord, tile: RowTile) -> Float[Tensor, "B H R"]:
    """- Cov_p(r a, s) of each row, where p is softmax of s = r a + b. Since ln p = s - const, s enters as ln p."""
    rotated = record.position is not None
    q, k = (record.rotated_q, record.rotated_k) if rotated else (record.q, record.k)
    rows = q[:, :, tile.rows]
    keys = k[:, :, : tile.weights.shape[-1]].repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (rows @ keys.mT).to(tile.weights.dtype) / math.sqrt(q.shape[-1])
    return -_covariance(tile.weights, scores, tile.weights.clamp_min(1e-30).log())


def _covariance(
    p: Float[Tensor, "*rows n"], x: Float[Tensor, "*rows n"], y: Float[Tensor, "*rows n"]
) -> Float[Tensor, "*rows"]:
    """Cov_p(x, y), from centered values."""
    centered = [value - (p * value).sum(-1, keepdim=True) for value in (x, y)]
    return (p * centered[0] * centered[1]).sum(-1)


def _losses(piece: Sequences, num_layers: int, factors: Sequence[float]) -> dict[tuple[int, float], np.ndarray]:
    """The loss of each sequence with the queries of a layer times a factor; with factor 1 for every layer alike."""
    scored = piece.known_batch().scored

    def loss(change: dict[int, Change] | None = None) -> np.ndarray:
        return by_sequence(losses(piece, scored, change)[0], scored.nonzero()[:, 0], len(scored))

    plain = loss()
    return {
        (layer, factor): plain if factor == 1 else loss({layer: scaled_queries(factor)})
        for layer in range(num_layers)
        for factor in factors
    }


def _frame_rows(by_row: np.ndarray, means: np.ndarray) -> list[dict[str, Any]]:
    rows = head_rows({name: means[..., i] for i, name in enumerate(_MEANS)})
    log_n = np.log(np.arange(1, by_row.shape[2] + 1).clip(2))
    for row in rows:
        row["sequences"] = len(means)
        entropy, *norms = np.moveaxis(by_row[:, row["head"]], -1, 0)
        for name, norm in zip(("query", "key"), norms, strict=True):
            row[f"{name}_spearman"] = _within_columns(entropy, norm)
            row[f"{name}_spearman_normalized"] = _spearman((entropy / log_n).ravel(), norm.ravel())
    return rows


def _sweep_rows(
    swept: np.ndarray, factors: Sequence[float], losses_at: Mapping[float, np.ndarray]
) -> list[dict[str, Any]]:
    at_one = factors.index(1.0)
    loss = np.array([losses_at.get(factor, np.full(len(swept), np.nan)) for factor in factors]).T
    rows = []
    for head in range(swept.shape[1]):
        for i, factor in enumerate(factors):
            values = {"entropy": swept[:, head], "loss": loss}
            found: dict[str, np.ndarray] = {}
            for name, own in values.items():
                found |= {name: own[:, i], f"{name}_change": own[:, i] - own[:, at_one]}
            rows.append({"head": head, "factor": factor} | mean_row(found, errors=("loss_change",)))
    return rows


def _spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    known = ~(np.isnan(x) | np.isnan(y))
    return _within_columns(x[known][:, None], y[known][:, None])


def _within_columns(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation of the ranks that values have in their own column, pooled over columns; None if either never
    varies in its column, up to rounding."""
    xy = xx = yy = 0.0
    for column in range(x.shape[1]):
        known = ~(np.isnan(x[:, column]) | np.isnan(y[:, column]))
        if known.sum() < 2:
            continue
        ranks = [_ranks(values[known, column]) for values in (x, y)]
        xy, xx, yy = xy + ranks[0] @ ranks[1], xx + ranks[0] @ ranks[0], yy + ranks[1] @ ranks[1]
    return float(xy / math.sqrt(xx * yy)) if xx > 0 and yy > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Centered ranks. Values that differ only by rounding, next to the largest, are ties: their order is noise."""
    values = values.astype(np.float64)
    step = _ROUNDING * np.abs(values).max()
    if np.ptp(values) <= step:
        return np.zeros(len(values))
    ranks = rankdata(np.round(values / step))
    return np.asarray(ranks - ranks.mean())
