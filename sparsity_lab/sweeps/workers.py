"""Warm worker processes: each imports once and then executes runs, one at a time, until the parent stops it.

A process pool of the standard library ends all its workers when one dies. Here a death costs the run that the worker
was at, which is known, and the others go on.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

Execute = Callable[[str, str], str | None]
Device = int | str | None
"""The number or the name of the one GPU that a process sees; None for all of them."""

START_METHOD = "spawn"
"""A forked child of a process that has run torch or polars can hang, so workers start from nothing."""
_SECONDS_TO_STOP = 10.0


class Worker:
    """A process, and the run that it is at.

    Attributes:
        run: what the caller calls the run in progress; None for an idle worker.
        ready: it has answered once, so that it can live.
        device: the one GPU that it sees.
    """

    def __init__(self, execute: Execute, modules: Sequence[str], device: Device = None) -> None:
        context: Any = multiprocessing.get_context(START_METHOD)
        self.connection, far = context.Pipe()
        self.run: int | None = None
        self.ready, self.device = False, device
        self._process = context.Process(target=_serve, args=(far, execute, tuple(modules), device))
        # Ctrl-C on a terminal goes to all its processes. A worker never gets it, from its first moment on: the one
        # that started it says what comes next.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()

    def begin(self, run: int, text: str, out: str) -> None:
        """Execute a run, once the worker is up."""
        self.run = run
        # If it has died, the process that waits for it will notice.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(json.dumps([text, out]).encode())

    def answer(self) -> str | None:
        """What ``execute`` returned, or first that it is up; the worker is idle then.

        Raises:
            EOFError: it died.
        """
        try:
            answer: str | None = json.loads(self.connection.recv_bytes())
        except OSError:
            raise EOFError from None
        self.run, self.ready = None, True
        return answer

    def death(self) -> str:
        """How it died, in words."""
        self.join()
        code = self._process.exitcode
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        self.join()
        return bool(self._process.exitcode < 0)

    def stop(self) -> None:
        """Have it leave its run, give up its lease and end."""
        self._process.terminate()

    def join(self) -> None:
        """Wait until it has ended; one that cannot is killed."""
        self._process.join(_SECONDS_TO_STOP)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self.connection.close()


def first_ready(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until one of these has something to say, if only by its death; all that have."""
    by_connection = {worker.connection: worker for worker in workers}
    return [by_connection[connection] for connection in wait(list(by_connection))]


def _serve(connection: Connection, execute: Execute, modules: Sequence[str], device: Device) -> None:
    """What a worker does."""
    if device is not None:
        # Before anything asks for a GPU; to this process it is the first one.
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_after, args=(multiprocessing.parent_process(),), daemon=True).start()
    # Standard output belongs to the process that started this one.
    sys.stdout = sys.stderr
    for module in modules:
        importlib.import_module(module)
    connection.send_bytes(b'"up"')
    while True:
        try:
            run, out = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps(_executed(execute, run, out)).encode())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _executed(execute: Execute, run: str, out: str) -> str | None:
    try:
        return execute(run, out)
    except Exception as error:
        # What goes wrong before a run has begun (a kind that no module of this worker registers) is its failure too.
        return f"{type(error).__name__}: {error}"


def _leave(number: int, frame: FrameType | None) -> None:
    # As an exception, so that files half written are removed and leases given up on the way out, which no second
    # signal is to cut short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _leave_after(parent: Any) -> None:
    """End this process when the one that started it has ended, however that was."""
    wait([parent.sentinel])
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)
