"""``run_sweep``: plan what is missing, execute it, and record what failed."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from sparsity_lab.settings import Setting, canonical_json
from sparsity_lab.sweeps.engines import Engine, Processes
from sparsity_lab.sweeps.failures import read_failure, record_failure
from sparsity_lab.sweeps.results import SWEEP, Results
from sparsity_lab.sweeps.sweep import Sweep, lineage
from sparsity_lab.training import RunConfig, Status, status
from sparsity_lab.training.store import prepare_folder, read_marker, tidy, write_file

__all__ = ["SweepEvent", "SweepProgress", "run_sweep"]


@dataclass(frozen=True)
class SweepEvent:
    """One run of a sweep is over.

    Attributes:
        finished: runs that are over, this one included, whatever became of them.
        total: all runs, parents included.
        run: label of this run.
        status: ``"finished"``, ``"diverged"``, ``"failed"``, or ``"skipped"`` for one that was over before.
        reason: why it diverged or failed.
    """

    finished: int
    total: int
    run: str
    status: str
    reason: str | None = None


SweepProgress = Callable[[SweepEvent], None]


def run_sweep(
    sweep: Sweep,
    out: Path | str,
    engine: Engine = Processes(workers=2),  # noqa: B008
    progress: SweepProgress | None = None,
) -> Results:
    """Bring every run of a sweep to an end in the folder ``out``.

    Finished and diverged runs are skipped, interrupted ones go on, broken and crashed ones are repeated, and a run
    with a new evaluation is only evaluated. Parents come before their children. A run that fails, or whose folder is
    at fault, never stops the others; ``Results.failures`` lists it, unless its folder cannot even hold the reason,
    which then only ``progress`` tells.

    Args:
        out: the store, shared by all workers; also gets ``sweep.json``, the canonical form of the sweep.
        progress: called once for each run.

    Returns:
        The runs of this sweep, whatever else is in the folder.

    Raises:
        SettingError: ``out`` cannot be a folder or be written; nothing has been run then.
        RuntimeError: a worker process got here while it imported the script that started it.
    """
    _refuse_import()
    root = Path(out)
    prepare_folder(root)
    write_file(root / SWEEP, canonical_json(sweep).encode())
    waves = _waves(sweep)
    labels = sweep.labels()
    total, finished = sum(map(len, waves)), 0
    failed: set[str] = set()

    def report(run: RunConfig, outcome: str, reason: str | None = None) -> None:
        nonlocal finished
        finished += 1
        if progress:
            progress(SweepEvent(finished, total, labels.get(run.id, f"parent {run.id}"), outcome, reason))

    in_sweep = {run.id for run in sweep.runs}
    for wave in waves:
        pending = []
        for run in wave:
            found = status(run, root)
            # A parent that is not itself in the sweep gives its weights; its evaluation is not asked for.
            trained = found is Status.UNEVALUATED and run.id not in in_sweep
            if trained or found in (Status.FINISHED, Status.DIVERGED):
                if not trained:
                    tidy(root / run.id)
                report(run, "skipped")
            elif run.parent and run.parent.id in failed:
                failed.add(run.id)
                reason = f"its parent {run.parent.id} failed"
                record_failure(root / run.id, reason)
                report(run, "failed", reason)
            else:
                pending.append(run)
        for ended in engine.run([canonical_json(run) for run in pending], root, _modules(pending)):
            run = pending[ended.index]
            if ended.failure:
                # A worker that died has left no record.
                if read_failure(root / run.id) != ended.failure:
                    record_failure(root / run.id, ended.failure)
                failed.add(run.id)
                report(run, "failed", ended.failure)
            else:
                report(run, status(run, root).value, _divergence(root / run.id))
    return Results(root, sweep)


def _divergence(folder: Path) -> str | None:
    """Why and where a run diverged; None if it did not."""
    marker = read_marker(folder)
    return f"{marker.reason} at step {marker.step}" if marker and marker.status == "diverged" else None


def _refuse_import() -> None:
    """Raise if this is a worker that is still importing the script that started it: it has no guard, and would run
    the sweep once more in every worker."""
    # The flag that multiprocessing itself asks before it starts a process. A worker that is up may run a sweep.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a worker process met run_sweep while it imported the script that started it; call run_sweep under "
            '`if __name__ == "__main__":`'
        )


def _waves(sweep: Sweep) -> list[list[RunConfig]]:
    """All runs, each once, in lists by their number of ancestors: runs of one list do not depend on each other."""
    runs = {run.id: run for run in sweep.runs}
    waves: list[dict[str, RunConfig]] = []
    for run in sweep.runs:
        for depth, member in enumerate(reversed(lineage(run))):
            if depth == len(waves):
                waves.append({})
            # A parent that is also in the sweep is run as the sweep wants it evaluated.
            waves[depth][member.id] = runs.get(member.id, member)
    return [list(wave.values()) for wave in waves]


def _modules(runs: list[RunConfig]) -> list[str]:
    """Modules outside this package that define settings of these runs; a worker imports them to know the kinds."""
    found = {type(setting).__module__ for run in runs for setting in _settings(run)}
    return sorted(name for name in found if name.split(".")[0] not in (__name__.split(".")[0], "__main__"))


def _settings(value: Any) -> Iterator[Setting]:
    if isinstance(value, Setting):
        yield value
        for field in fields(cast(Any, value)):
            yield from _settings(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _settings(item)
    elif isinstance(value, Mapping):
        yield from _settings(tuple(value.values()))
