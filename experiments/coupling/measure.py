"""What is measured on each run beside its evaluation: where in the answer and in the table errors are, and where
attention goes."""

from functools import partial

import polars as pl
import torch
from jaxtyping import Bool
from torch import Tensor

from sparsity_lab.analysis import planted_mass
from sparsity_lab.generators import Batch, Stream
from sparsity_lab.models import DecoderModel, Ignored
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run

from .arms import SLACK

__all__ = ["measure"]


def measure(run: Run) -> pl.DataFrame:
    """By length: accuracy of the last two targets (``end``) and of those before (``before``). With coupled IDs also
    the exact match when given ones are all ``SLACK`` higher, away from the end of the table where evaluation begins
    (``moved``), and the mass on the sources (``mass``), the mean over heads, in the layer with most at the longest
    trained length."""
    config = run.config
    lengths = config.evaluation.lengths
    trained = max(length for length in lengths if length <= config.training.curriculum.range()[1])
    found = pl.DataFrame([{"length": length, **_by_place(run, length)} for length in lengths])
    if isinstance(_model(run).config.coupling, Ignored):
        return found
    sequences = min(64, config.evaluation.sequences)
    heads = planted_mass(run, lengths=lengths, sequences=sequences, seed=config.evaluation.seed).frame()
    layers = heads.group_by("layer", "length").agg(pl.col("mass", "uniform").mean())
    most = layers.filter(pl.col("length") == trained).sort("mass", descending=True)["layer"][0]
    mass = layers.filter(pl.col("layer") == most).select("length", "mass", "uniform")
    return found.join(mass, on="length", how="left").sort("length")


def _by_place(run: Run, length: int) -> dict[str, float]:
    config, model = run.config, _model(run)
    stream = Stream(seed=config.evaluation.seed, name="analysis")
    batch = config.task.sample(stream, 0, config.evaluation.sequences, length)
    words = partial(stream.words, length=length, start=0, count=len(batch))
    ids = config.model.arranged_ids(words, batch.position_ids, training=False)
    right = _right(model, batch, ids).double()
    found = {"before": float(right[:, :-2].mean()), "end": float(right[:, -2:].mean())}
    if ids is None or isinstance(model.config.coupling, Ignored):
        return found
    moved = torch.where(ids > 0, ids + SLACK, 0)
    return found | {"moved": float(_right(model, batch, moved).all(1).double().mean())}


def _right(model: DecoderModel, batch: Batch, ids: Tensor | None) -> Bool[Tensor, "B targets"]:
    predicted, _ = model.predict(batch.tokens, ids, batch.scored)
    return (predicted == batch.targets[batch.scored]).view(len(batch), -1)


def _model(run: Run) -> DecoderModel:
    model = run.model()
    if not isinstance(model, DecoderModel):
        raise SettingError("run.model", "a Decoder", run.config.model)
    return model
