"""Loggers of a sweep: told by every engine, where the runs are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from training.small_runs import small_run

from sparsity_lab.settings import SettingError
from sparsity_lab.sweeps import Engine, Processes, Serial, Sweep, run_sweep
from sparsity_lab.training import CSVLogger, Logger, RunConfig, train

PARENT = small_run()
SWEEP = Sweep(name="told", runs=[small_run(data_seed=1), small_run(data_seed=2, parent=PARENT)])


@pytest.mark.parametrize("engine", [Serial(), Processes(workers=2)], ids=lambda own: own.kind)
def test_every_run_and_parent_is_told_of(engine: Engine, tmp_path: Path) -> None:
    results = run_sweep(SWEEP, tmp_path / "out", engine, loggers=[CSVLogger(tmp_path / "csv")])
    assert results.failures == ()
    assert {place.name for place in (tmp_path / "csv").iterdir()} == {run.id for run in (*SWEEP.runs, PARENT)}
    metrics = results.frame("metrics")
    for run in SWEEP.runs:
        steps = pl.read_csv(tmp_path / "csv" / run.id / "steps.csv")
        kept = metrics.filter(run=run.id)
        assert steps["step"].to_list() == kept["step"].to_list()
        assert steps["loss"].to_list() == pytest.approx(kept["loss"].to_list())
        assert (tmp_path / "csv" / run.id / "evaluation.csv").is_file()


class Fails(Logger):
    def on_step(self, config: RunConfig, values: Mapping[str, float]) -> None:
        raise ConnectionError("the service is away")


def test_what_a_logger_raises_is_a_failure_of_the_run_and_the_next_call_goes_on(tmp_path: Path) -> None:
    results = run_sweep(Sweep(name="told", runs=[PARENT]), tmp_path, Serial(), loggers=[Fails()])
    assert [(failure.run.id, failure.reason) for failure in results.failures] == [
        (PARENT.id, "ConnectionError: the service is away")
    ]
    assert run_sweep(Sweep(name="told", runs=[PARENT]), tmp_path, Serial()).failures == ()


class Half:
    """One of three methods."""

    def on_step(self, config: RunConfig, values: Mapping[str, float]) -> None: ...


EXPECTED = "expected an object with on_step, on_evaluation, on_finish, as a Logger has"


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ([CSVLogger], f"loggers[0]: {EXPECTED}, got the class CSVLogger"),
        ([Logger(), Logger], f"loggers[1]: {EXPECTED}, got the class Logger"),
        ([Half()], f"loggers[0]: {EXPECTED}, got <"),
        ([print], f"loggers[0]: {EXPECTED}, got <built-in function print>"),
        ([None], f"loggers[0]: {EXPECTED}, got None"),
        (["csv"], f"loggers[0]: {EXPECTED}, got 'csv'"),
        (Logger(), "loggers: expected a list of loggers, got <"),
        (CSVLogger, "loggers: expected a list of loggers, got <class"),
        ("csv", "loggers: expected a list of loggers, got 'csv'"),
        (None, "loggers: expected a list of loggers, got None"),
    ],
)
def test_what_is_no_logger_is_refused_before_anything_is_written(loggers: Any, message: str, tmp_path: Path) -> None:
    for call in (
        lambda: train(PARENT, tmp_path / "none", loggers=loggers),
        lambda: run_sweep(SWEEP, tmp_path / "none", Serial(), loggers=loggers),
    ):
        with pytest.raises(SettingError) as error:
            call()
        assert str(error.value).startswith(message)
        assert not (tmp_path / "none").exists()


def test_a_logger_that_cannot_be_copied_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    logger = Logger()
    logger.call = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(SettingError) as error:
        run_sweep(SWEEP, tmp_path / "none", Processes(workers=1), loggers=[Logger(), logger])
    assert str(error.value).startswith(
        "loggers[1]: expected a logger that can be copied to the workers of Processes; Serial() takes any, got Logger"
    )
    assert not (tmp_path / "none").exists()
    run_sweep(Sweep(name="told", runs=[PARENT]), tmp_path / "out", Serial(), loggers=[logger])
