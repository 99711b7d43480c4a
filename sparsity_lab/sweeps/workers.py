"""Warm worker processes: each imports once and then executes runs, one at a time, until the parent stops it.

A process pool of the standard library ends all its workers when one dies. Here, a death affects only the run of that
worker, which is known, and the other workers continue.
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
"""The number or name of the only GPU that a process sees; None for all GPUs."""

START_METHOD = "spawn"
"""A forked child of a process that has used torch or polars can hang, so workers start as new processes."""
_SECONDS_TO_STOP = 10.0


class Worker:
    """A process and its current run.

    Attributes:
        run: the caller's index of the run in progress; None for an idle worker.
        ready: whether it has answered once, so that its imports worked.
        device: the only GPU that it sees.
    """

    def __init__(self, execute: Execute, modules: Sequence[str], device: Device = None) -> None:
        context: Any = multiprocessing.get_context(START_METHOD)
        self.connection, far = context.Pipe()
        self.run: int | None = None
        self.ready, self.device = False, device
        self._process = context.Process(target=_serve, args=(far, execute, tuple(modules), device))
        # Ctrl-C in a terminal goes to all its processes. A worker ignores it from the start: its parent decides what
        # happens next.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()

    def begin(self, run: int, text: str, out: str) -> None:
        """Start a run in a worker that is ready."""
        self.run = run
        # If it has died, the process that waits for it will notice.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(json.dumps([text, out]).encode())

    def answer(self) -> str | None:
        """The result of ``execute``, or "up" for the first answer. The worker is then idle.

        Raises:
            EOFError: the worker died.
        """
        try:
            answer: str | None = json.loads(self.connection.recv_bytes())
        except OSError:
            raise EOFError from None
        self.run, self.ready = None, True
        return answer

    def death(self) -> str:
        """How the worker died, in words."""
        self.join()
        code = self._process.exitcode
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    @property
    def killed(self) -> bool:
        """Whether a signal ended the worker."""
        self.join()
        return bool(self._process.exitcode < 0)

    def stop(self) -> None:
        """Tell the worker to leave its run, give up its lease and end."""
        self._process.terminate()

    def join(self) -> None:
        """Wait until the worker has ended, and kill it if it does not end."""
        self._process.join(_SECONDS_TO_STOP)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self.connection.close()


def first_ready(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until at least one worker has answered or died. Returns all that have."""
    by_connection = {worker.connection: worker for worker in workers}
    return [by_connection[connection] for connection in wait(list(by_connection))]


def _serve(connection: Connection, execute: Execute, modules: Sequence[str], device: Device) -> None:
    """The main loop of a worker."""
    if device is not None:
        # This must come before any use of a GPU. In this process the GPU is the first one.
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
        # An error before the run has begun (such as a kind that no module registers) is also a failure of the run.
        return f"{type(error).__name__}: {error}"


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception, so that partial files are removed and leases given up on the way out. A second signal must not
    # interrupt this.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _leave_after(parent: Any) -> None:
    """End this process when its parent has ended in any way."""
    wait([parent.sentinel])
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)
