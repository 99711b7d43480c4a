"""``RayEngine``: the runs of a sweep on a Ray cluster of one or many machines.

Ray gives a run to a node and reports when it is over. All results of a run go through the shared folder. Ray itself
sends little: to a worker, the name of ``execute_in_worker``, the run as JSON text, some paths and the loggers; back,
the one line that ``execute`` returns. Ray's serialization is msgpack, or pickle for other types, and any user of a
Ray cluster can run code in it. So keep a cluster in a trusted network, or require a token (``RAY_AUTH_MODE=token``).
The folder needs no such trust, because nothing in it is pickled.
"""

import contextlib
import importlib
import math
import os
import re
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_lab.settings import SettingError, check_least, check_that, register
from sparsity_lab.settings.lazy import required
from sparsity_lab.sweeps.engines import Ended, Engine, execute

if TYPE_CHECKING:
    from sparsity_lab.training import Logger  # its module loads polars

_LAST_DEATH = 2
_SMALLEST_SHARE = 1e-4
"""The unit in which Ray counts resources."""
_OBJECT_STORE = 80 * 2**20
"""Bytes, close to Ray's minimum. Lines of text never enter the object store."""
_SECONDS_BETWEEN_LOOKS = 5.0
_HOST_AND_PORT = re.compile(r"([^\s/]+):(\d+)")


