"""Frames: types of columns follow the fields, so frames of different runs go together, and others read them."""

from pathlib import Path

import altair
import polars as pl
import pytest
from training.small_runs import small_run

from sparsity_lab.generators import Planted, Recent
from sparsity_lab.models import ALiBi, Decoder, RoPE
from sparsity_lab.settings import column_types, flatten
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.training import RunConfig


def frame_of(folder: Path, *runs: RunConfig) -> pl.DataFrame:
    """The frame of runs that have not begun has its settings all the same."""
    return Results(folder, Sweep(name="frame", runs=runs)).frame("runs")


def test_an_optional_field_has_one_type_whatever_it_is(tmp_path: Path) -> None:
    without, with_one = (RunConfig(task=Planted(), model=Decoder(vocab_size=size)) for size in (None, 16))
    first, second = frame_of(tmp_path, without), frame_of(tmp_path, with_one)
    assert first.schema == second.schema
    assert first.schema["model.vocab_size"] == pl.Int64()
    assert pl.concat([first, second])["model.vocab_size"].to_list() == [None, 16]
    for name, frame in (("a", first), ("b", second)):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    assert pl.read_parquet(tmp_path / "*.parquet").height == 2


def test_frames_of_runs_of_other_kinds_go_together(tmp_path: Path) -> None:
    """Columns that one frame lacks are null; those that both have are of one type."""
    runs = [
        RunConfig(task=Planted()),
        RunConfig(task=Planted(locality=Recent(width=8)), model=Decoder(position=RoPE())),
        RunConfig(task=Planted(k=1), model=Decoder(position=(RoPE(), ALiBi()), num_layers=2), data_seed=3),
        RunConfig(task=Planted(), parent=RunConfig(task=Planted())),
    ]
    frames = [frame_of(tmp_path, run) for run in runs]
    together = pl.concat(frames, how="diagonal")
    assert together.height == 4
    for run, frame in zip(runs, frames, strict=True):
        assert frame.schema == {name: together.schema[name] for name in frame.columns}
        for name, value in flatten(run).items():
            assert frame[name].item() == value
    assert together.schema["task.locality.width"] == pl.Int64()
    assert together.schema["training.learning_rate"] == pl.Float64()
    assert together.schema["evaluation.lengths"] == pl.String()


def test_types_are_those_of_fields() -> None:
    types = column_types(RunConfig(task=Planted(locality=Recent(width=8))))
    assert types["parent"] is str
    assert types["adapter"] is str
    assert types["task.coupled"] is bool
    assert types["task.locality.width"] is int
    assert types["task.noise"] is float


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    sweep = Sweep(name="frames", runs=grid(small_run(), {"seed": [0, 1]}))
    return run_sweep(sweep, tmp_path_factory.mktemp("frames"), Serial())


@pytest.mark.parametrize("name", ["runs", "evaluation", "summary", "metrics", "timing"])
def test_pandas_arrow_and_altair_read_every_frame(results: Results, name: str) -> None:
    frame = results.frame(name)  # type: ignore[arg-type]
    pandas, arrow = frame.to_pandas(), frame.to_arrow()
    assert list(pandas.columns) == arrow.column_names == frame.columns
    assert len(pandas) == arrow.num_rows == frame.height > 0
    assert pl.from_arrow(arrow).equals(frame)  # type: ignore[union-attr]
    chart = altair.Chart(frame.rename({"data_seed": "seed"})).mark_point().encode(x="seed:Q", y="run:N")
    (data,) = chart.to_dict()["datasets"].values()
    assert [row["run"] for row in data] == frame["run"].to_list()
