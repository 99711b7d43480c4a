"""The arms of a sweep in one table, for terminals and notebooks."""

import polars as pl

from sparsity_lab.analysis.extrapolation import extrapolation_curve
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.analysis.panels import panels_of
from sparsity_lab.analysis.runs import Frames, evaluation_rows


def arm_table(results: pl.DataFrame | Frames, measure: str = "normalized_accuracy") -> pl.DataFrame:
    """One row per arm: ``panel``, ``arm``, ``learned`` ("2/3" runs, or "not judged" without a declared optimum) and
    ``reach``. Columns named by a length hold the median of ``measure`` over learned runs. Empty if no run has been
    evaluated.

    >>> arm_table(results)["arm"].to_list()
    ['k=1', 'k=2']
    """
    frame = results if isinstance(results, pl.DataFrame) else results.frame("evaluation")
    if frame.is_empty():
        return pl.DataFrame(schema={"panel": pl.String, "arm": pl.String, "learned": pl.String, "reach": pl.String})
    rows = []
    for panel in panels_of(evaluation_rows(results, by=("condition",))):
        curve = extrapolation_curve(panel.rows, by=panel.by, measure=measure)
        values = curve.frame()
        for arm in curve.summary().iter_rows(named=True):
            own = values.filter(pl.col("arm") == arm["arm"])
            by_length = dict(zip(map(str, own["length"]), own["median"], strict=True))
            learned = f"{arm['learned']}/{arm['runs']}" if arm["judged"] else "not judged"
            rows.append(
                {"panel": panel.title, "arm": arm["arm"], "learned": learned, **by_length, "reach": arm["reach"]}
            )
    lengths = [str(length) for length in sorted(frame["length"].unique())]
    # Panels may be evaluated at different lengths.
    columns = ("panel", "arm", "learned", *lengths, "reach")
    return rows_frame({name: row.get(name) for name in columns} for row in rows)
