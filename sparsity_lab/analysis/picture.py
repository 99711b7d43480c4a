"""The extrapolation curves of a sweep as one picture, for a README or a slide."""

import io
import textwrap
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis.extrapolation import extrapolation_curve
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.panels import panels_of, small_multiples
from sparsity_lab.analysis.runs import Frames, evaluation_rows
from sparsity_lab.analysis.style import looks_of, make_visible, styled


def write_picture(results: pl.DataFrame | Frames, path: Path | str, *, resolution: int = 130) -> Path:
    """Draw one panel of curves for each group of arms, under its finding, and write them as a PNG file.

    >>> write_picture(results, "curves.png").name
    'curves.png'

    Args:
        resolution: dots per inch.

    Raises:
        SettingError: no evaluated run, or a file that cannot be written.
    """
    rows = evaluation_rows(results, by=("condition",))
    panels = [one for panel in panels_of(rows) for one in small_multiples(panel)]
    curves = [extrapolation_curve(panel.rows, by=panel.by, measure=panel.measure) for panel in panels]
    looks = looks_of(*(curve.labels for curve in curves))
    with styled():
        figure = Figure(figsize=(6.6, 3.6 * len(panels)), layout="constrained")
        for ax, panel, curve in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, curves, strict=True):
            curve.plot(ax, looks=looks)
            ax.set_title(textwrap.fill(f"{panel.title}: {curve.finding}", 76), loc="left", pad=18, fontsize=10)
        buffer = io.BytesIO()
        make_visible(figure).savefig(buffer, format="png", dpi=resolution, metadata={"Software": None})
    return write_whole(Path(path), buffer.getvalue())
