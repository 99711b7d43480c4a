"""What a figure shows, in one sentence that is made from its frame: its title, and its words for screen readers."""

import textwrap

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis.style import styled
from sparsity_lab.settings.markup import number

_EACH = 4
"""Arms that are named one by one, at most."""


def curve_finding(frame: pl.DataFrame, words: str) -> str:
    """How far each arm holds, and what arms without a learned run reached at the largest trained length; of many arms
    the farthest and the shortest. Without an optimum, from where to where the measure goes.

    Args:
        frame: of an extrapolation curve.
        words: of the measure.
    """
    arms = frame.unique("arm", keep="first", maintain_order=True)
    learned = arms.filter(pl.col("reach").is_not_null())
    trained = frame.filter("trained").group_by("arm", maintain_order=True).last()
    failed = trained.filter((pl.col("judged") > 0) & (pl.col("learned") == 0)).drop_nulls("unlearned")
    if learned.is_empty() and failed.is_empty():
        return change_finding(frame, "length", "median", f"the {words}")
    holds = [_holds(row) for row in learned.sort("reach", "reach_at_least", descending=True).iter_rows(named=True)]
    short = [
        f"{row['arm']} was not learned ({row['unlearned']:.2f} at length {row['length']})"
        for row in failed.iter_rows(named=True)
    ]
    if len(holds) > _EACH:
        holds = [holds[0], f"{len(holds) - 2} arms lie between", holds[-1]]
    if len(short) > 1 and len(holds) + len(short) > _EACH:
        short = [f"{len(short)} arms were not learned"]
    return "; ".join([*holds, *short])


def _holds(row: dict[str, object]) -> str:
    return f"{row['arm']} holds to {row['reach']:g}{' or more' if row['reach_at_least'] else ''}"


def change_finding(frame: pl.DataFrame, x: str, y: str, words: str) -> str:
    """From where to where a measure goes between the ends of the axis, as means for each model and layer. Of many
    lines only two are told: the one that changes most and the one that changes least.

    >>> frame = pl.DataFrame({"arm": ["a", "a"], "length": [8, 16], "mass": [0.9, 0.4]})
    >>> change_finding(frame, "length", "mass", "the mass")
    'From length 8 to 16 the mass goes from 0.90 to 0.40 (a)'
    """
    known = frame.drop_nulls(y)
    if known.is_empty():
        return f"No values of {words}"
    keys = [name for name in ("arm", "layer") if name in frame.columns]
    means = known.group_by(*keys, x, maintain_order=True).agg(pl.col(y).mean()).sort(x, maintain_order=True)
    ends = means.group_by(keys, maintain_order=True).agg(first=pl.col(y).first(), last=pl.col(y).last())
    change = (pl.col("last") - pl.col("first")).abs()
    rows = ends.sort(change, descending=True, maintain_order=True).rows(named=True)
    low, high = (float(value) for value in known[x].sort()[[0, -1]])
    each = []
    for row in rows if len(rows) < 3 else (rows[0], rows[-1]):
        start = "" if low == high else f"from {number(row['first'])} to "
        line = f"{row['arm']}, layer {row['layer']}" if "layer" in keys else row["arm"]
        each.append(f"{start}{number(row['last'])} ({line})")
    place = f"At {x} {low:g}" if low == high else f"From {x} {low:g} to {high:g}"
    return f"{place} {words} {'is' if low == high else 'goes'} {' and '.join(each)}"


def map_finding(frame: pl.DataFrame, rows: str, columns: str) -> str:
    """The cell with the largest median and the one with the smallest; how many cells were not learned."""
    known = frame.drop_nulls("median").sort("median", descending=True, maintain_order=True)
    failed = frame.filter(pl.col("state") == "none learned").height
    rest = [f"{failed} of {frame.height} not learned"] if failed else []
    if known.is_empty():
        return "; ".join(rest) or "No values"
    ends = [known.row(0, named=True), *([known.row(-1, named=True)] if known.height > 1 else [])]
    words = [
        f"{name}: {cell[rows]}, {cell[columns]} ({cell['median']:.2f})"
        for name, cell in zip(("Highest", "lowest"), ends, strict=False)
    ]
    return "; ".join([*words, *rest])


def titled(figure: Figure, finding: str) -> Figure:
    """The figure with the finding as its title, and taller by the height of the title.

    >>> from matplotlib.figure import Figure
    >>> titled(Figure(), "The loss falls.").get_suptitle()
    'The loss falls.'
    """
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(finding, int(width * 10.8), break_on_hyphens=False)
    with styled():
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    figure.set_size_inches(width, height + 0.2 * len(lines) + 0.08)
    return figure
