"""The length axis that figures share: a tick at each length, the trained range shaded, the legend below."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from sparsity_lab.analysis.style import GRAY
from sparsity_lab.analysis.ticks import FittingLabels


@dataclass(frozen=True)
class TrainedRange:
    """Smallest and largest trained length over some arms or models.

    >>> TrainedRange(low=8, high=24).high
    24

    Attributes:
        same: whether all were trained on that range.
    """

    low: int
    high: int
    same: bool = True

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int] | None]) -> "TrainedRange | None":
        """The range over these (smallest, largest) pairs; None if none is known."""
        known = {one for one in ranges if one}
        if not known:
            return None
        return cls(min(low for low, _ in known), max(high for _, high in known), len(known) == 1)

    def holds(self, length: int) -> bool:
        """Whether the length is in the range."""
        return self.low <= length <= self.high

    def draw(self, ax: Axes, *, named: bool = True) -> None:
        """Shade it on a length axis, and name it above; a single length is a thin line."""
        width = 0 if self.low < self.high else 2
        ax.axvspan(self.low, self.high, color=GRAY, alpha=0.18, linewidth=width, zorder=0)
        if not named:
            return
        words = f"trained {self.low}–{self.high}" if self.low < self.high else f"trained {self.low}"
        ax.text(
            math.sqrt(self.low * self.high),
            1.015,
            words if self.same else f"{words} (differs by arm)",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
        )


def length_axis(
    ax: Axes, lengths: Iterable[int], trained: TrainedRange | None, label: str, *, named: bool = True
) -> None:
    """A log axis with a tick at each length and the trained range shaded, and ``named`` above the axes. To be called
    after all is drawn, for the limits are a little wider than the lengths whatever the artists are.

    >>> from matplotlib.figure import Figure
    >>> ax = Figure().add_subplot()
    >>> length_axis(ax, [8, 16, 32], TrainedRange(low=4, high=8), "length")
    >>> ax.get_xlabel()
    'length'
    """
    ticks = sorted(set(lengths))
    ends = [*ticks, *((trained.low, trained.high) if trained else ())]
    margin = max((max(ends) / min(ends)) ** 0.045, 1.05)
    if trained is not None:
        trained.draw(ax, named=named)
    ax.set_xscale("log")
    ax.set_xlim(min(ends) / margin, max(ends) * margin)
    inside = [length for length in ticks if trained is not None and trained.holds(length)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FittingLabels(keep=inside[-1:]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(label)