@register
class RayEngine(Engine):
    """Tasks on a Ray cluster, one for each run. It needs the extra ``ray`` (``pip install "sparsity-lab[ray]"``).

    All nodes must see the folder of the sweep under the same path, and have this package and the user's modules
    installed or in the same places. A node holds as many runs at a time as its CPUs and GPUs allow. Workers stay warm
    between runs.

    If the worker of a run dies (killed, out of memory), the run is repeated once. If the node of a run is lost, the
    run is repeated on another node, up to ``retries`` times. If no node has room for a run, all runs fail after
    ``patience``. A lost head node ends the sweep; the same command resumes it.

    Attributes:
        address: ``"local"`` starts and stops a cluster on this machine. ``"auto"`` uses the one that runs on this
            machine, or the one in the environment variable ``RAY_ADDRESS``. ``"host:port"`` is the address of a head
            node.
        cpus: CPUs per run; a fraction if several runs share one. Ray only counts them: the number of threads of a run
            is a setting of its training.
        gpus: GPUs per run; a fraction if several runs share one. With 0, a run sees no GPU.
        retries: the largest number of repetitions of a run after lost nodes.
        in_flight: the number of runs that Ray has at a time. With more runs than fit, the cluster stays busy.
        patience: seconds to wait for a cluster that does not answer, or that has no node with room for a run.
    """

    address: str = "local"
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3
    in_flight: int = 1000
    patience: float = 60.0

    def check(self) -> None:
        if self.address not in ("local", "auto") and not _HOST_AND_PORT.fullmatch(self.address):
            raise SettingError("address", "'local', 'auto' or 'host:port'", self.address)
        check_that(_SMALLEST_SHARE <= self.cpus < math.inf, "cpus", f"at least {_SMALLEST_SHARE:g}", self.cpus)
        if not (self.gpus == 0 or _SMALLEST_SHARE <= self.gpus <= 1 or (self.gpus > 1 and self.gpus.is_integer())):
            raise SettingError("gpus", "0, a fraction below 1, or a whole number", self.gpus)
        check_least(0, retries=self.retries)
        check_least(1, in_flight=self.in_flight)
        check_that(0 < self.patience < math.inf, "patience", "a number of seconds above 0", self.patience)

    def run(
        self, runs: Sequence[str], out: Path, modules: Sequence[str] = (), loggers: Sequence["Logger"] = ()
    ) -> Iterator[Ended]:
        """As ``Engine.run``.

        Raises:
            SettingError: Ray is not installed, or this process already uses it. Or the cluster does not answer, or
                none of its nodes has the CPUs and GPUs for a run.
        """
        ray = required("ray", "ray", "engine")
        if not runs:
            return
        with self._connected(ray):
            check_that(self._fits(ray), "engine", f"no node of the cluster can hold a run: {self._no_room()}")
            yield from self._run(ray, runs, out, modules, loggers)

    def _run(
        self, ray: Any, runs: Sequence[str], out: Path, modules: Sequence[str], loggers: Sequence["Logger"]
    ) -> Iterator[Ended]:
        # Ray cannot know which failures are worth a retry, so it tries once. Without ``max_calls`` it would end a
        # worker with a GPU after each run.
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, max_calls=0)(execute_in_worker)
        # A worker has another working directory.
        paths = [os.path.abspath(entry) for entry in sys.path]
        same_for_all = (str(out.absolute()), list(modules), paths, list(loggers))
        waiting, deaths, losses = deque(range(len(runs))), Counter[int](), Counter[int]()
        running: dict[Any, int] = {}
        last_seen_room = time.monotonic()
        while waiting or running:
            while waiting and len(running) < self.in_flight:
                index = waiting.popleft()
                running[task.remote(runs[index], *same_for_all)] = index
            ended, _ = ray.wait(list(running), timeout=min(self.patience, _SECONDS_BETWEEN_LOOKS))
            if ended or self._fits(ray):
                last_seen_room = time.monotonic()
            elif time.monotonic() - last_seen_room > self.patience:
                yield from (
                    Ended(index, f"its cluster has lost its nodes: {self._no_room()}")
                    for index in sorted([*waiting, *running.values()])
                )
                return
            for reference in ended:
                index = running.pop(reference)
                try:
                    yield Ended(index, ray.get(reference))
                except ray.exceptions.NodeDiedError:
                    losses[index] += 1
                    if losses[index] <= self.retries:
                        waiting.append(index)
                    else:
                        yield Ended(index, f"its node was lost {losses[index]} times")
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                    deaths[index] += 1
                    if deaths[index] < _LAST_DEATH:
                        waiting.append(index)
                    else:
                        how = " for lack of memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else ""
                        yield Ended(index, f"its worker process died {_LAST_DEATH} times{how}")
                except ray.exceptions.RayError as error:
                    # An error before ``execute``: a missing package or module in the worker, or another version of
                    # Ray.
                    yield Ended(index, str(error).strip().splitlines()[-1])

    @contextlib.contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        """Connect to the cluster, or start one. At the end, all processes that this connection started are stopped,
        runs in progress included."""
        if ray.is_initialized():
            raise SettingError("engine", "Ray is already running in this process; call ray.shutdown() first")
        address = os.environ.get("RAY_ADDRESS", "auto") if self.address == "auto" else self.address
        if found := _HOST_AND_PORT.fullmatch(address):
            try:
                _reach(found[1].strip("[]"), int(found[2]), self.patience)
            except (OSError, OverflowError) as error:
                raise SettingError("address", f"no Ray cluster answers at {address} ({error})") from None
        start = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE} if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", **start)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            why = str(error).splitlines()[0]
            raise SettingError("address", f"no Ray cluster answers at {address} ({why})") from None
        try:
            yield
        finally:
            ray.shutdown()

    def _fits(self, ray: Any) -> bool:
        """Whether a live node has room for a run when it is idle."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return any(all(node.get(name, 0.0) >= share for name, share in wanted.items()) for node in nodes)

    def _no_room(self) -> str:
        return f"none with {self.cpus:g} CPUs and {self.gpus:g} GPUs"


def execute_in_worker(
    run: str, out: str, modules: Sequence[str], paths: Sequence[str], loggers: Sequence["Logger"] = ()
) -> str | None:
    """``execute`` in a worker, after it has extended its module path by that of the sweep's process and imported the
    user's modules."""
    sys.path.extend(path for path in paths if path not in sys.path)
    for module in modules:
        importlib.import_module(module)
    return execute(run, out, loggers)


def _reach(host: str, port: int, seconds: float) -> None:
    """Raise ``OSError`` if the server there cannot be Ray. Ray itself would try for minutes."""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        # Ray uses gRPC over HTTP/2 (RFC 9113). Each side begins with a frame of settings, which can be empty.
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        if connection.recv(4, socket.MSG_WAITALL)[3:] != b"\x04":
            raise OSError("the server at this address is not Ray")
