"""Figure and tables of the page."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sparsity_lab.analysis import GRAY, INK, PALETTE, Look, styled
from sparsity_lab.studies import Evidence, line_style, panels

from .arms import NATIVE, TASKS, TEXT, dense
from .claims import learned
from .measure import DENSE, ORACLE, OWN, RANDOM, TOP_K, TOP_P, UNTRAINED, WINDOW

__all__ = ["figure", "tables"]

LOOKS = {
    ORACLE: Look(INK, "*", (1.5, 1.2)),
    TOP_K: Look(PALETTE[0], "o", ""),
    UNTRAINED: Look(PALETTE[5], "o", (5, 1.5)),
    TOP_P: Look(PALETTE[2], "^", ""),
    WINDOW: Look(PALETTE[1], "s", (6, 1.5, 1.5, 1.5)),
    RANDOM: Look(GRAY, "D", (3, 3)),
}
SCORES = "What selectors are after training on frozen dense runs, means over seeds, heads and layers"


def of_learned(evidence: Evidence) -> pl.DataFrame:
    """The measures of runs that learned."""
    keys = [{"arm": arm, "seed": seed} for arm in (*map(dense, TASKS), *NATIVE) for seed in learned(evidence, arm)]
    known = pl.DataFrame(keys, schema={"arm": pl.String, "seed": evidence.measured["seed"].dtype})
    return evidence.measured.join(known, on=["arm", "seed"], how="semi", maintain_order="left")


def figure(evidence: Evidence) -> Figure:
    """Quality against budget for each task, retained mass on text, and layers switched one by one."""
    measured = of_learned(evidence)
    with styled():
        drawn, axes = panels(5, columns=3, width=3.6, height=3.0)
        for ax, task in zip(axes, TASKS, strict=False):
            own = measured.filter(arm=dense(task), what="budget")
            _draw_budgets(ax, _above_dense(own) if task == TEXT else own, "loss" if task == TEXT else "accuracy")
            ax.set_title(task, fontsize=10)
            ax.set_ylabel("loss above dense, nats a byte" if task == TEXT else "accuracy")
        _draw_budgets(axes[3], measured.filter(arm=dense(TEXT), what="budget"), "mass")
        axes[3].set_title("text: dense attention that is kept", fontsize=10)
        axes[3].set_ylabel("share of the mass")
        _draw_layers(axes[4], measured)
        for ax in axes[:4]:
            ax.set_xlabel("pairs over those of dense attention")
        handles = [Line2D([], [], **line_style(one), label=name) for name, one in LOOKS.items()]
        handles.append(Line2D([], [], color=INK, linewidth=0.9, label="dense"))
        drawn.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=9)
    return drawn


def _above_dense(rows: pl.DataFrame) -> pl.DataFrame:
    """Losses less that of dense attention with the same seed."""
    full = rows.filter(choice=DENSE).select("seed", pl.col("loss").alias("full"))
    return rows.join(full, on="seed", maintain_order="left").with_columns(pl.col("loss") - pl.col("full"))


def _draw_budgets(ax: Axes, rows: pl.DataFrame, column: str) -> None:
    """Means over seeds at each setting, with a bar from the smallest to the largest."""
    for choice, style in LOOKS.items():
        value = pl.col(column)
        each = (
            rows.filter(choice=choice)
            .group_by("k", "p")
            .agg(pl.col("budget").mean(), middle=value.mean(), low=value.min(), high=value.max())
            .sort("budget")
        )
        ax.vlines(each["budget"], each["low"], each["high"], color=style.color, linewidth=1.0, alpha=0.5)
        ax.plot(each["budget"], each["middle"], **line_style(style) | {"linewidth": 1.4, "markersize": 4.5})
    full = rows.filter(choice=DENSE)[column]
    if len(full):
        ax.axhline(full.mean(), color=INK, linewidth=0.9, zorder=0)  # type: ignore[arg-type]
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _draw_layers(ax: Axes, measured: pl.DataFrame) -> None:
    """What is lost on each task with these layers switched."""
    marks = dict(zip(TASKS, ("o", "s", "^"), strict=True))
    named = measured.filter(what="layers")["layers"].unique().to_list()
    place = {layers: at for at, layers in enumerate(sorted(named, key=lambda one: (len(one), one)))}
    for index, task in enumerate(TASKS):
        own = measured.filter(arm=dense(task))
        full = own.filter(what="budget", choice=DENSE).select("seed", pl.col("quality").alias("full"))
        lost = own.filter(what="layers").join(full, on="seed").with_columns(lost=pl.col("full") - pl.col("quality"))
        means = lost.group_by("layers", maintain_order=True).agg(pl.col("lost").mean())
        at = [place[layers] for layers in means["layers"]]
        ax.plot(at, means["lost"], linestyle="", marker=marks[task], color=PALETTE[index], label=task)
    ax.set_xticks(list(place.values()), list(place))
    ax.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
    ax.set_title("layers switched to trained top-k", fontsize=10)
    ax.set_xlabel("layers")
    ax.set_ylabel("lost: accuracy, or nats a byte")
    ax.legend(fontsize=8.5)


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    measured = of_learned(evidence)
    made = {}
    for task in TASKS:
        arms = [dense(task), *NATIVE] if task == TEXT else [dense(task)]
        rows = measured.filter(pl.col("arm").is_in(arms) & (pl.col("what") == "budget"))
        names = pl.when(pl.col("choice") == OWN).then(pl.col("arm")).otherwise(pl.col("choice")).alias("choice")
        shown = ["loss"] if task == TEXT else ["accuracy"]
        made[f"{task.capitalize()}: quality and kept mass by budget, means over the seeds that learned"] = (
            rows.with_columns(names)
            .group_by("choice", "k", "p", maintain_order=True)
            .agg(pl.col("budget", *shown, "mass").mean(), smallest=pl.col(*shown).min(), largest=pl.col(*shown).max())
            .with_columns(pl.col("k").cast(pl.Int64))
        )
    layers = measured.filter(what="layers").with_columns(task=pl.col("arm").str.split(": ").list.first())
    by_layers = layers.group_by("task", "layers", maintain_order=True).agg(
        pl.col("budget", "accuracy", "loss").mean()
    )
    made["Layers switched to trained top-k, the others dense, means over the seeds that learned"] = by_layers
    scores = measured.filter(what="score").group_by("arm", "layer", maintain_order=True)
    columns = ("beta_1", "beta_2", "score_loss_before", "score_loss_after")
    made[SCORES] = scores.agg(pl.col(columns).mean())
    return made
