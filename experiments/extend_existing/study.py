"""``extend_existing``: the comparison of LongLoRA on a model of ``transformers``, through ``extend``.

The parent is a Llama of bytes, trained here at a short context. ``measure`` takes its checkpoint through
``to_transformers`` and extends a copy by each method. ``context_extension`` asks the same of the lab's own decoder
and adapters; here the adapters, the training loop and the interpolation are those that a user of an existing model
has.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sparsity_lab.analysis import (
    GRAY,
    Replicates,
    by_replicate,
    draw_median,
    length_axis,
    looks_of,
    name_lines,
    paired,
    styled,
)
from sparsity_lab.generators import Stream, TextBytes
from sparsity_lab.interop import extend, to_transformers
from sparsity_lab.kernels import Kernel, ShiftedSparse, Softmax
from sparsity_lab.models import Decoder, DecoderModel
from sparsity_lab.studies import (
    Arm,
    Claim,
    Criterion,
    Evidence,
    MostSeeds,
    NormalMean,
    Outcomes,
    Size,
    Study,
    growths,
    means_listed,
    panels,
    seeded,
    shares_of_way,
)
from sparsity_lab.training import Evaluation, FixedLength, Run, RunConfig, Training

__all__ = ["study"]

PARENT = "parent"
DENSE, SHIFTED = "all weights, dense", "all weights, shifted"
LORA, LORA_DENSE = "LoRA, shifted", "LoRA, dense"
BOTH, BOTH_DENSE = "LoRA + both, shifted", "LoRA + both, dense"
NO_STEP = "interpolated, no step"
TIMES = 4
"""The new context over the parent's."""


@dataclass(frozen=True)
class Method:
    """How ``extend`` is called: what attends in training, the rank (None trains all weights), whether embeddings and
    norms are trained together with the low-rank maps, the learning rate, and whether there is any training."""

    kernel: Kernel
    rank: int | None
    whole: bool
    rate: float
    steps: bool = True


_GROUPS = ShiftedSparse(ratio=0.25)
METHODS = {
    NO_STEP: Method(Softmax(), None, False, 1e-3, steps=False),
    DENSE: Method(Softmax(), None, False, 1e-3),
    SHIFTED: Method(_GROUPS, None, False, 3e-4),
    LORA: Method(_GROUPS, 8, False, 3e-4),
    LORA_DENSE: Method(Softmax(), 8, False, 3e-3),
    BOTH: Method(_GROUPS, 8, True, 3e-4),
    BOTH_DENSE: Method(Softmax(), 8, True, 3e-3),
}


@dataclass(frozen=True)
class ExtendScale:
    """Sizes: of the parent, its training, and the training of each method."""

    layers: int
    d_model: int
    heads: int
    short: int
    parent_steps: int
    steps: int
    tokens: int
    documents: int
    seeds: int


# With groups of a quarter of the context, the last byte depends on all of it from seven layers on.
SCALES: dict[Size, ExtendScale] = {
    "smoke": ExtendScale(1, 16, 2, 16, 2, 1, 128, 2, 1),
    "small": ExtendScale(7, 64, 4, 64, 2000, 400, 2048, 64, 7),
    "full": ExtendScale(8, 256, 8, 256, 40_000, 1000, 65_536, 256, 7),
}


def arms(size: Size) -> dict[str, Arm]:
    """The parent alone: what is made of it is measured, since ``extend`` is no run."""
    scale = SCALES[size]
    parent = RunConfig(
        task=TextBytes(),
        model=Decoder(
            num_layers=scale.layers, num_heads=scale.heads, d_model=scale.d_model, mlp="swiglu", tied_head=True
        ),
        training=Training(
            steps=scale.parent_steps,
            batch_size=scale.tokens // scale.short,
            curriculum=FixedLength(length=scale.short),
            learning_rate=3e-3,
            checkpoint_every=200,
        ),
        evaluation=Evaluation(lengths=(scale.short,), sequences=scale.documents),
    )
    return {PARENT: Arm(seeded(parent), scale.seeds)}


