"""``kernel_face_off``: every registered attention mechanism on one task, with equal steps: quality, reach, cost."""

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from sparsity_lab.analysis import mean_interval
from sparsity_lab.analysis.style import GREY, INK, PALETTE, styled
from sparsity_lab.benchmarks.measure import alternate
from sparsity_lab.benchmarks.memory import peak_memory
from sparsity_lab.generators import Mixture, Planted, Stream, Task
from sparsity_lab.kernels import Kernel, Softmax, Trace
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.settings import SettingError, kinds
from sparsity_lab.studies.arms import over_seeds
from sparsity_lab.studies.claim import Claim, Decision, judged
from sparsity_lab.studies.decisions import ABOVE_ZERO, held_above
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.recipe import Size, recipe
from sparsity_lab.studies.study import Study
from sparsity_lab.training import Evaluation, Run, RunConfig, Training, UniformLength
from sparsity_lab.training.optimise import threads_and_device

__all__ = ["kernel_face_off"]

SHORTEST, TRAINED, FAR, FARTHEST = 8, 24, 96, 384
K = 3
"""Planted tokens of the measured sequences; 1 to 3 are mixed in training, which makes the rule learnable."""
COSTED = {256: 8, 2048: 1}
"""Lengths of the training steps whose cost is measured, each with its number of sequences."""
LONG = max(COSTED)
FEWEST = 5  # kernels that must have learned for a rank correlation over kernels

LENGTH_SCALED = ("CosineSoftmax", "EntropyInvariantSoftmax", "LSSA", "LSSAR", "LogNSoftmax", "SSMax")


def competitors() -> dict[str, Kernel]:
    """Every registered mechanism by its kind: as its defaults make it, or, without such, as its benchmarks do."""
    return {kind: _competitor(cls) for kind, cls in kinds("kernel").items() if issubclass(cls, Kernel)}


def _competitor(cls: type[Kernel]) -> Kernel:
    try:
        return cls()
    except SettingError:
        return cls.benchmarked()[0]


def arms(size: Size) -> dict[str, list[RunConfig]]:
    steps, seeds, sequences = {"smoke": (1, 1, 4), "small": (400, 3, 256), "full": (8000, 5, 4096)}[size]
    tasks = tuple(Planted(k=k) for k in range(1, K + 1))
    smoke = size == "smoke"
    base = RunConfig(
        task=Mixture(tasks=tasks),
        model=Decoder.Config(d_model=8 if smoke else 64, num_heads=2 if smoke else 4, position=NoPE()),
        training=Training(
            steps=steps,
            batch_size=2 if smoke else 64,
            learning_rate=2e-3,
            curriculum=UniformLength(low=SHORTEST, high=TRAINED),
        ),
        evaluation=Evaluation(
            lengths=(SHORTEST, TRAINED, FAR) if smoke else (SHORTEST, 16, TRAINED, 48, FAR, 192, FARTHEST),
            sequences=sequences,
            conditions={f"k={K}": tasks[-1]},
        ),
    )
    return {
        kind: over_seeds(base.replace(model=base.model.replace(kernel=kernel)), range(seeds))
        for kind, kernel in competitors().items()
    }


def measure(run: Run) -> pl.DataFrame:
    """One row for each length of ``COSTED``: ``speed``, how many times as many tokens a second a training step takes
    as with softmax; ``peak_mib`` of that step, and ``memory``, the same over softmax's; and the number of weights."""
    config = run.config
    if not isinstance(config.model, Decoder.Config):
        raise SettingError("run.model", "a Decoder", config.model)
    kernels = Softmax(), config.model.kernel
    dense, own = (config.model.replace(kernel=kernel) for kernel in kernels)
    smoke = config.training.steps < 100
    rows = []
    with threads_and_device(config.training):
        for length, count in {16: 1}.items() if smoke else COSTED.items():
            steps = [_step_of(model, config.task, config.data_seed, count, length) for model in (dense, own)]
            for once in steps:
                once()
            _, _, ratio = alternate(steps[0], steps[1], rounds=1 if smoke else 5)
            of_dense, peak = (_peak(model, config.task, count, length) for model in (dense, own))
            rows.append(
                {
                    "length": length,
                    "kernel": str(config.model.kernel),
                    "speed": 1 / ratio,
                    "peak_mib": peak / 2**20,
                    "memory": peak / of_dense,
                    "parameters": sum(parameter.numel() for parameter in run.model().parameters()),
                }
            )
    return pl.DataFrame(rows)


def _step_of(model: Decoder.Config, task: Task, seed: int, count: int, length: int) -> Callable[[], None]:
    """A training step of an untrained model."""
    tokens = task.sample(Stream(seed=seed), 0, count, length).tokens
    return partial(_step, model.build(seed, task.vocabulary.size).train(), tokens)


