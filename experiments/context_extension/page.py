"""Figure and tables of the page."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sparsity_lab.analysis import GRAY, draw_median, length_axis, looks_of, name_lines, styled
from sparsity_lab.studies import Evidence, draw_seeds, growths, means_by, panels

from .arms import BOTH, CALIBRATION_SEED, DENSE, INTERPOLATED, LONGER, LORA, PARENT, SHIFTED
from .claims import losses

__all__ = ["figure", "finding", "tables"]

MAIN = (PARENT, INTERPOLATED, DENSE, SHIFTED, LORA, BOTH)
NAMES = (*MAIN, LONGER)
LOOKS = looks_of(NAMES)


def finding(evidence: Evidence) -> str:
    """The loss of each method at four times the parent's context."""
    lengths = evidence.measured["length"].unique().sort()
    far = _comparable(evidence).filter(pl.col("length") == lengths[1])
    told = [name for name in MAIN if name != INTERPOLATED]
    return f"Loss at four times the context (nats a byte): {means_by(far, 'arm', told, 'loss', 3)}."


def figure(evidence: Evidence) -> Figure:
    """Loss by context length, and how far each method is from dense training."""
    with styled():
        drawn, (by_length, behind) = panels(2, columns=1, width=6.4, height=3.0)
        _draw_losses(by_length, evidence)
        _draw_behind(behind, evidence)
    return drawn


def _draw_losses(ax: Axes, evidence: Evidence) -> None:
    shown = _comparable(evidence)
    lengths = evidence.measured["length"].unique().sort().to_list()
    for name in MAIN:
        rows = shown.filter(pl.col("arm") == name)
        if rows.height:
            draw_median(ax, rows, "length", "loss", LOOKS[name], name)
    length_axis(ax, lengths, None, "context in bytes (log scale)")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:.3g}")
    ax.yaxis.set_minor_formatter("{x:.3g}")
    ax.set_title("loss, tested dense, median over common seeds", fontsize=10)
    ax.set_ylabel("nats a byte (log scale)")
    name_lines(ax)


def _draw_behind(ax: Axes, evidence: Evidence) -> None:
    """A mark for each seed, and their mean."""
    names = (SHIFTED, BOTH, LORA)
    dense = losses(evidence, DENSE)
    for place, name in enumerate(names):
        draw_seeds(ax, place, growths(dense, losses(evidence, name)), LOOKS[name])
    ax.axhline(0, color=GRAY, linewidth=0.9, zorder=0)
    ax.axhline(0.01, color=GRAY, linewidth=0.9, linestyle=(0, (5, 2)), zorder=0)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xticks(range(len(names)), names)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title("behind dense training at four times the context", fontsize=10)
    ax.set_ylabel("of the loss (dashed: 1 %)")


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Losses by context, and by rate for the calibration seed."""
    own = _comparable(evidence)
    rated = evidence.measured.filter(pl.col("arm").str.contains(", rate "))
    named = pl.col("arm").str.split(", rate ")
    lengths = evidence.measured["length"].unique().sort()
    at_long = rated.filter(pl.col("length") == lengths[1])
    return {
        "Loss (nats a byte) by context in bytes, tested dense, means over the seeds that all arms have": (
            _by_arm(own, "loss")
        ),
        "The same of what was trained sparse, tested sparse": _by_arm(own.drop_nulls("sparse_loss"), "sparse_loss"),
        "Weights that were trained": own.group_by("arm", maintain_order=True).agg(pl.col("trainable").first()),
        f"Loss at four times the context by learning rate, seed {CALIBRATION_SEED}, which no claim looks at": (
            at_long.select(named.list.get(0).alias("arm"), named.list.get(1).alias("rate"), "loss")
        ),
    }


def _comparable(evidence: Evidence) -> pl.DataFrame:
    """What is measured in the seeds that all arms have which have begun: texts of seeds differ by more than the arms.
    The run at the longer context has fewer seeds."""
    rows = evidence.measured.filter(pl.col("arm").is_in(NAMES))
    main = rows.filter(pl.col("arm").is_in(MAIN))
    counts = main.group_by("seed").agg(pl.col("arm").n_unique())
    common = counts.filter(pl.col("arm") == main["arm"].n_unique())["seed"].to_list()
    return rows.filter(pl.col("seed").is_in(common))


def _by_arm(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """Arms by contexts."""
    means = rows.group_by("arm", "length", maintain_order=True).agg(pl.len().alias("seeds"), pl.col(column).mean())
    return means.with_columns(pl.col("length").cast(pl.String)).pivot("length", index=["arm", "seeds"], values=column)