def measure(run: Run) -> pl.DataFrame:
    """By ``method`` and ``length`` the ``loss`` (nats a byte) on the last bytes of the same held-out windows, tested
    dense, ``trained`` weights and ``passkey``; the parent comes with its own positions."""
    config = run.config
    scale = next(own for own in SCALES.values() if own.parent_steps == config.training.steps)
    decoder, context, seed = run.model(), TIMES * scale.short, config.data_seed
    assert isinstance(decoder, DecoderModel)
    parent = to_transformers(decoder, max_position_embeddings=scale.short)
    read, held_out = (
        config.task.sample(Stream(seed=own, name=name), 0, count, context).tokens
        for own, name, count in ((seed, "train", 4096), (0, "evaluation", scale.documents + 1))
    )
    # Windows of one byte more than the context, each from its own place.
    documents = [*torch.split(held_out.flatten(), context + 1)][: scale.documents]
    frames: list[pl.DataFrame] = []
    for method, how in METHODS.items():
        frame, trained = _extended(copy.deepcopy(parent), how, context, read.flatten(), documents, scale, seed)
        if not frames:
            frames.append(_named(frame.filter(when="before"), PARENT, 0))
        frames.append(_named(frame.filter(when="after"), method, trained))
    return pl.concat(frames)


def _extended(
    model: nn.Module, how: Method, context: int, read: Tensor, documents: list[Tensor], scale: ExtendScale, seed: int
) -> tuple[pl.DataFrame, int]:
    with tempfile.TemporaryDirectory() as folder:
        found = extend(
            model,
            context,
            read,
            documents,
            folder,
            kernel=how.kernel,
            rank=how.rank,
            whole=how.whole,
            steps=scale.steps if how.steps else 0,
            batch_size=max(1, scale.tokens // context),
            learning_rate=how.rate,
            documents=scale.documents,
            seed=seed,
        )
    return found.frame(), found.trained


def _named(frame: pl.DataFrame, method: str, trained: int) -> pl.DataFrame:
    own = pl.lit(method).alias("method"), "length", "loss", "passkey", pl.lit(trained, pl.Int64).alias("trained")
    return frame.select(*own)


def losses(evidence: Evidence, method: str) -> Replicates:
    """Loss at the new context by seed; empty without results."""
    found = evidence.measured
    at = (pl.col("method") == method) & (pl.col("length") == pl.col("length").max())
    return by_replicate(found.filter(at), "loss")


def _compared(evidence: Evidence, one: str, other: str) -> Outcomes:
    first, second = losses(evidence, one), losses(evidence, other)
    return Outcomes(growths(first, second), "of the loss", _means({one: first, other: second}))


def _closed(evidence: Evidence) -> Outcomes:
    alone, both, full = (losses(evidence, method) for method in (LORA, BOTH, SHIFTED))
    behind = {seed for seed, gap in paired(lambda a, b: a - b, alone, full).items() if gap > 0}
    shares = {seed: share for seed, share in shares_of_way(alone, both, full).items() if seed in behind}
    return Outcomes(shares, "of the gap", _means({LORA: alone, BOTH: both, SHIFTED: full}))


def _means(found: dict[str, Replicates]) -> str:
    common = set.intersection(*map(set, found.values()))
    shared = {name: {seed: one[seed] for seed in sorted(common)} for name, one in found.items()}
    return f"Mean losses over {len(common)} seeds: {means_listed(shared, 4)}." if common else ""


PAPER = "Chen et al., arXiv 2309.12307"
TESTED = "loss (nats a byte) at four times the parent's context, tested dense on the same held-out bytes"


def _claim(
    name: str, statement: str, source: str, numbers: Callable[[Evidence], Outcomes], how: str, rule: Criterion
) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=source,
        outcome=f"The {TESTED}: {how}",
        numbers=numbers,
        criterion=rule,
        arms=(PARENT,),
    )


