"""``run_sweep``: plan the missing runs, execute them, and record failures."""

import contextlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsity_lab.settings import SettingError, Shown, canonical_json, check_that, settings_in
from sparsity_lab.settings.errors import inside
from sparsity_lab.sweeps.engines import Engine, Processes, Serial
from sparsity_lab.sweeps.progress import Estimate, SweepEvent, SweepProgress
from sparsity_lab.sweeps.results import SWEEP, Results, check_ids
from sparsity_lab.sweeps.sweep import Sweep, lineage, waves
from sparsity_lab.sweeps.verified import Verified
from sparsity_lab.training import RunConfig
from sparsity_lab.training.files import remove_abandoned, write_file
from sparsity_lab.training.folder import Inspection, RunFolder, Status, leave_failure
from sparsity_lab.training.lease import Watch, drop_lease
from sparsity_lab.training.store import prepare_folder, tidy

if TYPE_CHECKING:
    from sparsity_lab.training import Logger  # its module loads polars

_LOOKS_AGAIN = 0.5
"""Seconds between two checks of runs that other processes make."""
_ATTEMPTS = 3


def run_sweep(
    sweep: Sweep,
    out: Path | str,
    engine: Engine = Processes(workers=2),  # noqa: B008
    progress: SweepProgress | None = None,
    loggers: Sequence["Logger"] = (),
) -> Results:
    """Execute every run of a sweep in the folder ``out``.

    Finished and diverged runs are skipped, interrupted runs resume, damaged and crashed runs are repeated, and a run
    with a new evaluation is only evaluated. Parents run before their children. A run that fails, or whose folder is
    damaged, never stops the others. ``Results.failures`` lists it, even if its folder could not hold the reason.
    ``progress`` also reports damaged files.

    Several processes, on any machines, can run the same sweep, or sweeps with common runs, in one folder at once.
    Each run is made by one process. A process waits at the end for runs that other processes make.

    >>> training = run.config.training.replace(steps=2)
    >>> sweep = Sweep(name="tiny", runs=tuple(grid(run.config.replace(training=training), {"seed": [0, 1]})))
    >>> finished = run_sweep(sweep, "runs", engine=Serial())
    >>> finished.frame("runs")["status"].to_list()
    ['finished', 'finished']

    Args:
        out: the store, shared by all workers. It also gets ``sweep.json``, the canonical form of the sweep with the
            hashes of all texts.
        progress: called once for each run.
        loggers: receive the events of each run that is made now, in the process that makes it. A worker process has
            copies, so ``pickle`` must be able to copy a logger, and workers must be able to import its class.

    Returns:
        The runs of this sweep, even if the folder has other runs.

    Raises:
        SettingError: ``out`` is not a folder, cannot be written, or holds a run under the id of an earlier release.
            Or a setting or logger is defined in this notebook, so the workers cannot import it. Or the workers are on
            this machine, which has too little memory for a run. Or a text whose hash is not yet a field cannot be
            read. In these cases nothing is run. Or the first run that ended left nothing in ``out``, so the engine's
            workers see another folder.
        RuntimeError: a worker process called this while it imported the script that started it.
    """
    _refuse_import()
    if loggers != ():
        from sparsity_lab.training.loggers import check_loggers  # noqa: PLC0415 (loads polars)

        check_loggers(loggers)
    sweep = sweep.planned()
    every = [run for wave in waves(sweep.runs) for run in wave]
    _check_known(every, engine)
    if not isinstance(engine, Serial):
        _check_loggers(loggers, engine)
    if isinstance(engine, Processes) and engine.devices:
        _check_devices(every)
    root = Path(out)
    if isinstance(engine, Serial | Processes):  # their workers are on this machine
        _check_memory(every, root)
    prepare_folder(root)
    check_ids(root, every)
    remove_abandoned(root.resolve())
    try:
        write_file(root / SWEEP, canonical_json(sweep).encode())
    except OSError as error:
        raise SettingError("out", f"cannot write to {root}: {error.strerror}") from None
    report = _Report(sweep, root, progress)
    try:
        for wave in report.waves:
            _run_wave(wave, root, engine, report, loggers)
    finally:
        report.verified.write()
    return Results(root, sweep, unrecorded=report.failed)


