"""Figure and tables of the page."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from sparsity_lab.analysis import look, styled
from sparsity_lab.studies import Evidence

from .arms import FEW, INTERPOLATED, LONGER, METHODS, PLAIN, TASKS, arm
from .lookup import chosen, context, mean, measures, values

__all__ = ["figure", "tables"]


def figure(evidence: Evidence) -> Figure:
    """Perplexity on text by context length, each method at its chosen rate."""
    names = {method: chosen(evidence, "text", method) for method in METHODS}
    names |= {method: arm("text", method) for method in (PLAIN, INTERPOLATED)}
    lengths = evidence.rows.filter(pl.col("arm").str.starts_with("text"))["length"].unique().sort().to_list()
    with styled():
        drawn = Figure(figsize=(7.2, 4.2), layout="constrained")
        ax = drawn.subplots()
        for index, (method, name) in enumerate(names.items()):
            found = {length: values(evidence, name, length) for length in lengths}
            means = [mean({seed: math.exp(loss) for seed, loss in one.items()}) for one in found.values()]
            own = look(index)
            dash = (0, own.dash) if isinstance(own.dash, tuple) else "-"
            ax.plot(lengths, means, color=own.color, marker=own.marker, linestyle=dash, label=method)
        for place in sorted({context(evidence, name) for name in names.values()} - {0}):
            ax.axvline(place, color="0.5", linewidth=0.8, linestyle=":")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        # Plain numbers: text stays text in the file, and powers of ten would be written as formulas.
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xticks(lengths, [str(length) for length in lengths])
        ax.set_xlabel("context length in bytes (dotted: trained)")
        ax.set_ylabel("perplexity, tested dense")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """What the page shows: perplexities by length, floor and retrieval, rates, costs."""
    best = {
        group: [chosen(evidence, group, method) for method in methods]
        for group, methods in (("text", tuple(METHODS)), (LONGER, FEW), ("markov", FEW), ("passkey", FEW))
    }
    idle = {task: [arm(task, PLAIN), arm(task, INTERPOLATED)] for task in TASKS}
    text = [*idle["text"], *best["text"], *best[LONGER]]
    return {
        "Perplexity on text by context length": _by_length(evidence, text, _perplexity),
        "Perplexity on text tested sparse and dense, at the extended context": _sparse_and_dense(
            evidence, [*best["text"], *best[LONGER]]
        ),
        "Loss above the floor, in nats, SparseMarkov": _by_length(
            evidence, [*idle["markov"], *best["markov"]], _plain("excess_loss")
        ),
        "Accuracy of the passkey's digits": _by_length(
            evidence, [*idle["passkey"], *best["passkey"]], _plain("accuracy")
        ),
        "Cost of training": _costs(evidence, [*best["text"], *best[LONGER]]),
        "Validation loss by rate, mean over seeds": _rates(evidence),
    }


def _by_length(evidence: Evidence, names: Sequence[str], cell: Callable[[pl.DataFrame], str | None]) -> pl.DataFrame:
    """Arms by lengths; each cell from the rows of all seeds."""
    rows = evidence.rows.filter(pl.col("arm").is_in(names))
    lengths = rows["length"].unique().sort()
    return pl.DataFrame(
        [
            {"arm": name, "attention tested": _tested(rows.filter(pl.col("arm") == name))}
            | {str(n): cell(rows.filter((pl.col("arm") == name) & (pl.col("length") == n))) for n in lengths}
            for name in names
        ],
        infer_schema_length=None,
    )


def _sparse_and_dense(evidence: Evidence, names: Sequence[str]) -> pl.DataFrame:
    """What was trained sparse, under both mechanisms; means over seeds."""
    rows = []
    for name in names:
        sparse, dense = measures(evidence, name, "sparse_loss"), values(evidence, name, context(evidence, name))
        if sparse:
            losses = {"tested sparse": sparse, "tested dense": dense}
            rows.append({"arm": name} | {title: fmean(map(math.exp, one.values())) for title, one in losses.items()})
    return pl.DataFrame(rows, schema={"arm": pl.String, "tested sparse": pl.Float64, "tested dense": pl.Float64})


def _tested(rows: pl.DataFrame) -> str | None:
    return ", ".join(rows["attention"].drop_nulls().unique().sort()) or None


def _perplexity(rows: pl.DataFrame) -> str | None:
    perplexity = rows["loss"].exp()
    return _with_error(perplexity, perplexity * rows["loss_se"])


def _plain(column: str) -> Callable[[pl.DataFrame], str | None]:
    return lambda rows: _with_error(rows[column], rows[f"{column}_se"])


def _with_error(found: pl.Series, errors: pl.Series) -> str | None:
    """Mean over seeds, and the mean of the standard errors over sequences, which all runs share."""
    if found.count() == 0:
        return None
    return f"{fmean(found.drop_nulls().to_list()):.3f} ± {fmean(errors.drop_nulls().to_list()):.3f}"


def _costs(evidence: Evidence, names: Sequence[str]) -> pl.DataFrame:
    own = evidence.measured.filter(pl.col("arm").is_in(names))
    means = own.group_by("arm").agg(
        pl.col("trainable_parameters").first().alias("trained weights"),
        pl.col("parameters").first().alias("all weights"),
        pl.col("step_ms").mean().alias("ms a step"),
        pl.col("attention_over_dense").mean().alias("time of attention over dense"),
        pl.col("peak_mib").max().alias("peak MiB of a step"),
    )
    return pl.DataFrame({"arm": names}).join(means, on="arm", how="left", maintain_order="left")


def _rates(evidence: Evidence) -> pl.DataFrame:
    """Methods by rates."""
    tuned = evidence.measured.filter(pl.col("arm").str.contains(", rate "))
    means = tuned.group_by("arm", maintain_order=True).agg(pl.col("validation_loss").mean(), seeds=pl.len())
    split = pl.col("arm").str.split(", rate ")
    long = means.select(split.list.get(0).alias("arm"), split.list.get(1).alias("rate"), "validation_loss")
    return long.pivot("rate", index="arm", values="validation_loss")
