"""Engines: they execute the runs of a sweep.

An engine gets runs as JSON text and the shared folder, and reports which runs ended and which failed. The results of
a run are only in the folder, so the workers of an engine can be on any machine that sees the folder.
"""

import json
import os
import re
import sys
import traceback
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from sparsity_lab.settings import Setting, SettingError, check_least, check_most, check_that, from_data, register
from sparsity_lab.sweeps.workers import Device, Worker, first_ready
from sparsity_lab.training import Diverged, RunConfig
from sparsity_lab.training.lease import Leased

if TYPE_CHECKING:
    from sparsity_lab.training import Logger  # its module loads polars

_LAST_DEATH = 2
_MOST_WORKERS = 1024
_CANNOT_START = (
    "the worker processes could not start; their error output says why. A script that runs a "
    'sweep must do so under `if __name__ == "__main__":`, because every worker imports it'
)


@dataclass(frozen=True)
class Ended:
    """A run that an engine has ended.

    >>> Ended(index=0, failure=None).index
    0

    Attributes:
        index: the index of the run in the list given to the engine.
        failure: the result of ``execute``, or one line that says why there is none.
    """

    index: int
    failure: str | None = None


class Engine(Setting, family="engine"):
    """Executes runs. A new engine defines ``run`` and calls ``execute`` in its workers.

    >>> isinstance(Serial(), Engine)
    True
    """

    @abstractmethod
    def run(
        self, runs: Sequence[str], out: Path, modules: Sequence[str] = (), loggers: Sequence["Logger"] = ()
    ) -> Iterator[Ended]:
        """Call ``execute`` for every run, in any order, and yield each as it ends.

        Args:
            runs: canonical JSON of configs that do not depend on each other.
            out: a folder that all workers see.
            modules: modules that register settings of the user. A worker imports them first.
            loggers: the loggers for ``execute``; each worker process has its own copies.
        """

    def knows_main(self) -> bool:
        """Whether its workers know the settings that the script or session defines in ``__main__``."""
        return False


def execute(run: str, out: str, loggers: Sequence["Logger"] = ()) -> str | None:
    """Train one run, unless another process is working on it. Its outcome, failures included, goes to its folder.

    Args:
        loggers: receive the events of the run. An exception in a logger is a failure of the run.

    Returns:
        The reason why it failed, in one line; None if it finished or diverged, or if another process makes it.
    """
    from sparsity_lab.training import train  # noqa: PLC0415
    from sparsity_lab.training.folder import leave_failure, reason_of  # noqa: PLC0415

    config = from_data(RunConfig, json.loads(run))
    try:
        train(config, out, loggers=loggers, wait=False)
    except Leased:
        return None
    except Diverged as error:
        # The divergence of this run is recorded in its folder. If a parent diverged, that is why this run fails.
        if error.run == config.id:
            return None
        reason, trace = f"its parent: {error}", None
    except Exception as error:
        # A sweep survives any failure of a run. So each failure is recorded here, and the next sweep tries the run
        # again.
        reason, trace = reason_of(error), traceback.format_exc()
    else:
        return None
    # ``train`` has recorded failures while it held the run. This records earlier ones.
    leave_failure(Path(out) / config.id, reason, trace)
    return reason


@register
class Serial(Engine):
    """Executes one run after the other in this process.

    >>> Serial()
    Serial()
    """

    def run(
        self, runs: Sequence[str], out: Path, modules: Sequence[str] = (), loggers: Sequence["Logger"] = ()
    ) -> Iterator[Ended]:
        for index, run in enumerate(runs):
            yield Ended(index, execute(run, str(out), loggers))

    def knows_main(self) -> bool:
        """True, because the runs are executed in the session itself."""
        return True


