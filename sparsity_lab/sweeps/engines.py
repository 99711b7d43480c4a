"""Engines: where the runs of a sweep are executed.

An engine gets runs as JSON text and the shared folder, and says which have ended, and which failed. What a run found
lies in the folder and nowhere else, so an engine may put its workers on any machine that sees it.
"""

import importlib
import json
import multiprocessing
import os
import traceback
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from sparsity_lab.settings import Setting, SettingError, from_data, register
from sparsity_lab.sweeps.failures import forget_failure, record_failure
from sparsity_lab.training import Diverged, RunConfig, train

__all__ = ["Ended", "Engine", "Processes", "Serial", "execute"]

_LAST_DEATH = 2
_CANNOT_START = (
    "the worker processes could not start, and what they wrote on the error stream says why; a script that runs a "
    'sweep must do so under `if __name__ == "__main__":`, since every worker imports it'
)


@dataclass(frozen=True)
class Ended:
    """A run that an engine is done with.

    Attributes:
        index: of the run in the list given to the engine.
        failure: what ``execute`` returned, or one line on why it never will.
    """

    index: int
    failure: str | None = None


class Engine(Setting, family="engine"):
    """Executes runs. A new engine defines ``run`` and calls ``execute`` wherever its workers are."""

    @abstractmethod
    def run(self, runs: Sequence[str], out: Path, modules: Sequence[str] = ()) -> Iterator[Ended]:
        """Call ``execute`` for every run, in any order, and yield each as it ends.

        Args:
            runs: canonical JSON of configs that do not depend on each other.
            out: folder that all workers see.
            modules: to be imported by a worker first, since they register settings of the user.
        """


def execute(run: str, out: str) -> str | None:
    """Train one run. Its outcome, failures included, goes to its folder.

    Returns:
        Why it failed, in one line; None if it finished or diverged.
    """
    config = from_data(RunConfig, json.loads(run))
    folder = Path(out) / config.id
    forget_failure(folder)
    try:
        train(config, out)
    except Diverged as error:
        # Its own divergence is on record in its folder; that of a parent is the reason why this run cannot be.
        if error.run == config.id:
            return None
        reason = f"its parent: {error}"
        record_failure(folder, reason)
        return reason
    except Exception as error:
        # A sweep outlives any failure of a run, so all of them end here: named, recorded, and tried again next time.
        reason = f"{type(error).__name__}: {error}"
        record_failure(folder, reason, traceback.format_exc())
        return reason
    return None


@register
class Serial(Engine):
    """One run after the other, in this process."""

    def run(self, runs: Sequence[str], out: Path, modules: Sequence[str] = ()) -> Iterator[Ended]:
        for index, run in enumerate(runs):
            yield Ended(index, execute(run, str(out)))


@register
class Processes(Engine):
    """Warm worker processes on this machine, each with one run at a time.

    A worker that dies (killed, out of memory) takes the pool with it, and all runs in progress. They are run again
    one by one, so that the one that kills is found; a run whose worker has died twice while no other run was in
    progress is given up. If no worker can be started, all runs are.

    Attributes:
        workers: number of processes.
    """

    workers: int = 2

    def check(self) -> None:
        if self.workers < 1:
            raise SettingError("workers", "at least 1", self.workers)

    def run(self, runs: Sequence[str], out: Path, modules: Sequence[str] = ()) -> Iterator[Ended]:
        waiting, suspects = deque(range(len(runs))), deque[int]()
        deaths = [0] * len(runs)
        running: dict[Future[str | None], int] = {}
        pool = self._pool(modules)
        try:
            # A worker that dies before it has a run says nothing about the run that it would have had.
            if runs and not _starts(pool):
                yield from (Ended(index, _CANNOT_START) for index in waiting)
                return
            while waiting or suspects or running:
                # One run for each worker and no more: what is in the pool is what a dying worker can have been at.
                # Suspects come last and alone, so a death is then theirs.
                source, room = (waiting, self.workers) if waiting else (suspects, 1)
                while source and len(running) < room:
                    index = source.popleft()
                    running[_submit(pool, runs[index], out)] = index
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                if any(_broken(future) for future in ended):
                    ended, _ = wait(running)
                    pool.shutdown()
                    pool = self._pool(modules)
                certain = len(running) == 1
                for future in ended:
                    index = running.pop(future)
                    if not _broken(future):
                        error = future.exception()
                        yield Ended(index, f"{type(error).__name__}: {error}" if error else future.result())
                        continue
                    deaths[index] += certain
                    if deaths[index] < _LAST_DEATH:
                        suspects.append(index)
                    else:
                        yield Ended(index, f"its worker process died {deaths[index]} times")
        finally:
            pool.shutdown(cancel_futures=True)

    def _pool(self, modules: Sequence[str]) -> ProcessPoolExecutor:
        # A forked child of a process that has run torch or polars can hang, so workers start from nothing.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, context, _import_all, (tuple(modules),))


def _starts(pool: ProcessPoolExecutor) -> bool:
    """Whether a worker comes up and answers."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        return False
    return True


def _submit(pool: ProcessPoolExecutor, run: str, out: Path) -> Future[str | None]:
    try:
        return pool.submit(execute, run, str(out))
    except BrokenProcessPool as error:
        # A worker died before it had a run. It counts for this one, so that a pool that cannot live ends the sweep.
        future: Future[str | None] = Future()
        future.set_exception(error)
        return future


def _broken(future: Future[str | None]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
