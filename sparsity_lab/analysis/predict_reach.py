"""``predict_reach``: how a run fails at long lengths, predicted from sequences of its trained length alone.

A sequence of length l has the same k sources as one of the trained length l0, and l - k background tokens instead of
l0 - k. If all background tokens look alike, and places do not matter, then attention at length l is that at l0 with
every background key counted (l - k) / (l0 - k) times. So the run reads sequences of length l0, and every layer and
row repeats the background keys. The m-th of them appears floor((m + 1) w) - floor(m w) times, with w = (l - k) / (l0
- k). This sums to l - k. Its accuracy then is the forecast.

It foretells dilution: what too many keys do. Position schemes see trained indices alone, so what a run loses beyond
the forecast, the residue, measures what untrained positions do.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.analysis.attention.measure import each_layer, losses
from sparsity_lab.analysis.attention.subjects import Sequences, sequences_of, subjects_of
from sparsity_lab.generators import Batch
from sparsity_lab.kernels import Kernel
from sparsity_lab.models import Decoder, NoPE, PositionScheme
from sparsity_lab.models.block import Mix
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run

_POSITIONS = "positions are taken at trained indices: the residue is what untrained ones do"


def predict_reach(
    run: Run, lengths: Iterable[int] | None = None, *, sequences: int = 256, seed: int = 0
) -> pl.DataFrame:
    """The normalized accuracy of a run at long lengths, predicted from sequences of its longest trained length.

    >>> predict_reach(run, [16], sequences=16)["length"].to_list()
    [16]

    Args:
        run: of a task with one answer to each sequence, whose sources are known, such as ``Planted``.
        lengths: longer than the trained ones; by default the evaluated ones that are.
        sequences: of the trained length, which all forecasts read.
        seed: of these sequences.

    Returns:
        One row per length: ``length``, ``predicted`` (normalized accuracy), ``predicted_se``, ``measured`` (from the
        run's own evaluation, null without one), ``residue`` (predicted minus measured) and ``warning``. ``warning``
        is null for a run without positions.

    Raises:
        SettingError: the run did not learn its trained lengths, or a length is not above them. Or the task's sources
            are unknown, it scores several targets, or it has as many sources as tokens. Or the kernel's weights
            depend on positions.
    """
    (subject,) = subjects_of(run)
    decoder = subject.decoder()
    if not any(run.summary["learned"].to_list()):
        raise SettingError("run", "the run has not learned its training lengths")
    for kernel, block in zip(decoder.config.kernels, decoder.blocks, strict=True):
        if _minds_places(kernel.at_inference, decoder.config, block.kernel_params):
            raise SettingError("run", "a kernel whose weights do not depend on positions", str(kernel))
    trained = run.config.training.curriculum.range()[1]
    wanted = [length for length in run.config.evaluation.lengths if length > trained] if lengths is None else lengths
    task, found = run.config.task, []
    for length in wanted:
        if length <= trained:
            raise SettingError("lengths", f"longer than the trained {trained}", length)
        if task.sequence_length(length) - task.sequence_length(trained) != length - trained:
            raise SettingError("run", "a task that adds one background token per unit of length", str(task))
        ((_, pieces),) = sequences_of(subject, None, (trained,), sequences, seed)
        values = torch.cat([_right(piece, trained, length) for piece in pieces]).double().numpy()
        truth = task.truth(length)
        assert truth.chance_accuracy is not None
        assert truth.bayes_accuracy is not None
        span = truth.bayes_accuracy - truth.chance_accuracy
        found.append(
            {
                "length": length,
                "predicted": float(values.mean() - truth.chance_accuracy) / span,
                "predicted_se": float(values.std(ddof=1)) / np.sqrt(len(values)) / span,
            }
        )
    rows = run.evaluation.filter(pl.col("task") == str(task)).unique("length")
    plain = all(scheme == NoPE() for scheme in decoder.config.positions)
    return (
        pl.DataFrame(found, schema={"length": pl.Int64, "predicted": pl.Float64, "predicted_se": pl.Float64})
        .join(rows.select("length", measured="normalized_accuracy"), on="length", how="left", maintain_order="left")
        .with_columns(residue=pl.col("predicted") - pl.col("measured"))
        .with_columns(warning=pl.lit(None if plain else _POSITIONS, pl.String))
    )


def _minds_places(kernel: Kernel, config: Decoder, params: nn.Module | None) -> bool:
    """Whether the output of a row changes when the keys before it change places."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.num_heads, 257, config.head_dim)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    attend = partial(kernel.attend, training=False, params=params, query_start=256)
    order = torch.cat([torch.randperm(256, generator=generator), torch.tensor([256])])
    first, second = attend(q[:, :, -1:], k, v), attend(q[:, :, -1:], k[:, :, order], v[:, :, order])
    return not torch.allclose(first, second, rtol=1e-6, atol=1e-9)


def _right(piece: Sequences, trained: int, length: int) -> Bool[Tensor, " N"]:
    """Whether the answer to each sequence is right, with its background keys repeated."""
    batch = piece.known_batch()
    return losses(piece, batch.scored, each_layer(piece, _by_row, _repeated(batch, trained, length)))[1]


def _repeated(batch: Batch, trained: int, length: int) -> Int64[Tensor, "B K"]:
    """Places of keys, in order, with those of the background as often as a sequence of this length has them."""
    if batch.sources is None or bool((batch.scored.sum(1) != 1).any()) or batch.vocabulary is None:
        raise SettingError("run", "the task needs one answer per sequence, with known sources")
    sources = batch.sources[batch.scored]
    special = torch.tensor([role in ("special", "query", "cue") for role in batch.vocabulary.roles])[batch.tokens]
    counted = torch.zeros_like(special).scatter(1, sources.clamp(min=0), True)
    background = ~special & ~counted
    found = []
    for row in background:
        have = int(row.sum())
        if not have:
            raise SettingError("run", f"a sequence of length {trained} has no background tokens")
        weight = (have + length - trained) / have
        ends = ((torch.arange(have + 1, dtype=torch.float64) * weight) + 1e-9).floor().long()
        times = torch.ones(len(row), dtype=torch.int64)
        times[row] = ends.diff()
        found.append(torch.arange(len(row)).repeat_interleave(times))
    return torch.stack(found)


def _by_row(
    attend: Mix,
    scheme: PositionScheme,
    places: Int64[Tensor, "B K"],
    mix: Mix,
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G T D"],
    v: Float[Tensor, "B G T E"],
    gates: dict[str, Tensor] | None = None,
) -> Float[Tensor, "B H T E"]:
    """Every row on the repeated keys up to its own place. Its own index comes with a last key, which is masked."""
    if gates:
        raise SettingError("run", "the kernel has gates, which the prediction does not cover")
    rows = []
    for i in range(q.shape[2]):
        own = torch.cat([places, torch.full_like(places[:, :1], i)], dim=1)
        seen = own <= i
        seen[:, -1] = False
        keys, values = (x.gather(2, own[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])) for x in (k, v))
        position = scheme.kernel_position(own, q.shape[1], q.shape[3], q.dtype)
        at = own.shape[1] - 1
        rows.append(attend(q[:, :, i : i + 1], keys, values, query_start=at, key_mask=seen, position=position))
    return torch.cat(rows, dim=2)