@functools.cache
def _peak(model: Decoder.Config, task: Task, count: int, length: int) -> int:
    """Peak memory of a training step; it is the same for all seeds."""
    step = _step_of(model, task, 0, count, length)
    step()
    return peak_memory(step)


def _step(model: nn.Module, tokens: torch.Tensor) -> None:
    """Forward and backward, with every token a target and with the losses of the mechanism itself."""
    trace = Trace()
    logits = model(tokens, trace=trace, generator=torch.Generator().manual_seed(0))
    loss: torch.Tensor = sum(trace.losses, cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


# --- evidence. Which kernels there are is read off it, so that results outlive the registry they were made with.


def by_run(evidence: Evidence) -> pl.DataFrame:
    """One row for each run: ``arm``, ``seed``, ``learned``, ``reach``, ``censored``, the normalised accuracies
    ``at_trained`` and ``at_far``, and of the long step ``speed`` and ``memory``."""
    value = pl.col("normalised_accuracy")
    runs = evidence.rows.group_by("arm", "seed", maintain_order=True).agg(
        pl.col("learned", "reach", "censored").first(),
        at_trained=value.filter(pl.col("length") == TRAINED).first(),
        at_far=value.filter(pl.col("length") == FAR).first(),
    )
    costs = evidence.measured.filter(pl.col("length") == LONG).select("arm", "seed", "speed", "memory")
    return runs.join(costs, on=["arm", "seed"], how="left", maintain_order="left")


def seeds_of(runs: pl.DataFrame) -> list[pl.DataFrame]:
    """The runs of each seed, in order."""
    return runs.sort("seed", maintain_order=True).partition_by("seed", maintain_order=True)


def decide_learned(evidence: Evidence) -> Decision:
    """What share of the kernels learned."""
    runs = by_run(evidence)
    interval = mean_interval([float(part["learned"].mean()) for part in seeds_of(runs)])  # type: ignore[arg-type]
    never = runs.group_by("arm", maintain_order=True).agg(pl.col("learned").any()).filter(~pl.col("learned"))["arm"]
    detail = f"Never learned: {', '.join(never)}." if len(never) else "Each was learned with at least one seed."
    return Decision(judged(interval, above=0.75), interval, "of the kernels", detail)


def decide_spread(evidence: Evidence) -> Decision:
    """How far the reaches of kernels that learned lie apart."""
    found, words = [], []
    for part in seeds_of(by_run(evidence).filter(pl.col("learned"))):
        ranked = part.sort("reach", "arm")
        if ranked.height > 1:
            first, last = ranked.row(0, named=True), ranked.row(-1, named=True)
            found.append(math.log2(last["reach"] / first["reach"]))
            at_least = "at least " * last["censored"]
            words.append(f"{first['reach']} ({first['arm']}) to {at_least}{last['reach']} ({last['arm']})")
    interval = mean_interval(found)
    detail = f"By seed: {'; '.join(words)}." if words else ""
    return Decision(judged(interval, above=2.0), interval, "doublings", detail)


def decide_scaled(evidence: Evidence) -> Decision:
    """How much better than softmax the length-scaled kernels that learned hold."""
    found, names = [], set()
    for part in seeds_of(by_run(evidence).filter(pl.col("learned"))):
        of = dict(part.select("arm", "at_far").iter_rows())
        scaled = {name: of[name] for name in LENGTH_SCALED if name in of}
        if "Softmax" in of and scaled:
            found.append(statistics.fmean(scaled.values()) - of["Softmax"])
            names |= set(scaled)
    interval = mean_interval(found)
    detail = f"Of them learned: {', '.join(name for name in LENGTH_SCALED if name in names)}." if names else ""
    return Decision(judged(interval), interval, "normalised accuracy", detail)


def decide_price(evidence: Evidence) -> Decision:
    """The rank correlation over kernels of speed with the accuracy at ``FAR``."""
    found = []
    for part in seeds_of(by_run(evidence).filter(pl.col("learned")).drop_nulls(["speed", "at_far"])):
        speed, value = part["speed"].to_numpy(), part["at_far"].to_numpy()
        if part.height >= FEWEST and np.ptp(speed) > 0 and np.ptp(value) > 0:
            found.append(float(stats.spearmanr(speed, value).statistic))
    interval = mean_interval(found)
    detail = f"By seed: {', '.join(f'{one:.2f}' for one in found)}." if found else f"No seed with {FEWEST} kernels."
    return Decision(judged(mean_interval([-one for one in found])), interval, "rank correlation", detail)


def decide_speed(kind: str, evidence: Evidence) -> Decision:
    """Whether a kernel trains faster than softmax at the long length."""
    own = evidence.measured.filter(pl.col("arm") == kind).sort("length", "seed")
    interval = mean_interval(own.filter(pl.col("length") == LONG)["speed"].to_list())
    means = own.group_by("length", maintain_order=True).agg(pl.col("speed").mean())
    words = "; ".join(f"at {length} {speed:.2f}" for length, speed in means.iter_rows())
    return Decision(judged(interval, above=1.0), interval, "times as fast", f"Means: {words}." if words else "")


def _speed_claim(kind: str, words: str) -> Claim:
    return Claim(
        name=f"{words} is faster",
        statement=f"At {LONG} tokens a decoder with {words} trains faster than one with fused softmax.",
        source="this lab",
        rule=f"Tokens a second of a training step of one sequence of {LONG} tokens over softmax's, the median of "
        f"five pairs that take turns, by seed. {held_above(1)}",
        decide=partial(decide_speed, kind),
    )


CLAIMS = (
    Claim(
        name="most learn",
        statement="With one learning rate for all, more than three quarters of the kernels learn the task.",
        source="this lab",
        rule="Share of the kernels whose run learned (normalised accuracy of at least 0.9 at all trained lengths), "
        f"by seed. {held_above(0.75)}",
        decide=decide_learned,
    ),
    Claim(
        name="reach differs",
        statement="Kernels that learn equally well on short sequences differ in reach by more than four times.",
        source="this lab",
        rule="Doublings from the shortest to the longest reach among the kernels that learned, by seed; a reach at "
        f"the end of the grid counts as that. {held_above(2)}",
        decide=decide_spread,
    ),
    Claim(
        name="length scaling",
        statement=f"Kernels that scale scores with length hold better at {FAR} than softmax.",
        source="this lab, after what scaling scores with log n is made for (arXiv 2501.13428)",
        rule=f"Mean normalised accuracy at {FAR} of those of {', '.join(LENGTH_SCALED)} that learned, minus that of "
        f"softmax, by seed. {ABOVE_ZERO}",
        decide=decide_scaled,
    ),
    Claim(
        name="speed costs reach",
        statement=f"The faster a kernel trains at {LONG} tokens, the worse it holds at {FAR}.",
        source="this lab",
        rule=f"Over the kernels that learned (at least {FEWEST}), the rank correlation of speed with the normalised "
        f"accuracy at {FAR}, by seed. Held if the 95 % interval of the mean over seeds lies below 0, did not hold if "
        "it lies above or at 0, else not decided.",
        decide=decide_price,
    ),
    _speed_claim("Linear", "linear attention"),
    _speed_claim("SlidingWindow", "a window of 64"),
)


def figure(evidence: Evidence) -> Figure:
    """A line for each kernel, the best on top: quality by length, and cost."""
    order = ranking(evidence)
    with styled():
        drawn = Figure(figsize=(10.5, 0.33 * len(order) + 1.7), layout="constrained")
        accuracy, speed, memory = drawn.subplots(1, 3, sharey=True, width_ratios=(2.0, 1, 1))
        _draw_accuracy(accuracy, evidence, order)
        _draw_cost(speed, evidence, order, "speed", (0.125, 0.25, 0.5, 1, 2, 4, 8))
        speed.set_title("training: tokens a second", fontsize=10)
        _draw_cost(memory, evidence, order, "memory", (1, 1.25, 1.5, 2, 3, 4))
        memory.set_title("training: peak memory", fontsize=10)
        memory.legend(loc="lower right", fontsize=8.5, frameon=True, framealpha=0.9)
        accuracy.set_yticks(range(len(order)), order)
        accuracy.set_ylim(len(order) - 0.5, -0.5)
    return drawn


def ranking(evidence: Evidence) -> list[str]:
    """The kernels, first those whose mean normalised accuracy over all lengths is largest."""
    means = evidence.rows.group_by("arm", maintain_order=True).agg(pl.col("normalised_accuracy").mean())
    return means.sort("normalised_accuracy", descending=True, maintain_order=True)["arm"].to_list()


def _draw_accuracy(ax: Axes, evidence: Evidence, order: list[str]) -> None:
    """A cell for each kernel and length, means over seeds."""
    lengths = evidence.rows["length"].unique().sort().to_list()
    means = evidence.rows.group_by("arm", "length").agg(pl.col("normalised_accuracy").mean())
    found = {(arm, length): value for arm, length, value in means.iter_rows()}
    values = np.array([[found.get((arm, length), np.nan) for length in lengths] for arm in order])
    ax.imshow(values.clip(0, 1), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        colour = "white" if value > 0.5 else INK
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    trained = sum(length <= TRAINED for length in lengths)
    ax.axvline(trained - 0.5, color=INK, linewidth=1.2)
    ax.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    ax.set_xlabel("length (left of the line: trained)")
    ax.set_title(f"normalised accuracy, k={K}, mean over seeds", fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _draw_cost(ax: Axes, evidence: Evidence, order: list[str], column: str, ticks: Sequence[float]) -> None:
    """A dot for each kernel and length of a training step, mean over seeds."""
    for index, length in enumerate(COSTED):
        means = dict(
            evidence.measured.filter(pl.col("length") == length)
            .group_by("arm")
            .agg(pl.col(column).mean())
            .iter_rows()
        )
        places = [place for place, arm in enumerate(order) if arm in means]
        style: dict[str, Any] = {"color": PALETTE[index], "marker": "os"[index], "linestyle": ""}
        ax.plot([means[order[place]] for place in places], places, label=f"{length} tokens", **style)
    ax.axvline(1, color=GREY, linewidth=0.9, zorder=0)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("times softmax (log scale)")
    ax.grid(axis="y", linewidth=0.4, color=GREY, alpha=0.4)


def tables(evidence: Evidence) -> Mapping[str, pl.DataFrame]:
    reaches = (
        by_run(evidence)
        .group_by("arm", maintain_order=True)
        .agg(
            pl.col("learned").sum().alias("learned"),
            pl.when(pl.col("censored"))
            .then(pl.format("≥ {}", "reach"))
            .otherwise(pl.col("reach").cast(pl.String))
            .drop_nulls()
            .str.join(", ")
            .alias("reach by seed"),
            pl.col("at_trained").mean().alias(f"at {TRAINED}"),
            pl.col("at_far").mean().alias(f"at {FAR}"),
        )
    )
    costs = evidence.measured.group_by("arm", maintain_order=True).agg(
        pl.col("kernel").first().alias("as"),
        pl.col("parameters").first().alias("weights"),
        *(
            pl.col(column).filter(pl.col("length") == length).mean().alias(f"{words} at {length}")
            for column, words in (("speed", "speed"), ("peak_mib", "peak MiB"))
            for length in COSTED
        ),
    )
    return {
        f"Reach, and normalised accuracy at k={K}, means over seeds": reaches,
        "Cost of a training step: tokens a second over softmax's, and the most memory of tensors at one time": costs,
    }


NOTES = f"""
- **The field** is read off the registry: every registered kernel, as its defaults make it, or, where a kernel cannot
  be made without a choice (ShiftedSparse), as its benchmarks do. What leaks by choice takes no part that way. A
  kernel registered later takes part when the recipe is run again.
- **Equal parameters.** All models have the same weights but for those of the mechanism itself: a scale for each head
  in SSMax, two weights for each head in AdaptiveSparse.
- **Defaults decide much.** The window sees 64 tokens and 4 sinks, adaptive selection 7 blocks of 16 (and all of the
  trained lengths), shifted groups are dense in use. They lose what they do not see, whatever they have learned.
- **Calibration** (seed 100, not part of the result). Softmax and linear attention learn the mixture of parities in
  400 steps at a rate of 2e-3, with RoPE and without positions; LSSAR with p=15 does not, as in the other studies of
  this task. With RoPE both that learned fell to chance at {2 * TRAINED} already, for want of positions rather than of
  attention, so the models have none. AssociativeRecall was tried first: in 300 to 500 steps of 64 sequences neither
  softmax, linear attention nor LSSAR learned it.
- **One rate for all** is equal, not fair: a kernel that did not learn might with another.
- **Clocks.** Speeds are ratios to a softmax decoder of the same size, in turn in one process on one thread, float32
  on a processor; on a GPU they are others. Memory is counted, not sampled.
- **Seen after the runs.** Four kernels never learned. A power of 15 (LSSAR, Reweighted) picks few keys, and parity
  has to count. LogNSoftmax begins with scores about three times as large; EntropyInvariantSoftmax, which is the same
  but for the base of the logarithm, learned with every seed. Shifted groups of a quarter of the sequence need seven
  layers for the last token to depend on all of it, and there are two. Softmax failed with one seed, so the claim
  about length scaling rests on two seeds and has next to no power; other rates and seeds were not tried.
- **Full size** (8000 steps, 5 seeds): estimated at 15 hours on two cores. It has not been run.
"""

kernel_face_off = recipe(
    Study(
        name="kernel_face_off",
        title="Every kernel on one task: quality, reach, speed, memory",
        question=(
            "Decoders of two layers without positions that differ in nothing but their attention mechanism learn the "
            f"parity of 1 to {K} marked tokens among background, on lengths {SHORTEST} to {TRAINED}, with the same "
            f"data, steps and rate, and are tested on k = {K} up to {FARTHEST}. What does each learn, how far "
            "does it hold, and what does a training step cost beside softmax?"
        ),
        arms=arms,
        claims=CLAIMS,
        figure=figure,
        columns=("normalised_accuracy",),
        notes=NOTES,
        measure=measure,
        tables=tables,
    )
)