class _Report:
    """The progress of a sweep.

    Attributes:
        any_seen: whether a new run has ended in the folder, so that workers are known to write to it.
        verified: the runs whose files are verified.
    """

    def __init__(self, sweep: Sweep, root: Path, progress: SweepProgress | None) -> None:
        self.waves = waves(sweep.runs)
        self.in_sweep = {run.id for run in sweep.runs}
        self.failed: dict[str, str] = {}
        self.damage: dict[str, str | None] = {}
        self.any_seen, self.verified = False, Verified(root)
        self._root, self._progress, self._labels = root, progress, sweep.labels()
        every = [run for wave in self.waves for run in wave]
        self._finished, self._total, self._estimate = 0, len(every), Estimate(every)

    def inspected(self, run: RunConfig) -> tuple[RunFolder, Inspection]:
        """The run's folder and its inspection, which reads all files. An undamaged run that has ended is entered at
        once, because nobody else writes to it."""
        parent = run.id not in self.in_sweep
        look = self.verified.look(run, any_evaluation=parent)
        folder = RunFolder(self._root / run.id, run)
        found = folder.inspect()
        whole = found.status is Status.FINISHED or (parent and found.evaluated)
        self.verified.enter(look, float(folder.timing["seconds"].sum()) if whole else None)
        self.verified.write(now=False)
        return folder, found

    def over(self, run: RunConfig, outcome: str, reason: str | None = None) -> None:
        """Record that a run is over, and report it."""
        self._finished += 1
        self._estimate.over(run, skipped=outcome == "skipped")
        if outcome == "failed":
            self.failed[run.id] = reason or ""
            # A worker that died left no record.
            leave_failure(self._root / run.id, reason or "")
        if self._progress:
            label = self._labels.get(run.id, f"parent {run.id}")
            left, damage = self._estimate.seconds_left(), self.damage.get(run.id)
            self._progress(SweepEvent(self._finished, self._total, label, outcome, reason, left, damage))


def _run_wave(
    wave: Sequence[RunConfig], root: Path, engine: Engine, report: _Report, loggers: Sequence["Logger"]
) -> None:
    """Execute runs that do not depend on each other."""
    pending, elsewhere = [], dict[str, _Awaited]()
    for run in wave:
        _, found = report.inspected(run)
        report.damage[run.id] = found.damage
        if found.status.over:
            tidy(root / run.id)
        # A parent outside the sweep only provides weights, so its evaluation does not matter.
        if found.status.over or (found.evaluated and run.id not in report.in_sweep):
            report.over(run, "skipped")
        elif run.parent and run.parent.id in report.failed:
            report.over(run, "failed", f"its parent {run.parent.id} failed")
        else:
            pending.append(run)
    attempts: dict[str, int] = {}
    while pending:
        for run, failure in _executed(pending, root, engine, loggers):
            if failure:
                report.over(run, "failed", failure)
            elif run.parent is None and not _is_begun(run, root):
                if not report.any_seen:
                    raise SettingError("engine", _written_here(root), Shown(f"nothing of {run.id}, which has ended"))
                report.over(run, "failed", f"expected {_written_here(root)}")
            else:
                folder, found = report.inspected(run)
                if found.status.over:
                    report.any_seen = True
                    report.over(run, found.status.value, folder.divergence)
                else:
                    elsewhere[run.id] = _Awaited(run, root)
        pending = []
        while elsewhere and not pending:
            for awaited in [awaited for awaited in elsewhere.values() if awaited.free()]:
                run = elsewhere.pop(awaited.run.id).run
                attempts[run.id] = attempts.get(run.id, 0) + (not awaited.held)
                folder, found = report.inspected(run)
                if found.status.over:
                    report.over(run, found.status.value, folder.divergence)
                elif awaited.held and (failure := folder.failure):
                    # The process that began the run removed the old record, so this record is new.
                    report.over(run, "failed", failure)
                elif attempts[run.id] == _ATTEMPTS:
                    report.over(run, "failed", f"executed {_ATTEMPTS} times, and still {found.status.value}")
                else:
                    pending.append(run)
            if elsewhere and not pending:
                time.sleep(_LOOKS_AGAIN)


