"""What ``swap_report`` found: numbers, a verdict, figures and a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparsity_lab.analysis.findings import titled
from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.analysis.lines import draw_curve, name_lines
from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.report.page import Section, page
from sparsity_lab.analysis.statistics import Interval, mean_interval
from sparsity_lab.analysis.style import GRAY, figure_svg, look, new_axes, styled
from sparsity_lab.settings import SettingError, counted
from sparsity_lab.settings.markup import Markup, element, join, table

AS_IT_IS = "as it is"
"""The model with its own attention."""

REWEIGHTED = "re-weighted"
"""The same, with its softmax weights re-weighted at test time."""

_CONFIDENCE = 0.95

Losses = Mapping[int, NDArray[np.float64]]
"""By length, (documents, targets) losses in nats; of the largest length, of all its positions."""


@dataclass(frozen=True, repr=False)
class SwapReport(Measurement):
    """What ``swap_report`` found.

    >>> found = swap_report(llama, torch.arange(400) % 8, [LSSA()], lengths=(8, 16))
    >>> found.lengths
    (8, 16)

    Attributes:
        model: class of the model.
        kernels: mechanism of each arm but ``AS_IT_IS``, in short form.
        lengths: of context, ascending.
        targets: S, how many tokens of each document are predicted.
        documents: how many.
        declared: the context that the model's config declares; None if it does not.
    """

    model: str
    kernels: Mapping[str, str]
    lengths: tuple[int, ...]
    targets: int
    documents: int
    declared: int | None
    _losses: Mapping[str, Losses]
    _seconds: Mapping[tuple[str, int], float]
    _bytes: Mapping[str, int]

    @property
    def arms(self) -> tuple[str, ...]:
        """The model as it is, and each mechanism."""
        return tuple(self._losses)

    def frame(self) -> pl.DataFrame:
        """One row per arm and length of context.

        Columns: ``arm``, ``length``, ``documents``, and ``loss`` (nats per target, mean over documents) with its 95 %
        interval ``low`` and ``high``. ``difference`` from the original model is paired by document. Its interval,
        ``_low`` and ``_high``, holds for all mechanisms of a length together (Bonferroni).
        ``seconds_per_1000_tokens`` is for a forward pass.
        """
        rows = []
        for arm in self.arms:
            for length in self.lengths:
                loss = mean_interval(list(self._by_document(arm, length)), _CONFIDENCE)
                row: dict[str, Any] = {"arm": arm, "length": length, "documents": loss.count, "loss": loss.estimate}
                row |= {"low": loss.low, "high": loss.high}
                difference = self.difference(arm, length)
                for end in ("estimate", "low", "high"):
                    name = "difference" if end == "estimate" else f"difference_{end}"
                    row[name] = None if arm == AS_IT_IS else getattr(difference, end)
                rows.append(row | {"seconds_per_1000_tokens": self._seconds[arm, length]})
        return rows_frame(rows)

    def summary(self) -> pl.DataFrame:
        """Losses, a row for each arm and a column for each length."""
        return self.frame().pivot("length", index="arm", values="loss")

    def positions(self) -> pl.DataFrame:
        """Loss by position within the largest context, in bins that double: ``arm``, ``first`` and ``last`` position
        (from 1, the number of tokens that are seen), ``loss``, ``low``, ``high``."""
        ends = [0, *(2**i for i in range(self.lengths[-1].bit_length()) if 2**i < self.lengths[-1]), self.lengths[-1]]
        rows = []
        for arm in self.arms:
            for first, last in pairwise(ends):
                one = mean_interval(list(self._losses[arm][self.lengths[-1]][:, first:last].mean(1)), _CONFIDENCE)
                row = {"arm": arm, "first": first + 1, "last": last, "loss": one.estimate}
                rows.append(row | {"low": one.low, "high": one.high})
        return rows_frame(rows)

    def cost(self) -> pl.DataFrame:
        """Time and memory of a forward pass at the largest length: ``arm``, ``seconds_per_1000_tokens``, ``peak_MiB``
        of tensors beyond the weights, and both as ``_ratio`` to the model as it is."""
        length = self.lengths[-1]
        seconds, space = self._seconds[AS_IT_IS, length], self._bytes[AS_IT_IS]
        return pl.DataFrame(
            {
                "arm": arm,
                "seconds_per_1000_tokens": self._seconds[arm, length],
                "time_ratio": self._seconds[arm, length] / seconds,
                "peak_MiB": self._bytes[arm] / 2**20,
                "memory_ratio": self._bytes[arm] / space,
            }
            for arm in self.arms
        )

    def difference(self, arm: str, length: int) -> Interval:
        """Loss of an arm minus that of the model as it is, mean over documents, with the interval of ``frame``.

        Raises:
            SettingError: no such arm or length.
        """
        if arm not in self.arms:
            raise SettingError("arm", "an arm", arm, self.arms)
        if length not in self.lengths:
            raise SettingError("length", f"one of {self.lengths}", length)
        pairs = self._by_document(arm, length) - self._by_document(AS_IT_IS, length)
        return mean_interval(list(pairs), 1 - (1 - _CONFIDENCE) / max(1, len(self.kernels)))

    @property
    def verdict(self) -> str:
        """What to do, in one or two sentences."""
        short, long = self.lengths[0], self.lengths[-1]
        found = {arm: self.difference(arm, long) for arm in self.arms if arm != AS_IT_IS}
        order = sorted(found, key=lambda arm: found[arm].estimate or 0.0)
        better = [arm for arm in order if found[arm].high is not None and (found[arm].high or 0.0) < 0]
        if better:
            cost = (
                "" if short == long else f" At {short:,} tokens it is {_change(self.difference(better[0], short))}."
            )
            return f"{better[0]} helps: at {long:,} tokens its loss is {_change(found[better[0]])}.{cost}"
        open_arms = [arm for arm in order if not found[arm].decided]
        if open_arms:
            best = open_arms[0]
            ends = _ends(found[best])
            return (
                f"Not decided: at {long:,} tokens the loss of {best} differs from the model as it is by {ends} nats "
                "a token, which holds 0. More documents would tell."
            )
        return (
            f"Keep the attention as it is: at {long:,} tokens the loss of every mechanism is higher; the least, with "
            f"{order[0]}, is {_change(found[order[0]])}."
        )

    def to_data(self) -> dict[str, Any]:
        """All numbers as plain data."""
        shown = ("model", "lengths", "targets", "documents", "declared", "verdict")
        frames = {"losses": self.frame(), "positions": self.positions(), "cost": self.cost()}
        facts = {name: getattr(self, name) for name in shown} | {"kernels": dict(self.kernels)}
        return facts | {name: frame.to_dicts() for name, frame in frames.items()}

    @property
    def finding(self) -> str:
        """The verdict."""
        return self.verdict

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss by length of context with its intervals; returns the axes."""
        frame = self.frame().with_columns(x=pl.col("length").cast(pl.Float64))
        with styled():
            ax = new_axes(5.8, 3.6) if ax is None else ax
            self._draw(ax, frame)
            length_axis(ax, self.lengths, None, "context (tokens, log scale)")
            low, high = ax.get_xlim()
            if self.declared is not None and low <= self.declared <= high:
                ax.axvline(self.declared, color=GRAY, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
                ax.set_title(f"declared context {self.declared:,}", fontsize=9, fontweight="normal", color=GRAY)
        return ax

    def plot_differences(self, ax: Axes | None = None) -> Axes:
        """Draw the difference of each mechanism from the model as it is, by length of context, with the intervals of
        ``frame``; returns the axes."""
        columns = {"loss": "difference", "low": "difference_low", "high": "difference_high"}
        frame = self.frame().with_columns(pl.col("length").cast(pl.Float64).alias("x"))
        frame = frame.with_columns(pl.col(own).alias(name) for name, own in columns.items())
        with styled():
            ax = new_axes(5.8, 3.6) if ax is None else ax
            ax.axhline(0, color=GRAY, linewidth=1, zorder=0)
            self._draw(ax, frame.filter(pl.col("arm") != AS_IT_IS))
            length_axis(ax, self.lengths, None, "context (tokens, log scale)")
            ax.set_ylabel(f"loss minus that of the model\n{AS_IT_IS} (nats a token)")
        return ax

    def plot_positions(self, ax: Axes | None = None) -> Axes:
        """Draw the loss by position within the largest context, with its intervals; returns the axes."""
        middle = ((pl.col("first") * pl.col("last")).cast(pl.Float64)).sqrt()
        frame = self.positions().with_columns(x=middle)
        with styled():
            ax = new_axes(5.8, 3.6) if ax is None else ax
            self._draw(ax, frame)
            ticks = frame["last"].unique().sort().to_list()
            length_axis(ax, ticks, None, f"position within {self.lengths[-1]:,} tokens (log scale)")
        return ax

    def write(self, path: Path | str, *, title: str | None = None) -> Path:
        """Write all of it as one HTML file that loads nothing from elsewhere; returns its path.

        Raises:
            SettingError: the file cannot be written.
        """
        sections = [
            Section("verdict", "Verdict", self._verdict_part()),
            Section("context", "Loss by length of context", self._losses_part()),
            Section("positions", "Loss by position", self._positions_part()),
            Section("cost", "Time and memory", self._cost_part()),
        ]
        text = page(title or f"{self.model}: attention swapped", sections)
        return write_whole(Path(path), text.encode(errors="backslashreplace"))

    def __repr__(self) -> str:
        size = f"{counted(self.documents, 'document')}, {counted(self.targets, 'target')} of each"
        head = f"SwapReport: {self.model}, {size}"
        return "\n".join([head, f"  {self.verdict}", super().__repr__().partition("\n")[2]])

    # --- inside

    def _by_document(self, arm: str, length: int) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self._losses[arm][length][:, -self.targets :].mean(1)
        return mean

    def _draw(self, ax: Axes, frame: pl.DataFrame) -> None:
        for index, arm in enumerate(self.arms):
            part = frame.filter(pl.col("arm") == arm)
            if part.is_empty():
                continue
            draw_curve(ax, part["x"], part["loss"], look(index), arm, low=part["low"], high=part["high"])
        ax.set_ylabel("loss (nats a token)")
        name_lines(ax)

    def _difference_finding(self) -> str:
        long = self.lengths[-1]
        each = (f"{arm} {_ends(self.difference(arm, long))}" for arm in self.arms if arm != AS_IT_IS)
        return f"Loss at {long:,} tokens minus that of the model as it is: {', '.join(each)}"

    def _position_finding(self) -> str:
        last = self.positions().filter(last=self.lengths[-1]).sort("loss")
        each = ", ".join(f"{arm} {loss:.3f}" for arm, loss in last.select("arm", "loss").iter_rows())
        return f"Loss of positions {last['first'][0]:,} to {last['last'][0]:,}: {each}"

    def _verdict_part(self) -> Markup:
        facts = [
            ("model", self.model),
            ("documents", self.documents),
            ("targets of each document", self.targets),
            ("declared context", self.declared),
            *((f"arm: {arm}", kernel) for arm, kernel in self.kernels.items()),
        ]
        return join([element("p", self.verdict, class_="lead"), table(["measured", "value"], facts)])

    def _losses_part(self) -> Markup:
        note = (
            f"The same {self.targets} last tokens of each document are predicted with every context. Bands are 95 % "
            "intervals of the mean over documents. Differences from the model as it is are paired by document; their "
            "intervals hold for all mechanisms of a length together."
        )
        shown = self.frame().drop("seconds_per_1000_tokens")
        head = [name.replace("_", " ") for name in shown.columns]
        pictures = element(
            "div",
            _picture(self.plot(), self.finding),
            _picture(self.plot_differences(), self._difference_finding()),
            class_="figures",
        )
        return join([element("p", note, class_="note"), pictures, table(head, shown.iter_rows())])

    def _positions_part(self) -> Markup:
        note = f"One reading of {self.lengths[-1]:,} tokens of each document; the first target sees one token."
        frame = self.positions()
        return join(
            [
                element("p", note, class_="note"),
                _picture(self.plot_positions(), self._position_finding()),
                table(frame.columns, frame.iter_rows()),
            ]
        )

    def _cost_part(self) -> Markup:
        frame = self.cost()
        note = (
            f"A forward pass of {self.lengths[-1]:,} tokens on this machine: median time, in which the arms took "
            "turns, and the most memory of tensors at a time beyond the weights."
        )
        head = [name.replace("_", " ") for name in frame.columns]
        return join([element("p", note, class_="note"), table(head, frame.iter_rows())])


def _picture(ax: Axes, finding: str) -> Markup:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return element("div", Markup(figure_svg(titled(figure, finding), finding)), class_="picture")


def _ends(one: Interval) -> str:
    return f"{one.estimate:+.3f} [{one.low:+.3f}, {one.high:+.3f}]".replace("-", "−")


def _change(one: Interval) -> str:
    """In words, of a difference from the model as it is."""
    if not one.decided:
        return f"not told apart from the model as it is ({_ends(one)} nats a token)"
    estimate, low, high = (abs(value or 0.0) for value in (one.estimate, one.low, one.high))
    side = "lower" if (one.estimate or 0.0) < 0 else "higher"
    return f"{estimate:.3f} [{min(low, high):.3f}, {max(low, high):.3f}] nats a token {side} than as it is"
