"""The pictures of docs/concepts.md."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pages.markdown import boxed
from sparsity_lab.analysis.style import GRAY, INK, PALETTE, figure_svg, look, styled
from sparsity_lab.generators import (
    Anchored,
    Geometric,
    Law,
    Majority,
    Planted,
    PowerLaw,
    Recent,
    Stream,
    Uniform,
    Window,
)
from sparsity_lab.generators.token_view import legend_html, sequence_html
from sparsity_lab.settings import flatten

__all__ = ["pages"]

_LENGTH = 48


def pages(source: Path) -> dict[str, str]:
    made = {
        "markings": _markings(),
        "laws": _laws(),
        "lengths": _lengths(),
        "reach": _reach(),
        "coupling": legend_html() + _sample(Planted(k=3, marking="cue", coupled=True), 18),
        "dilution": _dilution(),
    }
    return {f"pictures/{name}.html": boxed(text) for name, text in made.items()}


def _sample(task: Planted, length: int) -> str:
    batch = task.sample(Stream(seed=0, name="concepts"), 0, 2, length)
    sequences = "".join(sequence_html(batch.view(row)) for row in range(len(batch)))
    return f"<p><code>{task}</code></p>{sequences}"


def _markings() -> str:
    base = Planted(k=3, rule=Majority(), locality=Recent(width=12))
    return legend_html() + "".join(
        _sample(base.replace(marking=marking), 20) for marking in ("token", "position", "cue")
    )


def _laws() -> str:
    """Sampled sets of every law at one length, and where a planted token is to be expected."""
    ends: tuple[Law, ...] = (Uniform(), Recent(width=8), Anchored(width=8))
    laws = (*ends, Window(width=8), Geometric(scale=6.0), PowerLaw(alpha=1.5))
    with styled():
        figure = Figure(figsize=(8.6, 4.6), layout="constrained")
        for ax, law in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, laws, strict=True):
            _draw_sets(ax, law, _LENGTH)
            ax.set_title(_full(law), fontsize=9.5, loc="left")
        figure.supxlabel("place in the sequence (the query follows the last)", fontsize=9.5)
        figure.supylabel("sampled sequence", fontsize=9.5)
        return figure_svg(figure, "Ten sampled sets of three places under each locality law")


def _lengths() -> str:
    """The same law at two lengths: what changes in extrapolation."""
    with styled():
        figure = Figure(figsize=(8.6, 2.9), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, law in zip(axes, (Recent(width=8), Uniform()), strict=True):
            for length, color in ((24, PALETTE[0]), (96, PALETTE[1])):
                task = Planted(k=3, locality=law)
                marginal = task.truth(length).position_law.order_pmf().sum(axis=0)[1:-1]
                distance = np.arange(length, 0, -1)
                ax.plot(distance, marginal, color=color, drawstyle="steps-mid", label=f"length {length}")
            ax.set_xscale("log")
            ax.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
            ax.minorticks_off()
            ax.set_title(_full(law), fontsize=9.5, loc="left")
            ax.set_xlabel("distance from the query (tokens, log scale)")
        axes[0].set_ylabel("share of sequences with\na planted token there")
        axes[1].legend(fontsize=9)
        return figure_svg(figure, "Where planted tokens are at two lengths, by law")


def _full(law: Law) -> str:
    """The law with all its fields, defaults included."""
    return f"{law.kind}({', '.join(f'{name}={value:g}' for name, value in flatten(law).items())})"


def _draw_sets(ax: Axes, law: Law, length: int) -> None:
    task = Planted(k=3, locality=law)
    sources = task.sample(Stream(seed=1, name="concepts"), 0, 10, length).sources
    assert sources is not None
    rows = sources[:, -1].numpy()
    ax.hlines(np.arange(len(rows)), 1, length, color=GRAY, linewidth=0.6, alpha=0.5)
    ax.scatter(rows.flatten(), np.repeat(np.arange(len(rows)), rows.shape[1]), s=16, color=PALETTE[1], zorder=3)
    ax.set_xlim(0, length + 1)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _reach() -> str:
    """How a curve is read. Drawn, not measured."""
    lengths = np.array([8, 12, 16, 24, 32, 48, 64, 96, 128, 192])
    holds = 1 / (1 + (lengths / 150) ** 4)
    falls = 1 / (1 + (lengths / 62) ** 4)
    with styled():
        figure = Figure(figsize=(6.2, 3.4), layout="constrained")
        ax = figure.subplots()
        ax.axvspan(8, 24, color=GRAY, alpha=0.18, linewidth=0)
        ax.text(math.sqrt(8 * 24), 1.1, "trained lengths", ha="center", fontsize=9)
        for level, words in ((1.0, "Bayes"), (0.9, "threshold 0.9"), (0.0, "chance")):
            ax.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)) if level == 0 else (0, (6, 2)))
            beside = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
            ax.annotate(words, (1, level), va="center", fontsize=9, **beside)
        for index, (name, curve) in enumerate((("one model", falls), ("another", holds))):
            style = look(index)
            ax.plot(lengths, curve, color=style.color, marker=style.marker, label=name)
            reached = int(lengths[curve >= 0.9].max())
            ax.annotate(
                f"reach {reached}",
                (reached, 0.9),
                xytext=(reached * 0.8, 0.62 - 0.22 * index),
                fontsize=9,
                ha="right",
                arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.8},
            )
        ax.set_xscale("log")
        ax.set_xticks(lengths, [str(length) for length in lengths])
        ax.minorticks_off()
        ax.set_ylim(-0.08, 1.2)
        ax.set_xlabel("length (tokens, log scale)")
        ax.set_ylabel("normalized accuracy\n(0 = chance, 1 = Bayes)")
        ax.legend(loc=(0.02, 0.14), fontsize=9)
        return figure_svg(figure, "How reach is read off a curve")


def _dilution() -> str:
    """The mass k e^G / (k e^G + n - k) of k sources whose scores stand out by G."""
    lengths = np.geomspace(4, 4096, 60)
    with styled():
        figure = Figure(figsize=(6.2, 3.2), layout="constrained")
        ax = figure.subplots()
        for index, gap in enumerate((2.0, 4.0, 6.0, 8.0)):
            style = look(index)
            top = 3 * math.exp(gap)
            ax.plot(lengths, top / (top + lengths - 3), color=style.color, label=f"G = {gap:g}")
        ax.set_xscale("log")
        ax.set_xticks([8, 64, 512, 4096], ["8", "64", "512", "4096"])
        ax.minorticks_off()
        ax.set_ylim(0, 1.05)
        ax.set_xlabel("keys in the row (n, log scale)")
        ax.set_ylabel("attention on the\nthree sources")
        place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        ax.legend(title="gap of scores (nats)", fontsize=9, title_fontsize=9, **place)
        return figure_svg(figure, "Attention on three sources by the number of keys, for four score gaps")
