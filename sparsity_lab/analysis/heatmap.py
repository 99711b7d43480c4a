"""A heat map of a measure over two settings, at one length or at one multiple of the trained length."""

import textwrap
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import seaborn
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from sparsity_lab.analysis.findings import map_finding
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.pairing import drop_lengths
from sparsity_lab.analysis.runs import (
    Frames,
    Measure,
    arms_of,
    evaluation_rows,
    full_name,
    measure_named,
    pooled_by,
    short_name,
)
from sparsity_lab.analysis.style import GRAY, INK, figure_image, ink_on, new_axes, seaborn_plot, styled
from sparsity_lab.settings import SettingError
from sparsity_lab.settings.markup import element, number


@dataclass(frozen=True, repr=False)
class HeatMap(Measurement):
    """Medians over learned runs by two settings. Made by ``heat_map``.

    >>> found = heat_map(results, rows="task.k", columns="task.locality", length=16)
    >>> found.frame()["task.k"].to_list()
    [1, 2]

    Attributes:
        rows, columns: the two settings.
        measure: what is shown.
        at: the length or the multiple of the trained length, in words.
        pooled: settings other than the seeds in which runs of one cell differ.
    """

    rows: str
    columns: str
    measure: Measure
    at: str
    pooled: tuple[str, ...]
    _frame: pl.DataFrame
    _names: tuple[list[str], list[str]]

    def frame(self) -> pl.DataFrame:
        """One row per cell, empty cells included.

        Columns: the two settings, ``trained_length``, ``length``, ``runs``, ``judged``, ``learned``, ``median``,
        ``unlearned`` and ``state``. ``median`` is over the runs that learned or are not judged, and ``unlearned`` is
        the median over the others. ``state`` is ``"median"``, ``"none
        learned"``, ``"no such length"``, ``"no value"`` (of this measure) or ``"not run"``.
        """
        return self._frame

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw the heat map; returns the axes.

        Every cell shows its value and how many of its runs learned. Hatched: no run learned, and what these runs
        reached; empty with a dotted frame: not run.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            style: arguments for ``seaborn.heatmap`` (``cmap``, ``vmin``, ...).
        """
        names = self._names
        shape = (len(names[0]), len(names[1]))
        values = self._frame["median"].fill_null(np.nan).to_numpy().reshape(shape)
        cells = list(self._frame.iter_rows(named=True))
        limits = {"vmin": 0.0, "vmax": 1.0} if self.measure.unit.startswith(("0 =", "share")) else {}
        with styled():
            if ax is None:
                ax = new_axes(max(4.9, 0.8 + 1.25 * shape[1]), 1.3 + 0.6 * shape[0])
            arguments: dict[str, Any] = {"cmap": "cividis", "linewidths": 2, "linecolor": "none", **limits, **style}
            paints = None
            if np.isfinite(values).any():
                seaborn_plot(seaborn.heatmap, values, ax=ax, mask=~np.isfinite(values), cbar=False, **arguments)
                mesh: Any = ax.collections[-1]
                mesh.update_scalarmappable()
                paints = mesh.get_facecolors()
            for place, cell in enumerate(cells):
                x, y = place % shape[1], place // shape[1]
                if cell["state"] == "median" and paints is not None:
                    color = ink_on(paints[place])
                    _write(ax, x, y, cell, color)
                else:
                    _draw_empty(ax, x, y, cell)
            ax.set_xlim(0, shape[1])
            ax.set_ylim(shape[0], 0)
            ax.set_xticks(np.arange(shape[1]) + 0.5, [name.replace("(", "\n(") for name in names[1]], rotation=0)
            ax.set_yticks(np.arange(shape[0]) + 0.5, names[0], rotation=0)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
            ax.set_xlabel(self.columns.rpartition(".")[2])
            ax.set_ylabel(self.rows.rpartition(".")[2], rotation=0, ha="right")
            ax.set_title(self.title, loc="left", fontsize=9.5, fontweight="normal")
        return ax

    @property
    def finding(self) -> str:
        """The highest and the lowest cell, in one sentence: the title of the figure."""
        return map_finding(self._frame, self.rows, self.columns)

    @property
    def title(self) -> str:
        """What the cells show, in words."""
        pooled = "\n" + textwrap.fill(f"pooled over {', '.join(self.pooled)}", 58) if self.pooled else ""
        return f"median {self.measure.words} ({self.measure.unit})\n{self.at}{pooled}"

    def __repr__(self) -> str:
        cells = iter(self._frame.iter_rows(named=True))
        shown = [
            f"  {self.rows.rpartition('.')[2]}={row}, {column}: " + _cell_words(next(cells)).replace("\n", ", ")
            for row in self._names[0]
            for column in self._names[1]
        ]
        return "\n".join([f"HeatMap: {self.title}".replace("\n", ", "), *shown])

    def _repr_html_(self) -> str:
        return element("div", figure_image(self.figure(), self.finding))


def heat_map(
    results: pl.DataFrame | Frames,
    rows: str = "task.k",
    columns: str = "task.locality",
    measure: str = "normalized_accuracy",
    length: int | None = None,
    factor: float = 4,
    condition: str | None = None,
) -> HeatMap:
    """The median of ``measure`` over learned runs for each pair of two settings.

    >>> heat_map(results, rows="task.k", columns="task.locality", length=16).frame().height
    2

    Args:
        results: ``sweeps.Results``, or an evaluation frame.
        rows, columns: the two settings.
        length: the evaluated length to show. By default each cell shows the evaluated length that is nearest to
            ``factor`` times its largest trained one.
        condition: which evaluation condition; needed only if there are several.

    Raises:
        SettingError: an unknown column, measure or condition, a length that was not evaluated, or no rows.
    """
    frame = evaluation_rows(results, condition=condition, by=(rows, columns))
    shown = measure_named(measure, frame)
    if length is not None and length not in set(frame["length"]):
        known = [str(known) for known in sorted(frame["length"].unique())]
        raise SettingError("length", "an evaluated length", length, known)
    arms = arms_of(frame, (rows, columns))
    found = {tuple(arm.values.values()): arm for arm in arms}
    cells: list[dict[str, Any]] = []
    names = [
        {arm.values[axis]: short_name(full_name(arm.rows, axis)) for arm in arms_of(frame, axis)}
        for axis in (rows, columns)
    ]
    for row in names[0]:
        for column in names[1]:
            cell: dict[str, Any] = {
                rows: row,
                columns: column,
                "runs": 0,
                "judged": 0,
                "learned": 0,
                "state": "not run",
            }
            if (arm := found.get((row, column))) is not None:
                trained, beyond = drop_lengths(arm.rows, factor)
                at = beyond if length is None else length
                at_length = arm.counted_rows.filter(pl.col("length") == at)
                values = at_length[measure].drop_nulls()
                failed = arm.rows.filter((pl.col("length") == at) & ~pl.col("learned").fill_null(True))[measure]
                state = (
                    "median" if values.len()
                    else "none learned" if arm.judged and not arm.learned
                    else "no such length" if at_length.is_empty()
                    else "no value"
                )  # fmt: skip
                cell |= {"trained_length": trained, "length": at, "runs": arm.runs, "judged": arm.judged}
                cell |= {"learned": arm.learned, "median": values.median(), "unlearned": failed.median()}
                cell |= {"state": state}
            cells.append(cell)
    schema: dict[str, Any] = {
        rows: frame.schema[rows],
        columns: frame.schema[columns],
        **dict.fromkeys(("trained_length", "length", "runs", "judged", "learned"), pl.Int64),
        "median": pl.Float64,
        "unlearned": pl.Float64,
        "state": pl.String,
    }
    table = pl.DataFrame(cells, schema=schema, orient="row")
    labels = list(names[0].values()), list(names[1].values())
    return HeatMap(rows, columns, shown, _at_words(table, length, factor), pooled_by(arms), table, labels)


def _at_words(cells: pl.DataFrame, length: int | None, factor: float) -> str:
    if length is not None:
        return f"at length {length}"
    reached = cells.drop_nulls("length").select("trained_length", "length").unique()
    if reached.height == 1:
        trained, at = reached.row(0)
        return f"at length {at}, {number(at / trained, 0 if at % trained == 0 else 1)} x the trained {trained}"
    return f"at the evaluated length nearest to {factor:g} x the trained one"


def _cell_words(cell: dict[str, Any]) -> str:
    counts = f"{cell['learned']} of {cell['runs']} learned" if cell["judged"] else f"{cell['runs']} not judged"
    match cell["state"]:
        case "median":
            return f"{number(cell['median'])}\n{counts}"
        case "not run":
            return "not run"
        case "none learned":
            reached = "never learned" if cell["unlearned"] is None else f"reached {number(cell['unlearned'])}"
            return f"{reached}\n{counts}"
        case _:
            return f"{cell['state']}\n{counts}"


def _draw_empty(ax: Axes, x: int, y: int, cell: dict[str, Any]) -> None:
    dotted = cell["state"] == "not run"
    frame = {"linestyle": (0, (2, 2))} if dotted else {"hatch": "////"}
    with mpl.rc_context({"hatch.color": GRAY}):
        ax.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor="none", edgecolor=GRAY, **frame))
    _write(ax, x, y, cell, INK if dotted else "black", plate=not dotted)


def _write(ax: Axes, x: int, y: int, cell: dict[str, Any], color: str, plate: bool = False) -> None:
    # Words on hatching need a ground of their own.
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if plate else None
    ax.text(x + 0.5, y + 0.5, _cell_words(cell), ha="center", va="center", fontsize=9, color=color, bbox=box)
