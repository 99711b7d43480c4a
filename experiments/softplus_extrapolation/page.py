"""The figure, the tables and the words of the page."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis import draw_level, looks_of, styled
from sparsity_lab.studies import Evidence, draw_by_length, panels, same_height

from .arms import FAR, HEADS, KERNELS, LSSAR_15, SOFTMAX, arm
from .claims import NEARLY, growth, positional_share

__all__ = ["QUESTION", "figure", "finding", "tables"]

QUESTION = """
A small decoder is trained on windows of 128 bytes of text and tested on windows of up to eight times that length, on
the same bytes. Does re-weighted softplus attention (LSSAR, p=15) keep its loss where softmax does not, and does it
need large heads? The model has a width of 128, so it has eight heads of 16, four of 32 or two of 64. How much of the
growth of the loss disappears if the same weights treat every longer distance as the largest trained one?
"""

LOOKS = looks_of(tuple(KERNELS))


def finding(evidence: Evidence) -> str:
    """By how much the loss grows with each kernel, for each size of heads."""
    each = []
    for kernel in KERNELS:
        grown = {head: growth(evidence, arm(kernel, head)) for head in HEADS}
        each.append(f"{kernel} " + ", ".join(f"{fmean(one.values()):+.0%}" if one else "–" for one in grown.values()))
    heads = ", ".join(map(str, HEADS))
    return f"Change of the loss at {FAR} times the trained length, with heads of {heads}: {'; '.join(each)}."


def figure(evidence: Evidence) -> Figure:
    """Loss by length for each size of heads, and what the growth is due to."""
    with styled():
        run = set(evidence.rows["arm"])
        shown = [head for head in HEADS if run & {arm(kernel, head) for kernel in KERNELS}]
        chart, axes = panels(len(shown) + 1, columns=2)
        for place, head in enumerate(shown):
            words = "loss (nats a byte)" if place % 2 == 0 else ""
            _draw(axes[place], evidence, head, words)
        same_height([ax for ax in axes[:-1] if ax.has_data()])
        _draw_shares(axes[-1], evidence)
    return chart


def by_length(evidence: Evidence) -> pl.DataFrame:
    """The losses that the claims rest on, in the form of ``Evidence.rows``."""
    trained = evidence.rows.select("run", "length", "trained", "learned")
    # The accounting has a loss that is called `trained` too.
    losses = evidence.measured.select("arm", "seed", "run", "length", "loss")
    return losses.join(trained, on=["run", "length"], how="left", maintain_order="left")


def _draw(ax: Axes, evidence: Evidence, head: int, words: str) -> None:
    rows = by_length(evidence)
    found = {name: rows.filter(pl.col("arm") == arm(name, head)) for name in KERNELS}
    known = {name: own for name, own in found.items() if not own.is_empty()}
    if known:
        draw_by_length(ax, known, LOOKS, title=f"heads of {head}", measure="loss", only_learned=False, words=words)


def _draw_shares(ax: Axes, evidence: Evidence) -> None:
    """The share of each seed, by arm. Where the loss hardly grows there is nothing to share."""
    names, places = [], []
    for place, head in enumerate(HEADS):
        for offset, kernel in ((-0.15, SOFTMAX), (0.15, LSSAR_15)):
            grown = growth(evidence, arm(kernel, head))
            if not grown or fmean(grown.values()) < NEARLY:
                continue
            shares = list(positional_share(evidence, arm(kernel, head)).values())
            style = LOOKS[kernel]
            ax.plot([place + offset] * len(shares), shares, style.marker, color=style.color, markersize=4)
        names.append(str(head))
        places.append(place)
    draw_level(ax, 1.0)
    ax.set_xticks(places, names)
    ax.set_xlabel("size of the heads")
    ax.set_ylabel("share of the growth (a seed each)")
    ax.set_title("lost to untrained distances", fontsize=10)


def tables(evidence: Evidence) -> Mapping[str, pl.DataFrame]:
    """Means over seeds, and the smallest and largest."""
    arms = evidence.measured["arm"].unique(maintain_order=True).to_list()
    parts = [f"{factor}x" for factor in (1, 2, 4, FAR)]
    losses = []
    for name in arms:
        own = evidence.measured.filter(pl.col("arm") == name)
        lengths = own["length"].unique().sort().to_list()
        spreads = [_spread(own.filter(pl.col("length") == length)["loss"].to_list()) for length in lengths]
        growths = _spread(list(growth(evidence, name).values()))
        losses.append({"arm": name} | dict(zip(parts, spreads, strict=True)) | {"growth": growths})
    columns = ("trained", "full", "clamped", "windowed")
    accounts = evidence.measured.drop_nulls("full")
    accounted = [
        {"arm": name} | {column: _spread(own[column].to_list()) for column in columns}
        for (name,), own in accounts.partition_by("arm", as_dict=True, maintain_order=True).items()
    ]
    return {
        "Loss (nats a byte) by length in trained ones, on the same bytes": pl.DataFrame(losses),
        f"Loss at {FAR}x on eight sequences: in trained windows, whole, with distances clamped, with windowed keys": (
            pl.DataFrame(accounted)
        ),
    }


def _spread(values: Sequence[float]) -> str | None:
    if not values:
        return None
    mean = f"{fmean(values):.3f}"
    return f"{mean} [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else mean
