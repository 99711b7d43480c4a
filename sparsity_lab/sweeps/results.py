"""``Results``: the contents of a folder of runs, as one frame."""

import contextlib
import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import polars as pl

from sparsity_lab.generators import Task
from sparsity_lab.settings import (
    SettingError,
    Shown,
    check_that,
    column_types,
    counted,
    flatten,
    from_data,
    settings_in,
    with_each,
    with_shared_parts,
)
from sparsity_lab.settings.log import plain_logger
from sparsity_lab.settings.markup import Markup, details, element, join, table
from sparsity_lab.settings.texts import Row
from sparsity_lab.sweeps.sweep import Sweep, lineage
from sparsity_lab.training import EVALUATION_SCHEMA, RunConfig, Status, run_labels, store, summarize
from sparsity_lab.training.config import TRAINED_CONDITION
from sparsity_lab.training.environment import devices_of, devices_words
from sparsity_lab.training.files import DamagedFile, read_file
from sparsity_lab.training.folder import RunFolder
from sparsity_lab.training.frames import FrameProcess, ParseFrame, parse_frame

_LOG = plain_logger(__name__)

SWEEP = "sweep.json"
_MOST_SWEEP, _MOST_FOREIGN_SWEEP = 2**29, 2**26
"""The largest sizes in bytes. A hundred thousand runs take a third of the first, and fifty thousand take the
second."""
_MOST_FOREIGN = 2**30
"""The largest number of bytes to read from a folder of someone else, and of a frame made from it."""

FrameName = Literal["runs", "evaluation", "summary", "metrics", "timing"]


@dataclass(frozen=True)
class Failure:
    """A run without a result.

    Attributes:
        run: its config.
        status: ``"diverged"``, which is final, or ``"failed"``: then the next sweep tries the run again.
        reason: the reason in one line.
        step: the step at which it diverged.
    """

    run: RunConfig
    status: str
    reason: str
    step: int | None = None


@dataclass(frozen=True)
class State:
    """The state of a run.

    Attributes:
        status: one of ``training.Status``, or ``"failed"``.
        step: the step at which it diverged.
        reason: why it diverged or failed, or which of its files is damaged.
    """

    status: str
    step: int | None = None
    reason: str | None = None

    @classmethod
    def of(cls, folder: RunFolder, *, large: bool = False, any_evaluation: bool = False) -> Self:
        """The state of the run in a folder.

        Args:
            large: also verify the weights and the checkpoint. By default only their readers verify them, except after
                a recorded failure, which damaged weights may have caused.
            any_evaluation: accept any evaluation, not only the run's own, as for a parent.
        """
        failure = folder.failure
        found = folder.inspect(large=large or failure is not None)
        if found.status is Status.DIVERGED and (marker := folder.marker):
            return cls(found.status.value, marker.step, marker.reason)
        if any_evaluation and found.evaluated:
            return cls(Status.FINISHED.value)
        if failure and found.status is not Status.FINISHED:
            return cls("failed", reason="; ".join(filter(None, (failure, found.damage))))
        return cls(found.status.value, reason=found.damage)


