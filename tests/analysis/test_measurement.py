"""What all measures return."""

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import (
    arm_table,
    attention_entropy,
    attention_sink,
    dilution,
    distractor_robustness,
    norm_sensitivity,
    planted_mass,
    retained_mass,
)
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.generators import Planted
from sparsity_lab.models import Decoder


def test_frames_with_and_without_values_can_be_joined() -> None:
    """Whether an interval is there depends on the data, and the schema does not."""
    without, given = rows_frame([{"arm": "a", "low": None}]), rows_frame([{"arm": "b", "low": 0.5}])
    assert pl.concat([without, given])["low"].to_list() == [None, 0.5]


@pytest.mark.parametrize(
    ("measure", "few", "options"),
    [
        (attention_entropy, 1, {}),
        (attention_sink, 1, {}),
        (planted_mass, 1, {}),
        (dilution, 1, {}),
        (norm_sensitivity, 1, {"factors": (2.0,)}),
        (distractor_robustness, 2, {"strengths": (1.0,)}),
        (retained_mass, 1, {"block_size": 4}),
    ],
    ids=lambda own: getattr(own, "__name__", ""),
)
def test_a_measure_has_one_schema_whatever_it_finds(
    measure: Callable[..., Any], few: int, options: dict[str, Any]
) -> None:
    """Too few sequences give no standard error."""
    task = Planted(k=2)
    model = Decoder(num_layers=1, num_heads=2, d_model=8).build(0, vocab_size=task.vocabulary.size)
    found, more = (measure(model, task, lengths=[8, 16], sequences=n, **options) for n in (few, 2 * few))
    assert found.frame().schema == more.frame().schema
    assert found.summary().schema == more.summary().schema


def test_a_table_of_arms_without_medians_goes_with_another() -> None:
    """Text has no declared optimum, so no normalized accuracy."""
    known = frame_of(("a0", {"task": "Planted(k=1)"}, [1] * 4))
    unknown = known.with_columns(pl.lit(None, pl.Float64).alias("normalized_accuracy"))
    tables = [arm_table(frame) for frame in (known, unknown)]
    assert tables[0].schema == tables[1].schema