def _executed(
    runs: Sequence[RunConfig], root: Path, engine: Engine, loggers: Sequence["Logger"]
) -> Iterator[tuple[RunConfig, str | None]]:
    """Each run that the engine has ended, and the reason if it failed."""
    texts = [canonical_json(run) for run in runs]
    try:
        # An engine without loggers can run a sweep that has none.
        for ended in engine.run(texts, root, _modules(runs), *([loggers] if loggers else [])):
            yield runs[ended.index], ended.failure
    except BaseException:
        # Interrupted: remove the files that stopped processes of this machine left.
        for run in runs:
            drop_lease(root / run.id)
            remove_abandoned(root / run.id)
        raise


def _is_begun(run: RunConfig, root: Path) -> bool:
    """Whether a run that has ended has a folder. Any process that makes a run first creates this folder.

    A network file system may cache for a while that it does not exist. Listing the parent folder asks the server."""
    return (root / run.id).exists() or run.id in os.listdir(root)


def _written_here(root: Path) -> str:
    place = root.absolute()
    return f"workers that write to {place}: check that all their machines see one shared folder under this path"


class _Awaited:
    """A run that another process makes, or whose parent another process makes.

    Attributes:
        run: the run.
        held: whether another process was seen to hold the run.
    """

    def __init__(self, run: RunConfig, root: Path) -> None:
        self.run, self.held = run, False
        self._own, *self._parents = (Watch(root / member.id) for member in lineage(run))

    def free(self) -> bool:
        """Whether no process makes the run now."""
        # A folder that cannot be read now is checked again later.
        with contextlib.suppress(OSError):
            if self._own.free():
                return all(watch.free() for watch in self._parents)
            self.held = True
        return False


def _refuse_import() -> None:
    """Raise if this is a worker that is still importing the script that started it. The script has no guard, and
    would run the sweep again in every worker."""
    # The flag that multiprocessing itself checks before it starts a process. A worker that is ready can run a sweep.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a worker process reached run_sweep while importing the main script; call run_sweep under "
            '`if __name__ == "__main__":`'
        )


def _check_known(runs: Sequence[RunConfig], engine: Engine) -> None:
    """Raise ``SettingError`` if the engine's workers cannot import the definition of a setting in these runs."""
    if engine.knows_main():
        return
    for cls in dict.fromkeys(type(setting) for run in runs for setting in settings_in(run)):
        if cls.__module__ == "__main__":
            expected = (
                f"settings that the workers of {engine.kind} can import (write the cell to a file, as in "
                f"%%writefile my_settings.py, and import {cls.__name__} from there; or use Serial())"
            )
            raise SettingError("runs", expected, Shown(f"{cls.__name__}, which this session defines"))


def _check_loggers(loggers: Sequence["Logger"], engine: Engine) -> None:
    """Raise ``SettingError`` if a logger cannot be copied to the engine's workers."""
    for i, logger in enumerate(loggers):
        name = type(logger).__name__
        expected = f"a logger that can be copied to the workers of {engine.kind}; Serial() takes any"
        if type(logger).__module__ == "__main__" and not engine.knows_main():
            raise SettingError(f"loggers[{i}]", expected, Shown(f"{name}, which this session defines"))
        try:
            pickle.loads(pickle.dumps(logger))
        except Exception as error:
            # A user's class can raise any exception when it is copied.
            raise SettingError(f"loggers[{i}]", expected, Shown(f"{name} ({error})")) from None


def _check_devices(runs: Sequence[RunConfig]) -> None:
    """Raise ``SettingError`` if a run names a GPU by number. Each worker sees one GPU, as ``cuda``."""
    for run in runs:
        device, expected = run.training.device, "cuda or cpu, since the engine assigns the GPU"
        check_that(":" not in device, f"{run.id}.training.device", expected, device)


def _check_memory(runs: Sequence[RunConfig], root: Path) -> None:
    """Raise ``SettingError`` if this machine has too little memory for a run that has not begun."""
    for run in runs:
        if not (root / run.id).exists():
            with inside(run.id):
                run.check_memory()


def _modules(runs: Sequence[RunConfig]) -> list[str]:
    """Modules outside this package that define settings of these runs. A worker imports them to register the
    kinds."""
    found = {type(setting).__module__ for run in runs for setting in settings_in(run)}
    return sorted(name for name in found if name.split(".")[0] not in (__name__.split(".")[0], "__main__"))
