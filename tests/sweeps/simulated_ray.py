"""A stand-in for the package ``ray``, whose tasks end as a script says, one at a time and in the order given."""

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

__all__ = ["NodeDiedError", "OutOfMemoryError", "SimulatedRay", "WorkerCrashedError"]


class RayError(Exception):
    pass


class NodeDiedError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class SimulatedRay:
    """One node with four CPUs.

    Attributes:
        outcomes: for each run, what its executions return or raise, one after the other; a run that has none left
            never ends.
        started: the runs, in the order of their executions.
        most_in_flight: tasks at a time.
        alive: whether the node is up.
        connected: between ``init`` and ``shutdown``.
    """

    exceptions = SimpleNamespace(
        RayError=RayError,
        NodeDiedError=NodeDiedError,
        WorkerCrashedError=WorkerCrashedError,
        OutOfMemoryError=OutOfMemoryError,
    )

    def __init__(self, outcomes: dict[str, list[object]]) -> None:
        self.outcomes = {run: deque(ends) for run, ends in outcomes.items()}
        self.started: list[str] = []
        self.most_in_flight = 0
        self.alive, self.connected = True, False

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, address: str, **_: object) -> None:
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": self.alive, "Resources": {"CPU": 4.0}}]

    def remote(self, **options: object) -> Callable[[object], SimpleNamespace]:
        assert options["max_retries"] == 0
        # By default Ray ends a worker that has had a GPU after each task.
        assert options["max_calls"] == 0

        def start(run: str, *_: object) -> tuple[int, str]:
            self.started.append(run)
            return len(self.started), run

        return lambda function: SimpleNamespace(remote=start)

    def wait(self, tasks: Sequence[tuple[int, str]], timeout: float) -> tuple[list[tuple[int, str]], None]:
        self.most_in_flight = max(self.most_in_flight, len(tasks))
        return [task for task in tasks if self.outcomes[task[1]]][:1], None

    def get(self, task: tuple[int, str]) -> object:
        outcome = self.outcomes[task[1]].popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
