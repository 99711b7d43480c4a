"""What a training tells while it goes on: one protocol, with files of CSV and with TensorBoard.

Nothing of it is part of a run: its folder holds the same bytes with any loggers and without.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_lab.settings import SettingError, Shown, check_that, read_whole
from sparsity_lab.training.config import RunConfig
from sparsity_lab.training.files import first_link

_MOST_BYTES = 2**28


class Logger:
    """Told what happens to a run; a logger of one's own overrides what it wants to hear.

    What it raises ends the training, which goes on from its checkpoint in the next call.

    Example:
        >>> class Loud(Logger):
        ...     def on_step(self, config, values):
        ...         print(values["step"], values["loss"])
    """

    def on_step(self, config: RunConfig, values: Mapping[str, float]) -> None:
        """A logged step: the columns of the metrics by name, ``step`` among them. A run that was interrupted begins
        again at its checkpoint, so that steps after that come twice."""

    def on_evaluation(self, config: RunConfig, evaluation: pl.DataFrame, step: int | None) -> None:
        """The model has been measured: after the training the frame of ``Run.evaluation``, with ``step`` None; while
        it goes on, a validation after so many steps (``Training.validate_every``), with the same columns."""

    def on_finish(self, config: RunConfig, folder: Path) -> None:
        """The run is finished, and lies in this folder. Also where nothing was left to do."""


_EVENTS = ("on_step", "on_evaluation", "on_finish")


def check_loggers(loggers: object) -> None:
    """Raise ``SettingError`` if these are not loggers: a list of objects that have the methods of ``Logger``."""
    if isinstance(loggers, str) or not isinstance(loggers, Sequence):
        raise SettingError("loggers", "a list of loggers", loggers)
    for i, logger in enumerate(loggers):
        if isinstance(logger, type) or not all(callable(getattr(logger, event, None)) for event in _EVENTS):
            got = Shown(f"the class {logger.__name__}") if isinstance(logger, type) else logger
            raise SettingError(f"loggers[{i}]", f"an object with {', '.join(_EVENTS)}, as a Logger has", got)


def _place(folder: Path, config: RunConfig, name: str = "") -> Path:
    """Where a logger writes of a run, in a folder that may be a store from somebody else."""
    place = folder / config.id
    if link := first_link(place, place / name):
        raise SettingError("loggers", "a folder without links", Shown(str(link)))
    place.mkdir(parents=True, exist_ok=True)
    return place / name


class CSVLogger(Logger):
    """``<folder>/<id>/steps.csv``, ``validation.csv`` and ``evaluation.csv``, for each run.

    >>> logger = CSVLogger("logs")
    >>> logger.folder.name
    'logs'
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._begun: set[Path] = set()

    def on_step(self, config: RunConfig, values: Mapping[str, float]) -> None:
        self._append(_place(self.folder, config, "steps.csv"), [values])

    def on_evaluation(self, config: RunConfig, evaluation: pl.DataFrame, step: int | None) -> None:
        if step is None:
            evaluation.write_csv(_place(self.folder, config, "evaluation.csv"))
        else:
            rows = ({"step": step, **row} for row in evaluation.iter_rows(named=True))
            self._append(_place(self.folder, config, "validation.csv"), list(rows))

    def _append(self, file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows of one step to a file."""
        first, before = file not in self._begun, list[Mapping[str, Any]]()
        if first and file.is_file():
            # Of an interrupted run: what comes again now is not kept.
            content = read_whole(file, _MOST_BYTES)
            try:
                old = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
                before = [row for row in old if int(row["step"]) < rows[0]["step"]]
                whole = all(row.keys() == rows[0].keys() for row in old)
            except (csv.Error, KeyError, ValueError, TypeError):
                whole = False
            check_that(whole, "loggers", f"{file} was not written by this logger")
        with file.open("w" if first else "a", newline="", encoding="utf-8") as new:
            writer = csv.DictWriter(new, list(rows[0]))
            if first:
                writer.writeheader()
            writer.writerows([*before, *rows])
        self._begun.add(file)


class TensorBoardLogger(Logger):
    """Curves for TensorBoard in ``<folder>/<id>``: ``training/<measure>`` and ``validation/<length>/<measure>`` by
    step, and ``evaluation/<condition>/<measure>`` by length.

    >>> TensorBoardLogger("logs").folder.name
    'logs'

    Raises:
        SettingError: the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            expected = 'the package tensorboard (pip install "sparsity-lab[tensorboard]")'
            raise SettingError("tensorboard", expected, Shown(str(error))) from None
        self.folder, self._make = Path(folder), SummaryWriter
        self._writers: dict[str, Any] = {}

    def on_step(self, config: RunConfig, values: Mapping[str, float]) -> None:
        step = int(values["step"])
        for name, value in values.items():
            if name != "step":
                self._writer(config, step).add_scalar(f"training/{name}", value, step)

    def on_evaluation(self, config: RunConfig, evaluation: pl.DataFrame, step: int | None) -> None:
        writer = self._writer(config, step)
        measures = [name for name, kind in evaluation.schema.items() if kind == pl.Float64()]
        for row in evaluation.iter_rows(named=True):
            length = row["length"]
            curve, at = (f"evaluation/{row['condition']}", length) if step is None else (f"validation/{length}", step)
            for name in measures:
                if row[name] is not None:
                    writer.add_scalar(f"{curve}/{name}", row[name], at)

    def on_finish(self, config: RunConfig, folder: Path) -> None:
        if writer := self._writers.pop(config.id, None):
            writer.close()

    def _writer(self, config: RunConfig, step: int | None) -> Any:
        if config.id not in self._writers:
            # What an interrupted run wrote from this step on comes again.
            self._writers[config.id] = self._make(str(_place(self.folder, config)), purge_step=step)
        return self._writers[config.id]
