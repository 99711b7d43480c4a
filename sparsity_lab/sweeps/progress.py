"""The progress of a sweep: the states of its runs, their work, and the time left."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsity_lab.sweeps.results import Results, State
from sparsity_lab.sweeps.sweep import waves
from sparsity_lab.sweeps.verified import Verified
from sparsity_lab.training import RunConfig
from sparsity_lab.training.lease import TERM, Holder, holder_of


@dataclass(frozen=True)
class SweepEvent:
    """An event: one run of a sweep is over.

    >>> SweepEvent(finished=1, total=4, run="0123456789abcdef", status="finished").status
    'finished'

    Attributes:
        finished: the number of runs that are over, this one included, with any status.
        total: the number of all runs, parents included.
        run: the label of this run.
        status: ``"finished"``, ``"diverged"``, ``"failed"``, or ``"skipped"`` for a run that was over before.
        reason: why it diverged or failed.
        seconds_left: the estimated time until the sweep is over; None if it is unknown.
        damage: the damaged file in its folder, and its error. The file has been made again, unless the run failed.
    """

    finished: int
    total: int
    run: str
    status: str
    reason: str | None = None
    seconds_left: float | None = None
    damage: str | None = None


SweepProgress = Callable[[SweepEvent], None]


class Estimate:
    """The time left, from the work done since the start. Runs that were over before do not count."""

    def __init__(self, runs: Sequence[RunConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = {run.id: work(run) for run in runs}
        self._done, self._clock, self._begun = 0.0, clock, clock()

    def over(self, run: RunConfig, *, skipped: bool) -> None:
        """Record that a run is over."""
        done = self._left.pop(run.id, 0.0)
        self._done += 0.0 if skipped else done

    def seconds_left(self) -> float | None:
        """The time left at the speed so far; None before the first run is over."""
        if not self._left:
            return 0.0
        if not self._done:
            return None
        return sum(self._left.values()) * (self._clock() - self._begun) / self._done


def work(run: RunConfig) -> float:
    """The cost of a run in tokens of forward passes. A training step counts three times, for its backward pass."""
    low, high = run.training.curriculum.range()
    trained = run.training.steps * run.training.batch_size * run.task.sequence_length((low + high) // 2)
    grid = [task.sequence_length(length) for task in run.conditions.values() for length in run.evaluation.lengths]
    return 3.0 * trained + run.evaluation.sequences * sum(grid)


@dataclass(frozen=True)
class Running:
    """A run in progress.

    Attributes:
        run: its label.
        host, process: the machine and the process.
        since: when the process began the run, by its own clock, as ISO 8601 text.
        silent: seconds since its last sign of life, if the clocks of both machines agree. After more than one term
            (``lease.TERM``) the run is possibly lost, perhaps with its machine. The next sweep takes it over.
    """

    run: str
    host: str
    process: int
    since: str
    silent: float

    @property
    def lost(self) -> bool:
        """Whether it has been silent for more than one term."""
        return self.silent > TERM


@dataclass(frozen=True)
class Unfinished:
    """A run that is not finished.

    Attributes:
        run: its id.
        label: its label.
        status: one of ``training.Status``, ``"failed"`` or ``"running"``.
        reason: why it failed, or which of its files is damaged.
    """

    run: str
    label: str
    status: str
    reason: str | None = None


@dataclass(frozen=True)
class Overview:
    """The progress of the sweep in a folder, over all processes that work on it.

    >>> found = overview(results)
    >>> found.total, found.counts, found.complete
    (4, {'finished': 4}, True)

    Attributes:
        sweep: its name; None for a folder of runs that were made one by one.
        total: the number of its runs, parents included.
        counts: the number of runs by status: those of ``training.Status``, ``"failed"`` and ``"running"``.
        unfinished: all runs that are not finished.
        running: the runs in progress.
        failed: label and reason of each run that diverged or failed.
        damaged: label and error of each run with a damaged file; the next sweep makes it again.
        seconds_left: an estimate from the times of the finished runs and the number of the running ones; None if
            no run is finished or running.
    """

    sweep: str | None
    total: int
    counts: dict[str, int]
    unfinished: tuple[Unfinished, ...]
    running: tuple[Running, ...]
    failed: tuple[tuple[str, str], ...]
    damaged: tuple[tuple[str, str], ...]
    seconds_left: float | None

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        return not self.unfinished


def overview(results: Results) -> Overview:
    """The progress of a sweep. All checksums are verified, as the next sweep would do. A finished run is not read
    again if the sizes and times of its files have not changed. For this, it is entered in the cache
    ``verified.json``. Nothing else is written, so you can call this on any machine at any time.

    >>> overview(results).complete
    True
    """
    labels = results.labels()
    counts: Counter[str] = Counter()
    running, unfinished = list[Running](), list[Unfinished]()
    failed, damaged = list[tuple[str, str]](), list[tuple[str, str]]()
    done, seconds, left = 0.0, 0.0, 0.0
    members = [run for wave in waves(results.runs) for run in wave]
    verified = Verified(results.folder, trusted=results.trusted)
    for run in members:
        folder, label, parent = results.folder / run.id, labels.get(run.id, f"parent {run.id}"), run.id not in labels
        state, clocks = _seen(results, run, verified, any_evaluation=parent)
        holder = None if state.status in ("finished", "diverged") else _alive(folder)
        seen = "running" if holder else state.status
        counts[seen] += 1
        if seen == "finished":
            seconds += clocks
            done += work(run) if clocks else 0.0
            continue
        unfinished.append(Unfinished(run.id, label, seen, state.reason))
        left += {"running": 0.5, "diverged": 0.0}.get(seen, 1.0) * work(run)
        if holder:
            silent = max(0.0, time.time() - holder.renewed / 1e9)
            running.append(Running(label, holder.host, holder.process, holder.since, silent))
        elif state.reason:
            (failed if seen in ("diverged", "failed") else damaged).append((label, state.reason))
    verified.write()
    estimated = left * seconds / done / len(running) if done and running else None
    return Overview(
        results.sweep.name if results.sweep else None,
        len(members),
        dict(counts),
        tuple(unfinished),
        tuple(running),
        tuple(failed),
        tuple(damaged),
        estimated if left else 0.0,
    )


def _seen(results: Results, run: RunConfig, verified: Verified, *, any_evaluation: bool) -> tuple[State, float]:
    """The state of a run, with all checksums verified, and the seconds of a finished run."""
    look = verified.look(run, any_evaluation=any_evaluation)
    if (known := verified.seconds(look)) is not None:
        return State("finished"), known
    state = results.state(run, large=True, any_evaluation=any_evaluation)
    finished = state.status == "finished"
    seconds = float(results.timing(run)["seconds"].sum()) if finished else 0.0
    if look.settled or not finished:
        verified.enter(look, seconds if finished else None)
    return state, seconds


def _alive(folder: Path) -> Holder | None:
    """The process that makes the run; None if there is none, or the lease cannot be read."""
    with contextlib.suppress(OSError):
        holder = holder_of(folder)
        return None if holder is None or holder.gone else holder
    return None
