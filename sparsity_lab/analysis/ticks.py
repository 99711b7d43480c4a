"""Tick labels that never touch each other, however narrow the axis becomes."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from matplotlib.axis import Axis
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import Formatter


class FittingLabels(Formatter):
    """Writes whole numbers on an axis, leaving out those that find no room at the axis's size when it is drawn.

    Args:
        keep: values whose labels come before others, after the two ends.
    """

    def __init__(self, keep: Sequence[float] = ()) -> None:
        self.keep = tuple(keep)

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of one value."""
        return f"{x:g}"

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """The labels of all ticks, empty where there is no room."""
        assert isinstance(self.axis, Axis)
        axes = self.axis.axes
        figure = axes.get_figure(root=True)
        assert figure is not None
        labels = [self(value) for value in values]
        font = self.axis.get_major_ticks(1)[0].label1.get_fontproperties()
        scale = figure.dpi / 72
        places = [axes.transData.transform((value, 1))[0] for value in values]
        widths = [_width(label, font) * scale for label in labels]
        gap = font.get_size_in_points() * scale * 0.6
        shown = fitting(places, widths, gap, [i for i, value in enumerate(values) if value in self.keep])
        return [label if i in shown else "" for i, label in enumerate(labels)]


@lru_cache(maxsize=1024)
def _width(label: str, font: FontProperties) -> float:
    """Of the label in points; a figure asks for the same labels each time it lays out or draws an axis."""
    return float(TextPath((0, 0), label, prop=font).get_extents().width)


def fitting(places: Sequence[float], widths: Sequence[float], gap: float, keep: Sequence[int] = ()) -> set[int]:
    """Which labels, centered at ascending ``places``, can stand side by side with ``gap`` between them.

    The ends and ``keep`` come first, then the others from the last down, where they still fit.
    """
    down = list(range(len(places)))[::-1]
    chosen: list[int] = []
    for i in dict.fromkeys([*down[:1], *down[-1:], *keep, *down]):
        row = sorted([*chosen, i])
        if all(places[b] - places[a] >= (widths[a] + widths[b]) / 2 + gap for a, b in pairwise(row)):
            chosen.append(i)
    return set(chosen)
