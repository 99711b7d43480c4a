"""The figure, the tables and the words of the page."""

import math
import textwrap

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparsity_lab.analysis import GRAY, draw_median, looks_of, name_lines, styled
from sparsity_lab.kernels import NormAwareLinear
from sparsity_lab.studies import Evidence, draw_seeds, means_by, panels

from .arms import AWARE, NAMES, PUBLISHED, TRAINED
from .claims import measured
from .measure import FACTORS, LIMIT

__all__ = ["QUESTION", "figure", "finding", "tables"]

QUESTION = """
In linear attention the norm of a query hardly matters, so a longer query does not look at fewer keys. The norm-aware
map takes the query's direction to a power λ (τ + tanh(c r)) that follows its norm r. As published c = 1, and trained
queries are so long that the power is constant. Here c is one over twice the root of the head size, which keeps them
where the power moves. Small decoders learn text byte by byte, with the same data and steps. In the trained models all
queries of a layer are made a little longer, and a little shorter. Does the entropy of attention fall with the norm,
and does it fall more than with plain linear attention?
"""

LOOKS = looks_of(NAMES)


def finding(evidence: Evidence) -> str:
    """By how much entropy falls with the query norm."""
    slopes = means_by(evidence.measured.filter(what="norms"), "arm", NAMES, "slope", 3)
    return f"Change of entropy as queries grow (nats per unit of ln r): {slopes}."


def figure(evidence: Evidence) -> Figure:
    """Slopes by seed, entropy against rescaled norms, and the norms beside the power that follows them."""
    with styled():
        drawn, (slopes, rescaled, norms) = panels(3, height=2.9)
        _draw_slopes(slopes, evidence)
        _draw_rescaled(rescaled, evidence)
        _draw_norms(norms, evidence)
    return drawn


def _draw_slopes(ax: Axes, evidence: Evidence) -> None:
    """A mark for each seed, and their mean."""
    for place, name in enumerate(NAMES):
        draw_seeds(ax, place, measured(evidence, name, "slope"), LOOKS[name])
    ax.axhline(0, color=GRAY, linewidth=0.9, zorder=0)
    ax.set_xlim(-0.6, len(NAMES) - 0.4)
    ax.set_xticks(range(len(NAMES)), [textwrap.fill(name, 9) for name in NAMES])
    ax.set_title("slope of the entropy: seeds, mean", fontsize=10)
    ax.set_ylabel("dH / d ln r (nats), queries inside")


def _draw_rescaled(ax: Axes, evidence: Evidence) -> None:
    """Median over seeds of the mean over layers, from the entropy at the norms learned."""
    rows = evidence.measured.filter(pl.col("what") == "rescaled")
    for name in NAMES:
        own = rows.filter(pl.col("arm") == name).group_by("seed", "factor").agg(pl.col("entropy").mean())
        if own.height:
            learned = pl.col("entropy").filter(pl.col("factor") == 1).first().over("seed")
            draw_median(ax, own.with_columns(pl.col("entropy") - learned), "factor", "entropy", LOOKS[name], name)
    ax.axhline(0, color=GRAY, linewidth=0.9, zorder=0)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(FACTORS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("all query norms, times (log scale)")
    ax.set_title("entropy with other norms", fontsize=10)
    ax.set_ylabel("change of entropy (nats)")
    name_lines(ax, 12)


def _draw_norms(ax: Axes, evidence: Evidence) -> None:
    """The power against c r, and where the trained queries lie: from the 5th to the 95th percentile."""
    most = 9.0
    kernel = NormAwareLinear()
    places = [most * step / 200 for step in range(201)]
    powers = [kernel.power * (kernel.tau + math.tanh(place)) for place in places]
    ax.plot(places, powers, color=GRAY, linewidth=1.4)
    rows = evidence.measured.filter(pl.col("what") == "norms")
    for name, height in ((AWARE, 2.4), (PUBLISHED, 1.9)):
        own = rows.filter(pl.col("arm") == name).select("r_5", "r_50", "r_95").mean()
        low, middle, high = own.row(0)
        if middle is not None:
            ax.plot([low, high], [height, height], color=LOOKS[name].color, linewidth=2)
            ax.plot([middle], [height], color=LOOKS[name].color, marker=LOOKS[name].marker)
    ax.axvline(LIMIT, color=GRAY, linewidth=0.9, linestyle=(0, (5, 2)))
    ax.set_xlim(0, most)
    ax.set_xlabel("c r (bars: 5th to 95th percentile)")
    ax.set_title("the power, and the norms learned", fontsize=10)
    ax.set_ylabel("power λ (τ + tanh(c r))")


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    found = evidence.measured
    norms = found.filter(pl.col("what") == "norms").group_by("arm", "layer", maintain_order=True)
    words = {
        "slope": "dH / d ln r (nats)",
        "rank": "rank correlation of H and r",
        "inside": f"share of c r below {LIMIT:g}",
        "r_5": "c r, 5 %",
        "r_50": "50 %",
        "r_95": "95 %",
    }
    rescaled = found.filter(pl.col("what") == "rescaled").group_by("arm", "factor", maintain_order=True)
    swept = rescaled.agg(pl.col("entropy").mean()).with_columns(pl.col("factor").cast(pl.String))
    return {
        f"Slope of the entropy, and the norms of queries at length {TRAINED}, means over seeds": norms.agg(
            pl.col(column).mean().alias(title) for column, title in words.items()
        ),
        "Entropy (nats) with all query norms of a layer times a factor, means over seeds, heads and layers": (
            swept.pivot("factor", index="arm", values="entropy")
        ),
    }