class Results:
    """The runs of a sweep in a folder. The folder is the only record: every call reads its current contents.

    >>> again = Results(results.folder)
    >>> len(again.runs), again.frame("evaluation")["length"].unique().sort().to_list()
    (4, [8, 16])

    Args:
        out: the folder.
        sweep: the sweep whose runs to read; by default the last sweep in this folder. If the hash of a text is not
            yet a field, it is taken from the folder; no text is opened.
        trusted: whether to parse frames in this process. A malicious frame with a matching checksum can crash the
            process that parses it, or fill the memory, but cannot make it execute anything. By default a folder of
            another user is parsed in a separate process, which takes a few times longer.
        unrecorded: reasons of failed runs, by id, that the folder could not hold. ``run_sweep`` gives them.

    Attributes:
        folder: the store.
        trusted: as above.
        sweep: the sweep; None if the runs were made one by one.
        runs: configs of the sweep's runs in its order, or of all runs in the folder by id.

    Raises:
        SettingError: no sweep is given, and the folder has no readable sweep and no runs. Or the folder of a run is
            not named by its id: it is a copy, which would count twice. Or the runs have the ids of an earlier
            release. Or an untrusted folder has more than 1 GiB of files, weights not counted.
    """

    def __init__(
        self,
        out: Path | str,
        sweep: Sweep | None = None,
        *,
        trusted: bool | None = None,
        unrecorded: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(out)
        self.trusted = is_own(self.folder) if trusted is None else trusted
        self._parse: ParseFrame = parse_frame if self.trusted else FrameProcess()
        self._kept: dict[str, RunFolder] | None = None
        self._unrecorded = dict(unrecorded or {})
        if not self.trusted:
            # Each file can be within its limit, even if it is sparse.
            names = ("*.json", "*/*.json", "*/*.parquet", f"*/{store.EVALUATION}/*.parquet")
            self._check_size(_bytes_of(file for name in names for file in self.folder.glob(name)))
        most = _MOST_SWEEP if self.trusted else _MOST_FOREIGN_SWEEP
        self.sweep = _as_run(sweep, self.folder, most) if sweep else _read_sweep(self.folder, most)
        self.runs = self.sweep.runs if self.sweep else _find_runs(self.folder, most)
        if self.sweep:
            check_ids(self.folder, self.runs)

    def frame(self, name: FrameName = "evaluation") -> pl.DataFrame:
        """One frame over all runs, with each run's settings joined to its rows.

        Args:
            name: ``"runs"`` has one row per run, with its status, step and reason as in ``State``. ``"evaluation"``,
                ``"metrics"`` and ``"timing"`` have the rows of that file of all finished runs (metrics also of
                diverged ones). ``"summary"`` has learned, reach and censored by run and condition.

        Returns:
            The column ``run`` (the id), a column for each setting by its dotted path (``task``, ``task.k``,
            ``model.position``), then the columns of the file. A setting that a run does not have is null. If a column
            of the file has the name of a setting, it becomes ``condition_<name>``: the evaluated task is
            ``condition_task``. The type of a column is that of the field and never that of the values, so you can
            concatenate frames of several folders: ``pl.concat(frames, how="diagonal")``.
        """
        check_that(name in get_args(FrameName), "name", "a frame", name, get_args(FrameName))
        configs = self._configs()
        rows = self._rows(name)
        self._check_size(rows.estimated_size() + _BYTES_OF_VALUE * rows.height * configs.width)
        rows = rows.rename(
            {column: f"condition_{column}" for column in rows.columns if column in configs.columns[1:]}
        )
        return rows.select("run").join(configs, on="run", how="left", maintain_order="left").hstack(rows.drop("run"))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The runs that diverged or crashed."""
        found = ((run, self.state(run)) for run in self.runs)
        return tuple(
            Failure(run, state.status, state.reason or "", state.step)
            for run, state in found
            if state.status in ("diverged", "failed")
        )

    def state(self, run: RunConfig, *, large: bool = False, any_evaluation: bool = False) -> State:
        """The state of a run or of a parent. The arguments are those of ``State.of``."""
        state = State.of(self._at(run.id, run), large=large, any_evaluation=any_evaluation)
        if state.status in ("finished", "diverged", "failed") or run.id not in self._unrecorded:
            return state
        return State("failed", reason="; ".join(filter(None, (self._unrecorded[run.id], state.reason))))

    def timing(self, run: RunConfig) -> pl.DataFrame:
        """The times of a run; an empty frame if they are missing or damaged."""
        return self._at(run.id, run).timing

    def environment(self, run: RunConfig) -> dict[str, Any] | None:
        """The recorded environment of a run; None if it is missing or damaged.

        >>> results.environment(results.runs[0])["threads"]
        1
        """
        return self._at(run.id, run).environment

    def snapshot(self) -> Self:
        """The same results, but each file is read at most once, so the contents no longer change.

        >>> now = results.snapshot()
        >>> now.frame("evaluation").equals(now.frame("evaluation"))
        True
        """
        kept = copy.copy(self)
        kept._kept = {}
        return kept

    def _at(self, name: str, run: RunConfig | None = None) -> RunFolder:
        """A run's folder, not yet read; in a snapshot, the same object at each call."""
        folder = RunFolder(self.folder / name, run, parse=self._parse)
        return folder if self._kept is None else self._kept.setdefault(name, folder)

    @property
    def others(self) -> tuple[str, ...]:
        """Ids of the finished runs in the folder that are neither runs of the sweep nor their parents."""
        if self.sweep is None:
            return ()
        own = {member.id for run in self.runs for member in lineage(run)}
        markers = sorted(self.folder.glob(f"*/{store.FINISHED}"))
        found = [file.parent for file in markers if file.parent.name not in own]
        return tuple(folder.name for folder in found if self._is_finished_run(folder.name))

    @property
    def devices(self) -> dict[str, int]:
        """The number of finished runs by kind of device, as in ``{"cpu AVX2 with 1 thread": 3, "cuda": 1}``. If there
        are several kinds, they can cause small differences between runs."""
        finished = (run for run in self.runs if (self.folder / run.id / store.FINISHED).exists())
        kinds = (", ".join(devices_of(self.environment(run), run.evaluation_id)) for run in finished)
        return dict(sorted(Counter(kind for kind in kinds if kind).items()))

    def _is_finished_run(self, name: str) -> bool:
        folder = self._at(name)
        if folder.marker is None or folder.marker.status != "finished":
            return False
        try:
            # A copy under another name is not another run.
            return folder.config.id == name
        except SettingError:
            return False

    def labels(self) -> dict[str, str]:
        """A short name for each run, by id: the settings that differ among them."""
        if self.sweep is not None:
            return self.sweep.labels()
        labels = run_labels(self.runs)
        return {run.id: labels[run.id] or str(run) for run in self.runs}

    def __repr__(self) -> str:
        now = self.snapshot()
        rows = now._described()
        lines = (f"  {label} ({run}): {status}{', ' if words else ''}{words}" for label, run, status, words in rows)
        return "\n".join([now._head(), *lines])

    def _repr_html_(self) -> Markup:
        now = self.snapshot()
        rows = [(label, element("code", run), status, words) for label, run, status, words in now._described()]
        shown = table(["run", "id", "status", "reach, or why there is none"], rows)
        return join([element("p", now._head()), details(counted(len(rows), "run"), shown)])

    def _head(self) -> str:
        counts = Counter(self.state(run).status for run in self.runs)
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        name = f" of sweep {self.sweep.name!r}" if self.sweep else ""
        others = len(self.others)
        more = f" and {counted(others, 'run')} of other sweeps" if others else ""
        if note := devices_words(self.devices):
            more += f"; {note}"
        return f"Results{name} in {self.folder}: {counted(len(self.runs), 'run')} ({states}){more}"

    def _described(self) -> Iterator[tuple[str, str, str, str]]:
        """Label, id and status of each run, and its reach or the reason why it has no result."""
        labels = self.labels()
        reaches: dict[str, list[str]] = {}
        for row in self._rows("summary").iter_rows(named=True):
            reaches.setdefault(row["run"], []).append(_reach_words(row))
        for row in self._rows("runs").iter_rows(named=True):
            run = row["run"]
            yield labels[run], run, row["status"], row["reason"] or ", ".join(reaches.get(run, []))

    def _rows(self, name: FrameName) -> pl.DataFrame:
        if name == "runs":
            rows = [{"run": run.id, **asdict(self.state(run))} for run in self.runs]
            return pl.DataFrame(rows, schema=_STATE_SCHEMA)
        if name == "summary":
            thresholds = {run.id: run.evaluation.threshold for run in self.runs}
            evaluation = self._rows("evaluation")
            parts = [
                summarize(evaluation.filter(pl.col("run").is_in([i for i, own in thresholds.items() if own == t])), t)
                for t in sorted(set(thresholds.values()))
            ]
            order = pl.DataFrame({"run": list(thresholds)})
            return order.join(pl.concat(parts), on="run", maintain_order="left_right")
        runs, contents = list[RunConfig](), list[bytes]()
        for run in self.runs:
            folder = self._at(run.id, run)
            status = folder.inspect(large=False).status
            if status is Status.FINISHED or (status is Status.DIVERGED and name == "metrics"):
                runs.append(run)
                contents.append(folder.verified(_file(name, run)))
        if name == "evaluation" and self.trusted and (frame := _evaluations(runs, contents)) is not None:
            return frame
        frames, size = list[pl.DataFrame](), 0
        for run, content in zip(runs, contents, strict=True):
            frames.append(self._frame(name, run, content))
            size += int(frames[-1].estimated_size())
            self._check_size(size)
        owners = [run.id for run, frame in zip(runs, frames, strict=True) for _ in range(frame.height)]
        return pl.concat(frames or [_SCHEMAS[name].to_frame()]).insert_column(0, _run_column(owners))

    def _check_size(self, size: float) -> None:
        """Raise ``SettingError`` if this size exceeds the limit for a folder from someone else."""
        if not self.trusted and size > _MOST_FOREIGN:
            expected = f"at most {_MOST_FOREIGN} bytes in total from someone else's folder"
            raise SettingError(str(self.folder), expected, Shown(f"{size:.0f}"))

    def _frame(self, name: FrameName, run: RunConfig, content: bytes) -> pl.DataFrame:
        """The frame in a file of a run that is over."""
        if name == "timing":
            return self.timing(run)
        try:
            return self._at(run.id, run).parsed(_file(name, run), content)
        except DamagedFile as error:
            # Its checksum is right, but it is not a frame of this release. The next sweep makes it again.
            _LOG.warning("%s; it gives no rows", error)
            return _SCHEMAS[name].to_frame()

    def _configs(self) -> pl.DataFrame:
        types: dict[str, type] = {}
        # Most runs differ in a few settings.
        types_of_parts: dict[tuple[str, int], dict[str, type]] = {}
        rows_of_parts: dict[tuple[str, int], Row] = {}
        for run in self.runs:
            for name, kind in column_types(run, known=types_of_parts).items():
                types[name] = kind if types.get(name, kind) is kind else str
        rows = [
            {"run": run.id, **{name: _as_column(value, types[name]) for name, value in row.items()}}
            for run in self.runs
            for row in [flatten(run, known=rows_of_parts)]
        ]
        return pl.DataFrame(rows, schema={"run": pl.String(), **{name: _COLUMNS[own] for name, own in types.items()}})


_COLUMNS = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
_BYTES_OF_VALUE = 16
"""The most bytes of a value in a column. Each long text is stored once."""


def _as_column(value: Any, kind: type) -> Any:
    """The value of a setting, converted to the type of its column."""
    return value if value is None or type(value) is kind else kind(value)


_STATE_SCHEMA = pl.Schema({"run": pl.String(), "status": pl.String(), "step": pl.Int64(), "reason": pl.String()})
_SCHEMAS = {"evaluation": EVALUATION_SCHEMA, "metrics": store.METRICS_SCHEMA, "timing": store.TIMING_SCHEMA}


def _file(name: FrameName, run: RunConfig) -> str:
    return store.evaluation_file(run) if name == "evaluation" else store.METRICS


def _evaluations(runs: Sequence[RunConfig], contents: list[bytes]) -> pl.DataFrame | None:
    """The evaluations of these runs, or None if they do not match the configs. They are parsed in one pass, which
    takes a third of the time, and separated by the grids in their configs."""
    grid = [(run.id, *pair) for run in runs for pair in run.grid]
    try:
        frame = pl.read_parquet(contents, n_rows=len(grid) + 1) if contents else EVALUATION_SCHEMA.to_frame()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if frame.schema != EVALUATION_SCHEMA or frame.select("condition", "length").rows() != [row[1:] for row in grid]:
        return None
    return frame.insert_column(0, _run_column([row[0] for row in grid]))


def _run_column(runs: Sequence[str]) -> pl.Series:
    return pl.Series("run", runs, dtype=pl.String)


def check_ids(folder: Path, runs: Sequence[RunConfig]) -> None:
    """Raise ``SettingError`` if the folder has some of these runs under ids of an earlier release."""
    own = {run.id for run in runs}
    if all((folder / run).exists() for run in own):
        return
    found = [(place, run) for place, run in _old_names(folder) if run in own and place.name not in own]
    if found:
        place, run = found[0]
        rename = (
            f"`sparsity-lab report {folder} --relabel` renames all {len(found)} such runs and keeps their weights"
        )
        raise SettingError(str(place), f"an earlier release named this run; its id is now {run}. {rename}")


def rename_runs(folder: Path) -> dict[str, str]:
    """Rename the folders of runs to the ids of this release. Returns new names by old ones. Use it after a change of
    how ids are made that does not change the runs themselves, and while no process works on them.

    >>> rename_runs(results.folder)
    {}
    """
    renamed = {}
    for place, run in _old_names(folder):
        if not (folder / run).exists():
            place.rename(folder / run)
            renamed[place.name] = run
    return renamed


def _old_names(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders of runs that are not named by the run's id, with this id. Folders whose id is taken are left out."""
    for file in sorted(folder.glob(f"{'[0-9a-f]' * 16}/{store.CONFIG}")):
        try:
            run = RunFolder(file.parent).config.id
        except SettingError:
            continue
        if run != file.parent.name and not (folder / run).exists():
            yield file.parent, run


def _reach_words(row: dict[str, Any]) -> str:
    """The reach of a run in one condition, in words."""
    name = "" if row["condition"] == TRAINED_CONDITION else f"{row['condition']}: "
    if row["learned"] is None:
        return f"{name}not judged"
    return name + (f"reach {'≥ ' * row['censored']}{row['reach']}" if row["learned"] else "never learned")


def _as_run(sweep: Sweep, folder: Path, most: int) -> Sweep:
    """The sweep with the hashes of its texts from the folder; those of the last sweep win."""
    if sweep.is_planned:
        return sweep
    runs = list[RunConfig]()
    for file in sorted(folder.glob(f"*/{store.CONFIG}")):
        with contextlib.suppress(SettingError):
            runs.append(RunFolder(file.parent).config)
    with contextlib.suppress(SettingError):
        runs += last.runs if (last := _read_sweep(folder, most)) else ()
    known = {task.unplanned(): task for run in runs for task in settings_in(run) if isinstance(task, Task)}
    return with_each(sweep, lambda setting: known.get(setting, setting) if isinstance(setting, Task) else setting)


def is_own(folder: Path) -> bool:
    """Whether the folder belongs to the user of this process, or does not exist yet."""
    try:
        return os.stat(folder).st_uid == os.geteuid()
    except OSError:
        return True


def _read_sweep(folder: Path, most: int) -> Sweep | None:
    try:
        text = read_file(folder.resolve() / SWEEP, most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingError(str(folder / SWEEP), error.strerror or "cannot be read") from None
    try:
        data = json.loads(text)
        # Most runs of a sweep differ in only a few settings.
        if isinstance(data, dict) and isinstance(data.get("runs"), list):
            data["runs"] = with_shared_parts(RunConfig, data["runs"])
        return from_data(Sweep, data)
    except SettingError as error:
        # For example, a newer release may have fields that this one does not know.
        raise error.inside(str(folder / SWEEP)) from None
    except (ValueError, RecursionError):  # invalid or deeply nested
        raise SettingError(str(folder / SWEEP), "invalid JSON; the file is damaged") from None


def _bytes_of(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # a sweep in progress may remove files
            total += file.lstat().st_size
    return total


def _find_runs(folder: Path, most: int) -> tuple[RunConfig, ...]:
    files = sorted(folder.glob(f"*/{store.CONFIG}"))
    if (size := _bytes_of(files)) > most:
        raise SettingError(str(folder), f"at most {most} bytes of {store.CONFIG} in total", Shown(f"{size}"))
    runs = {file.parent: RunFolder(file.parent).config for file in files}
    check_that(runs, "folder", "a folder with runs", str(folder))
    for place, run in runs.items():
        if place.name != run.id:
            raise SettingError(str(place), f"the id of the run in it, {run.id}", place.name)
    return tuple(runs.values())
