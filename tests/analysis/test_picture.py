"""The picture of a sweep: a PNG of the same bytes for the same results."""

from pathlib import Path

import polars as pl
import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import write_picture
from sparsity_lab.analysis.panels import panels_of, small_multiples
from sparsity_lab.settings import SettingError

FRAME = frame_of(
    *((f"a{seed}", {"task.k": 1}, [1.0, 1.0, 0.9, 0.8 - seed / 10]) for seed in range(3)),
    *((f"b{seed}", {"task.k": 2}, [1.0, 1.0, 0.5, 0.1]) for seed in range(3)),
)


def test_same_results_same_bytes(tmp_path: Path) -> None:
    first, second = (write_picture(FRAME, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first.startswith(b"\x89PNG")
    assert first == second
    assert write_picture(FRAME.filter(pl.col("task.k") == 2), tmp_path / "c.png").read_bytes() != first


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="path: cannot write"):
        write_picture(FRAME, tmp_path / "no" / "a.png")


def crossed(ks: int) -> pl.DataFrame:
    """k in 1 .. ks by two localities."""
    return frame_of(
        *(
            (f"{k}{law}0", {"task.k": k, "task.locality": law, "task.rule": "Parity()"}, [1.0, 1.0, 0.5, 0.1])
            for k in range(1, ks + 1)
            for law in ("Uniform()", "Recent(width=8)")
        )
    )


def test_too_many_arms_become_small_multiples() -> None:
    (panel,) = panels_of(crossed(3))
    small = small_multiples(panel)
    assert [one.by for one in small] == [("task.k",), ("task.k",)]
    assert [set(one.rows["task.locality"]) for one in small] == [{"Uniform()"}, {"Recent(width=8)"}]
    assert [name for one in small for name in ("Uniform", "Recent") if name in one.title] == ["Uniform", "Recent"]
    (panel,) = panels_of(crossed(2))
    assert small_multiples(panel) == [panel]
