"""The figure, the tables and the words of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparsity_lab.analysis.style import GRAY, INK, PALETTE, draw_cells, styled
from sparsity_lab.recipes.kernel_face_off.arms import FAR, FARTHEST, SHORTEST, TRAINED, K
from sparsity_lab.recipes.kernel_face_off.claims import by_run
from sparsity_lab.recipes.kernel_face_off.measure import COSTED
from sparsity_lab.studies.evidence import Evidence

__all__ = ["NOTES", "QUESTION", "figure", "ranking", "tables"]

QUESTION = f"""
Decoders of two layers without positions that differ in nothing but their attention mechanism, and one in its
learning rate, learn the parity of 1 to {K} marked tokens among background, on lengths {SHORTEST} to {TRAINED}, with
the same data and steps, and are tested on k = {K} up to {FARTHEST}. What does each learn, how far does it hold, and
what does a training step cost beside softmax?
"""

NOTES = f"""
- **The field** is read off the registry: every registered kernel, as its defaults make it, or, where a kernel cannot
  be made without a choice, as its benchmarks do; but for three whose settings calibration chose (below). What leaks
  by choice takes no part that way. A kernel registered later takes part when the recipe is run again.
- **Equal parameters.** All models have the same weights but for those of the mechanism itself: a scale for each head
  in SSMax, two weights for each head in AdaptiveSparse.
- **Settings decide much.** The window sees 64 tokens and 4 sinks, adaptive selection 7 blocks of 16 (and all of the
  trained lengths), shifted groups are dense in use. They lose what they do not see, whatever they have learned.
- **A first run** (seeds 0 to 2, 400 steps, one rate of 2e-3, defaults, groups of a quarter) had four kernels that
  never learned: LSSAR, Reweighted, LogNSoftmax and ShiftedSparse. Softmax, AdaptiveSparse and SlidingWindow, which
  are alike on the trained lengths, failed with one seed, though their training loss was next to nothing: the steps
  were few. The reasons were looked for on seeds 100 and 101, and all was run again with twice the steps on seeds 3
  to 5, which nothing had been chosen by. The rules stayed; "with one learning rate for all" left the first statement.
- **Calibration** (seeds 100 and 101, not part of the result; normalized accuracy at k = {K} and length {TRAINED}).
  Steps are the same for all, settings and rates those with which both seeds learn: the first of 2e-3, 1e-3, 5e-4 and
  4e-3. Kernels that had learned with every seed of the first run kept 2e-3 and were not calibrated again.
  - *Softmax* had 1.00 on both seeds at 2e-3, in 400 steps as in 800.
  - *LogNSoftmax* had 1.00 and 0.51 in 800 steps at 2e-3, 1.00 and 1.00 at 1e-3, which is taken; in 400 steps, on seed
    100, 1.00 at 5e-4, 0.70 at 1e-3, 0.25 at 4e-3. It begins six times as sharp as EntropyInvariantSoftmax, which is
    the same but for the base of the logarithm: before training the scores of the last row have a standard deviation
    of 3.2 in the first layer, against 0.5 (and 1.0 of softmax), its entropy is 1.8 nats of at most 3.3, against 3.1.
    So it picks before it has learned what, and too large a rate leaves it there.
  - *LSSAR* with its default, p=15, did not learn on seed 100: 0.25 at 5e-4, 0.33 at 1e-3 and 0.38 at 4e-3 in 400
    steps, 0.25 at 2e-3 and 0.46 at 1e-3 in 800, 0.41 in 1600. With p=8 it had 1.00 at 1e-3 (800 steps, one seed);
    with p=3, the other value that the source reports, 0.99 on both seeds at 2e-3, which is taken.
  - *Reweighted* softmax with its default, p=15, had 0.26 at 1e-3 in 800 steps, with p=3 0.39 at 2e-3 and 0.66 at
    1e-3, with p=2 0.53 in 400 steps at 2e-3; with p=1 1.00 on both seeds, which is taken. Larger powers pick few
    keys, and parity has to count.
  - *ShiftedSparse* with groups of a quarter cannot learn this: it takes seven layers until the last token depends on
    the whole sequence, and there are two. Half is too little as well (0.23). With two thirds, the least that suffices
    for two layers, the task is learned inside groups, but with the dense attention of use it is at chance (at 1e-3
    1.00 of the answers are right where the groups are kept in use, 0.45 where not): what was learned is how
    to count in groups. With one group of the whole sequence, of which half of the heads see their own half, both
    seeds have 1.00; that is taken.
- **The task.** With RoPE softmax and linear attention fell to chance at {2 * TRAINED} already, for want of positions
  rather than of attention, so the models have none. AssociativeRecall was tried first: in 300 to 500 steps of 64
  sequences neither softmax, linear attention nor LSSAR learned it.
- **Seen after the runs**, so no claim. LSSAR and Reweighted each fell short with one seed, at length {SHORTEST} alone
  (0.89 and 0.85). Reach differs as much between seeds of one kernel as between kernels. Softmax itself has 0.80,
  -0.03 and 0.94 at {FAR} by seed: that alone leaves length scaling undecided with three seeds.
  In the first run speed and accuracy at {FAR} went against each other (rank correlation of -0.47, interval -0.69 to
  -0.25, over the 9 to 12 kernels that had learned); with all kernels and other seeds that is no longer decided.
- **One rate for all but one** is nearly equal, not fair: reach may differ with another, and was not tuned.
- **Clocks.** Speeds are ratios to a softmax decoder of the same size, in turn in one process on one thread, float32
  on a processor with other load; on a GPU they are others. Memory is counted, not sampled.
- **Full size** (8000 steps, 5 seeds): estimated at 15 hours on two cores. It has not been run.
"""


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
        drawn.legend(*memory.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=9)
        accuracy.set_yticks(range(len(order)), order)
        accuracy.set_ylim(len(order) - 0.5, -0.5)
    return drawn


def ranking(evidence: Evidence) -> list[str]:
    """The kernels, first those whose mean normalized accuracy over all lengths is largest."""
    means = evidence.rows.group_by("arm", maintain_order=True).agg(pl.col("normalized_accuracy").mean())
    return means.sort("normalized_accuracy", descending=True, maintain_order=True)["arm"].to_list()


def _draw_accuracy(ax: Axes, evidence: Evidence, order: list[str]) -> None:
    """A cell for each kernel and length, means over seeds."""
    lengths = evidence.rows["length"].unique().sort().to_list()
    means = evidence.rows.group_by("arm", "length").agg(pl.col("normalized_accuracy").mean())
    found = {(arm, length): value for arm, length, value in means.iter_rows()}
    values = np.array([[found.get((arm, length), np.nan) for length in lengths] for arm in order])
    draw_cells(ax, values.clip(0, 1), vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        color = "white" if value > 0.5 else INK
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    trained = sum(length <= TRAINED for length in lengths)
    ax.axvline(trained - 0.5, color=INK, linewidth=1.2)
    ax.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    ax.set_xlabel("length (left of the line: trained)")
    ax.set_title(f"normalized accuracy, k={K}, mean over seeds", fontsize=10)
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
    ax.axvline(1, color=GRAY, linewidth=0.9, zorder=0)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("times softmax (log scale)")
    ax.grid(axis="y", linewidth=0.4, color=GRAY, alpha=0.4)


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
        f"Reach, and normalized accuracy at k={K}, means over seeds": reaches,
        "Cost of a training step: tokens a second over softmax's, and the most memory of tensors at one time": costs,
    }
