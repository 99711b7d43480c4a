"""``Measurement``: what a measure returns, numbers as a frame and one figure."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis.findings import titled
from sparsity_lab.analysis.style import figure_image
from sparsity_lab.settings.markup import details, element, join, table


def rows_frame(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a frame. A column without any value is one of numbers, so frames of several measures can be joined.

    >>> rows_frame([{"arm": "a", "low": None}]).schema["low"]
    Float64
    """
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.Null).cast(pl.Float64))


class Measurement(ABC):
    """Base of what measures return. A notebook shows the figure, and the summary below it."""

    @abstractmethod
    def frame(self) -> pl.DataFrame:
        """The numbers."""

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the figure; returns the axes."""

    @property
    @abstractmethod
    def finding(self) -> str:
        """What the figure shows, in one sentence made from the frame: its title, and its words for screen readers."""

    def figure(self) -> Figure:
        """The figure under its finding."""
        figure = self.plot().get_figure(root=True)
        assert isinstance(figure, Figure)
        return titled(figure, self.finding)

    def summary(self) -> pl.DataFrame:
        """The few numbers that the figure draws; by default the whole frame."""
        return self.frame()

    def __repr__(self) -> str:
        with pl.Config(
            tbl_rows=24, tbl_cols=-1, tbl_width_chars=160, float_precision=3, tbl_formatting="NOTHING",
            tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=40,
        ):  # fmt: skip
            return f"{type(self).__name__}\n{self.summary()}"

    def _repr_html_(self) -> str:
        summary = self.summary()
        image = element("div", figure_image(self.figure(), self.finding))
        return join([image, details("values", table(summary.columns, summary.iter_rows()))])
