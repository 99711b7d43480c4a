"""Loggers hear every logged step once, the evaluation and the end, and change nothing of a run."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.small_runs import small_run

from sparsity_lab.settings import SettingError
from sparsity_lab.training import CSVLogger, Logger, RunConfig, TensorBoardLogger, train


class Heard(Logger):
    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.others: list[tuple[str, str]] = []

    def on_step(self, config: RunConfig, values: Mapping[str, float]) -> None:
        self.steps.append((config.id, int(values["step"])))

    def on_evaluation(self, config: RunConfig, evaluation: pl.DataFrame, step: int | None) -> None:
        assert step is None
        assert evaluation["length"].to_list() == list(config.evaluation.lengths)
        self.others.append((config.id, "evaluation"))

    def on_finish(self, config: RunConfig, folder: Path) -> None:
        assert folder.name == config.id
        self.others.append((config.id, "finish"))


def test_what_is_heard_of_a_run_and_its_parent(tmp_path: Path) -> None:
    parent = small_run()
    child = small_run(data_seed=1, parent=parent)
    heard = Heard()
    run = train(child, tmp_path, loggers=[heard, Logger()])
    steps = run.metrics["step"].to_list()
    assert heard.steps == [(parent.id, step) for step in steps] + [(child.id, step) for step in steps]
    order = [(parent.id, "evaluation"), (parent.id, "finish"), (child.id, "evaluation"), (child.id, "finish")]
    assert heard.others == order
    train(child, tmp_path, loggers=[heard])  # nothing is left to do
    assert heard.others == [*order, (child.id, "finish")]
    assert len(heard.steps) == 2 * len(steps)


def test_a_run_has_the_same_bytes_with_loggers(tmp_path: Path) -> None:
    config = small_run()
    train(config, tmp_path / "plain")
    train(config, tmp_path / "logged", loggers=[CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")])
    for name in ("config.json", "metrics.parquet", "model.safetensors", "finished.json"):
        one, other = (tmp_path / folder / config.id / name for folder in ("plain", "logged"))
        assert one.read_bytes() == other.read_bytes()


class Stops(Logger):
    def on_step(self, config: RunConfig, values: Mapping[str, float]) -> None:
        if values["step"] >= 6:
            raise KeyboardInterrupt


def test_files_of_csv_hold_each_step_once_after_an_interruption(tmp_path: Path) -> None:
    config = small_run()
    config = config.replace(training=config.training.replace(checkpoint_every=5, log_every=1))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "out", loggers=[CSVLogger(tmp_path / "csv"), Stops()])
    run = train(config, tmp_path / "out", loggers=[CSVLogger(tmp_path / "csv")])
    steps = pl.read_csv(tmp_path / "csv" / run.id / "steps.csv")
    assert steps.columns == run.metrics.columns
    assert steps["step"].to_list() == run.metrics["step"].to_list()
    assert steps["loss"].to_list() == pytest.approx(run.metrics["loss"].to_list())
    evaluation = pl.read_csv(tmp_path / "csv" / run.id / "evaluation.csv")
    assert evaluation["accuracy"].to_list() == pytest.approx(run.evaluation["accuracy"].to_list())


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    run = train(small_run(), tmp_path / "out", loggers=[TensorBoardLogger(tmp_path / "board")])
    events = EventAccumulator(str(tmp_path / "board" / run.id)).Reload()
    losses = events.Scalars("training/loss")
    assert [one.step for one in losses] == run.metrics["step"].to_list()
    assert [one.value for one in losses] == pytest.approx(run.metrics["loss"].to_list())
    accuracy = events.Scalars("evaluation/trained/accuracy")
    assert [one.step for one in accuracy] == run.evaluation["length"].to_list()


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingError, match=r'expected the package tensorboard .pip install "sparsity-lab\[tensorb'):
        TensorBoardLogger(tmp_path)


DAMAGED = (b"\xff\xfe", b"step\n\0\n", b"step\nx\n", b"a,b\n1,2\n", b'step\n"1', b"step\n1,2\n")


@pytest.mark.parametrize("content", DAMAGED)
def test_a_file_that_the_logger_did_not_write_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "csv" / small_run().id / "steps.csv"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(SettingError, match=r"steps\.csv was not written by this logger"):
        train(small_run(), tmp_path / "runs", loggers=[CSVLogger(tmp_path / "csv")])
    assert file.read_bytes() == content


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("name", ["", "steps.csv", "evaluation.csv"])
def test_no_logger_writes_through_a_link(tmp_path: Path, logger: type[Logger], name: str) -> None:
    """Logs may go where the runs are, in a store from somebody else."""
    place, precious = tmp_path / "logs" / small_run().id, tmp_path / "precious"
    precious.mkdir()
    (precious / "kept").write_text("kept")
    (place / name).parent.mkdir(parents=True)
    (place / name).symlink_to(precious / "kept" if name else precious)
    if name and logger is TensorBoardLogger:
        train(small_run(), tmp_path / "runs", loggers=[logger(tmp_path / "logs")])  # whose files have other names
    else:
        with pytest.raises(SettingError, match="expected a folder without links"):
            train(small_run(), tmp_path / "runs", loggers=[logger(tmp_path / "logs")])
    assert {file.name: file.read_text() for file in precious.iterdir()} == {"kept": "kept"}