@register
class Processes(Engine):
    """Warm worker processes on this machine, each with one run at a time.

    If a worker dies (killed, out of memory), another worker repeats its run. If that worker dies too, the run fails.
    If no worker can be started, all runs fail.

    With ``devices``, each process sees one GPU, as ``cuda``. So a sweep whose runs have ``training.device = "cuda"``
    has one or more runs on each GPU. A run gives the same result on all GPUs of one kind.

    Attributes:
        workers: number of processes, if no devices are given.
        devices: numbers of the GPUs to use, or their names such as ``"GPU-8f6c"`` or ``"MIG-41b3"``; ``"auto"`` for
            all GPUs that this process sees.
        per_device: number of processes, and so of concurrent runs, on each GPU.
    """

    workers: int = 2
    devices: Literal["auto"] | tuple[int | str, ...] = ()
    per_device: int = 1

    @property
    def slots(self) -> list[Device]:
        """The GPU of each process; None for a process that sees all GPUs.

        Raises:
            SettingError: ``"auto"`` on a machine without a GPU.
        """
        devices = self.devices
        if devices == "auto":
            # A worker sees one of the GPUs that this process sees, by the same name. CUDA stops reading at an
            # unknown name.
            seen = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
            names = [int(one) if re.fullmatch("[0-9]+", one) else one for one in seen if one]
            devices = tuple((names or range(torch.cuda.device_count()))[: torch.cuda.device_count()])
            check_that(devices, "devices", "'auto' needs a GPU, but this machine has none")
        return [device for device in devices for _ in range(self.per_device)] or [None] * self.workers

    def check(self) -> None:
        check_least(1, per_device=self.per_device)
        if self.devices != "auto":
            for i, device in enumerate(self.devices):
                known = re.fullmatch(r"(GPU|MIG)-[^,\s]+", device) if isinstance(device, str) else device >= 0
                if not known or device in self.devices[:i]:
                    expected = "the number of a GPU, from 0, or its name such as 'GPU-8f6c', each once"
                    raise SettingError(f"devices[{i}]", expected, device)
        check_least(1, workers=self.workers)
        check_most(_MOST_WORKERS, workers=self.workers)

    def knows_main(self) -> bool:
        """Whether the main program is a script. Every worker imports a script, but cannot import a notebook."""
        main = sys.modules["__main__"]
        return hasattr(main, "__file__") or getattr(main, "__spec__", None) is not None

    def run(
        self, runs: Sequence[str], out: Path, modules: Sequence[str] = (), loggers: Sequence["Logger"] = ()
    ) -> Iterator[Ended]:
        call = partial(execute, loggers=tuple(loggers))
        waiting, deaths = deque(range(len(runs))), [0] * len(runs)
        # Workers that died before they were ready, since a worker was last alive.
        failed_starts = 0
        workers: list[Worker] = []
        slots = self.slots
        try:
            while waiting or any(worker.run is not None for worker in workers):
                if failed_starts < _LAST_DEATH:
                    idle = sum(worker.run is None for worker in workers)
                    free = Counter(slots) - Counter(worker.device for worker in workers)
                    missing = max(0, len(waiting) - idle)
                    workers += [Worker(call, modules, slot) for slot in _in_turn(free, slots)[:missing]]
                for worker in workers:
                    if waiting and worker.ready and worker.run is None:
                        index = waiting.popleft()
                        worker.begin(index, runs[index], str(out))
                for worker in first_ready(workers):
                    try:
                        at, answer = worker.run, worker.answer()
                        if at is not None:
                            yield Ended(at, answer)
                        failed_starts = 0
                    except EOFError:
                        workers.remove(worker)
                        how = worker.death()
                        if worker.run is not None:
                            deaths[worker.run] += 1
                            if deaths[worker.run] < _LAST_DEATH:
                                waiting.append(worker.run)
                            else:
                                yield Ended(worker.run, f"its worker process died {_LAST_DEATH} times, last {how}")
                        # A worker that dies before it has a run says nothing about any run.
                        if not worker.ready:
                            # A killed worker may have been unlucky. A worker that ended on its own could not
                            # import a module, and other workers cannot import it either.
                            failed_starts += 1 if worker.killed else _LAST_DEATH
                        if not workers and failed_starts >= _LAST_DEATH:
                            yield from (Ended(index, _CANNOT_START) for index in waiting)
                            return
        finally:
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.join()


def _in_turn(free: Mapping[Device, int], slots: Sequence[Device]) -> list[Device]:
    """The free slots, in turn over the devices, so that a few runs use all devices."""
    order = list(dict.fromkeys(slots))
    return [device for turn in range(len(slots)) for device in order if free.get(device, 0) > turn]
