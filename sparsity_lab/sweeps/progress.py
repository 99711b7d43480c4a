"""How far a sweep is: what its runs are worth, and how long the rest will take."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsity_lab.sweeps.results import Results
from sparsity_lab.training import RunConfig, store
from sparsity_lab.training.claims import Holder, holder_of

__all__ = ["Estimate", "Overview", "Running", "SweepEvent", "SweepProgress", "overview"]


@dataclass(frozen=True)
class SweepEvent:
    """One run of a sweep is over.

    Attributes:
        finished: runs that are over, this one included, whatever became of them.
        total: all runs, parents included.
        run: label of this run.
        status: ``"finished"``, ``"diverged"``, ``"failed"``, or ``"skipped"`` for one that was over before.
        reason: why it diverged or failed.
        seconds_left: estimated, until the sweep is over; None before anything is known.
    """

    finished: int
    total: int
    run: str
    status: str
    reason: str | None = None
    seconds_left: float | None = None


SweepProgress = Callable[[SweepEvent], None]


class Estimate:
    """Time left, from the work that was done since it began. Runs that were over before count for nothing."""

    def __init__(self, runs: Sequence[RunConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = {run.id: work(run) for run in runs}
        self._done, self._clock, self._begun = 0.0, clock, clock()

    def over(self, run: RunConfig, *, skipped: bool) -> None:
        """A run is over."""
        done = self._left.pop(run.id, 0.0)
        self._done += 0.0 if skipped else done

    def seconds_left(self) -> float | None:
        """At the speed so far; None before the first run is over."""
        if not self._left:
            return 0.0
        if not self._done:
            return None
        return sum(self._left.values()) * (self._clock() - self._begun) / self._done


def work(run: RunConfig) -> float:
    """What a run costs, in tokens that go forward; a step of training goes back too, for twice that."""
    low, high = run.training.curriculum.range()
    trained = run.training.steps * run.training.batch_size * run.task.sequence_length((low + high) // 2)
    grid = [task.sequence_length(length) for task in run.conditions.values() for length in run.evaluation.lengths]
    return 3.0 * trained + run.evaluation.sequences * sum(grid)


@dataclass(frozen=True)
class Running:
    """A run that is being made.

    Attributes:
        run: its label.
        host, process: where.
        since: when that process began with it, by its own clock, as ISO 8601 text.
    """

    run: str
    host: str
    process: int
    since: str


@dataclass(frozen=True)
class Overview:
    """How far the sweep in a folder is, whoever works on it.

    Attributes:
        sweep: its name; None for a folder of runs that were made one by one.
        total: number of its runs.
        counts: runs by status: those of ``training.Status``, ``"failed"`` and ``"running"``.
        running: what is being made now.
        failed: label and reason of what diverged or failed.
        seconds_left: estimated, from the clocks of the finished runs and the number of the running ones; None if
            nothing is finished or running.
    """

    sweep: str | None
    total: int
    counts: dict[str, int]
    running: tuple[Running, ...]
    failed: tuple[tuple[str, str], ...]
    seconds_left: float | None


def overview(results: Results) -> Overview:
    """How far a sweep is. Only reads, so it can be called from any machine at any time."""
    labels = results.sweep.labels() if results.sweep else {run.id: str(run) for run in results.runs}
    counts: Counter[str] = Counter()
    running, failed = [], []
    done, seconds, left = 0.0, 0.0, 0.0
    states = results.frame("runs").select("run", "status", "reason").iter_rows()
    for run, (_, status, reason) in zip(results.runs, states, strict=True):
        folder = results.folder / run.id
        over = status in ("finished", "diverged")
        holder = None if over else _alive(holder_of(folder))
        counts["running" if holder else status] += 1
        if holder:
            running.append(Running(labels[run.id], holder.host, holder.process, holder.since))
            left += work(run) / 2
        elif status == "finished":
            clocks = store.read_timing(folder)["seconds"].sum()
            seconds += float(clocks)
            done += work(run) if clocks else 0.0
        elif reason:
            failed.append((labels[run.id], reason))
        left += 0.0 if over or holder else work(run)
    estimated = left * seconds / done / len(running) if done and running else None
    return Overview(
        results.sweep.name if results.sweep else None,
        len(results.runs),
        dict(counts),
        tuple(running),
        tuple(failed),
        estimated if left else 0.0,
    )


def _alive(holder: Holder | None) -> Holder | None:
    return None if holder is None or holder.gone else holder
