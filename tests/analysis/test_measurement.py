"""What all measures return."""

import polars as pl

from sparsity_lab.analysis.measurement import rows_frame


def test_frames_with_and_without_values_can_be_joined() -> None:
    """Whether an interval is there depends on the data, and the schema does not."""
    without, given = rows_frame([{"arm": "a", "low": None}]), rows_frame([{"arm": "b", "low": 0.5}])
    assert pl.concat([without, given])["low"].to_list() == [None, 0.5]