CLAIMS = (
    _claim(
        "extend_shifted_within_1_percent",
        "All weights of an existing model, trained with shifted sparse attention, come within 1 % of the loss of "
        "dense training.",
        f"{PAPER}: +0.25, -0.25 and +0.5 % in perplexity",
        partial(_compared, one=DENSE, other=SHIFTED),
        "shifted over dense, minus 1.",
        NormalMean(below=0.01),
    ),
    _claim(
        "extend_lora_alone_behind",
        "With shifted sparse attention, LoRA alone is more than 1 % of the loss behind training all weights.",
        f"{PAPER}: perplexity 11.44 against 8.08",
        partial(_compared, one=SHIFTED, other=LORA),
        "LoRA on queries, keys, values and output over all weights, minus 1.",
        NormalMean(above=0.01),
    ),
    _claim(
        "extend_embeddings_and_norms_close_most",
        "Training embeddings and norms together with LoRA closes at least half of that gap.",
        f"{PAPER}: perplexity 8.12",
        _closed,
        "which share of the way from LoRA alone to all weights LoRA with embeddings and norms goes. A seed in which "
        "LoRA alone is not behind has no number.",
        MostSeeds(at_least=0.5),
    ),
    _claim(
        "extend_lora_and_both_shifted_within_1_percent",
        "With LoRA, embeddings and norms trained, shifted sparse training also comes within 1 % of dense training.",
        f"{PAPER}, which does not give it for this method",
        partial(_compared, one=BOTH_DENSE, other=BOTH),
        "shifted over dense, both with LoRA, embeddings and norms, minus 1.",
        NormalMean(below=0.01),
    ),
    _claim(
        "extend_matters",
        "Extending lowers the loss at the longer context by much more than the margin of 1 %.",
        "this lab; a control, since a rate that is too low leaves all methods alike",
        partial(_compared, one=DENSE, other=PARENT),
        "the parent as it is over dense training of all weights, minus 1.",
        NormalMean(above=0.05),
    ),
)


def finding(evidence: Evidence) -> str:
    """The losses at the new context of training all weights dense and shifted, of LoRA alone, and of the parent."""
    found = evidence.measured
    far = found.filter(pl.col("length") == found["length"].max())
    mean: dict[str, float] = dict(far.group_by("method").agg(pl.col("loss").mean()).iter_rows())
    return (
        f"Loss at {TIMES} times the context, in nats a byte: dense training {mean[DENSE]:.3f}, shifted sparse "
        f"training {mean[SHIFTED]:.3f}, the same of LoRA alone {mean[LORA]:.3f}, the parent {mean[PARENT]:.3f}."
    )


def figure(evidence: Evidence) -> Figure:
    """Loss by length of context: trained with dense attention, and with shifted sparse attention."""
    looks = looks_of([PARENT, *METHODS])
    groups = {
        "trained with dense attention": (PARENT, NO_STEP, DENSE, LORA_DENSE, BOTH_DENSE),
        "trained with shifted sparse attention": (PARENT, NO_STEP, SHIFTED, LORA, BOTH),
    }
    found = evidence.measured
    losses: list[float] = found["loss"].to_list()
    with styled():
        drawn, axes = panels(len(groups), height=3.4)
        for ax, (title, methods) in zip(axes, groups.items(), strict=True):
            for name in methods:
                draw_median(ax, found.filter(method=name), "length", "loss", looks[name], name.partition(",")[0])
            length_axis(ax, found["length"].unique().sort().to_list(), None, "context in bytes (log scale)")
            ax.set_title(title)
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:.3g}")
            ax.yaxis.set_minor_formatter("{x:.3g}")
            ax.set_ylim(min(losses) / 1.05, max(losses) * 1.05)
            ax.set_ylabel("nats a byte (log scale)")
            ax.grid(color=GRAY, alpha=0.2)
            name_lines(ax)
    return drawn


def tables(evidence: Evidence) -> Mapping[str, pl.DataFrame]:
    """Losses, weights that were trained, and keys that were told."""
    found = evidence.measured
    by_method = found.group_by("method", maintain_order=True)
    lengths = found["length"].unique().sort()
    at_new = found.filter(pl.col("length") == lengths.max()).group_by("method", maintain_order=True)
    mean = {str(n): pl.col("loss").filter(pl.col("length") == n).mean() for n in lengths}
    return {
        "Loss (nats a byte) by context in bytes, tested dense, means over seeds": by_method.agg(**mean),
        "Weights that were trained, and share of a hidden key's bytes told at the new context": at_new.agg(
            pl.col("trained").first(), pl.col("passkey").mean()
        ),
    }


study = Study(
    name="extend_existing",
    title="An existing model's context, extended by the methods of LongLoRA",
    question=(
        "A Llama of bytes is trained at a short context and exported as a model of transformers. "
        "`sparsity_lab.interop.extend` takes it to four times its context, with positions interpolated through its "
        "own rope settings. It trains all weights, LoRA by peft, or LoRA with whole embeddings and norms, with "
        "shifted sparse or dense attention. All are tested with dense attention on the same held-out bytes."
    ),
    arms=arms,
    claims=CLAIMS,
    primary=tuple(claim.name for claim in CLAIMS),
    figure=figure,
    finding=finding,
    columns=(),
    measure=measure,
    tables=tables,
)
