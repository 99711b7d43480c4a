"""The folder of a run that this process makes, written under the run's lease; and why a run has no result."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from sparsity_lab.settings import canonical_json
from sparsity_lab.training import store
from sparsity_lab.training.config import RunConfig
from sparsity_lab.training.files import Writer, remove, write_file
from sparsity_lab.training.folder import RunFolder
from sparsity_lab.training.lease import Lease, Leased, LeaseLost, holder_of
from sparsity_lab.training.store import Marker

_DYING = 3.0
"""Seconds for which a holder that has been killed may still look alive."""


class HeldFolder(RunFolder):
    """A run's folder whose lease this process holds. What it has written it knows, and does not read again."""

    def __init__(self, lease: Lease, config: RunConfig | None = None) -> None:
        super().__init__(lease.folder, config)
        self.check = lease.check

    def write(self, name: str, content: bytes, *, flush: bool = False) -> None:
        """Put a file in its place; ``flush`` is as for ``files.write_file``."""
        if not (place := (self.path / name).parent).is_dir():
            self.check()
            remove(place)  # a file where the folder of the evaluations belongs
        write_file(self.path / name, content, flush=flush, check=self.check)
        self._forget(name)
        self._digests[name] = store.digest(content)
        if name != store.MODEL:
            self._contents[name] = content

    def write_config(self) -> None:
        """The canonical config, unless that is what is there."""
        content = canonical_json(self.config).encode()
        if self.content(store.CONFIG) != content:
            self.write(store.CONFIG, content)

    def write_timing(self, frame: pl.DataFrame) -> None:
        """The clocks, with their digest in a file of its own: a marker that held it would differ by engine."""
        content = store.parquet_bytes(frame)
        self.write(store.TIMING, content)
        self.write(store.TIMING_DIGEST, store.digest(content).encode())

    def mark(
        self,
        status: Literal["trained", "finished", "diverged"],
        files: Sequence[str],
        *,
        step: int | None = None,
        loss: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Write the marker, with the checksums of ``files`` and of the evaluations for which the last one vouched."""
        before = self.marker.files if self.marker else {}
        digests = {name: known for name, known in before.items() if name.startswith(f"{store.EVALUATION}/")}
        for name in files:
            found = self.digest(name)
            if isinstance(found, OSError):
                raise found
            digests[name] = found
        marker = Marker(status=status, files=digests, step=step, loss=loss, reason=reason)
        name, flush = (store.TRAINED, False) if status == "trained" else (store.FINISHED, True)
        self.write(name, marker.to_json(), flush=flush)

    def discard(self) -> None:
        """Forget the run. The markers go first, so that the folder is never taken for finished."""
        evaluation = self.path / store.EVALUATION
        frames = [f"{store.EVALUATION}/{file.name}" for file in evaluation.glob("*.parquet")]
        for name in (*store.MADE, *frames):
            self._remove(name)
        if not evaluation.is_dir():
            remove(evaluation)

    def record_failure(self, reason: str, trace: str | None = None) -> None:
        """Write why the run has no result, in one line, and the traceback if there is one; nothing if the folder
        cannot be written, which can be the very failure."""
        with contextlib.suppress(OSError):
            self.write(store.FAILED, store.json_bytes({"reason": reason, "step": None, "traceback": trace}))

    def forget_failure(self) -> None:
        """Remove the record of an earlier failure: the run is tried again."""
        self._remove(store.FAILED)

    def _remove(self, name: str) -> None:
        self.check()
        remove(self.path / name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        """What was read of a file, and of the marker, is not so any more."""
        self._contents.pop(name, None)
        self._digests.pop(name, None)
        vars(self).pop("marker", None)


def reason_of(error: Exception) -> str:
    """Why something failed, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def leave_failure(path: Path, reason: str, trace: str | None = None) -> None:
    """``record_failure`` for a run that this process does not hold: nothing if that is what is on record, or if
    another process holds the run and has to say. A holder of this machine is given some seconds to end: of a worker
    that was killed the connection breaks before the process is gone."""
    if RunFolder(path).failure == reason:
        return
    end = time.monotonic() + _DYING
    with contextlib.suppress(OSError, LeaseLost):
        path.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with Lease.hold(path, wait=False) as lease:
                    HeldFolder(lease).record_failure(reason, trace)
                return
            except Leased:
                if time.monotonic() > end or _is_held_elsewhere(path):
                    return
                time.sleep(0.05)


def _is_held_elsewhere(path: Path) -> bool:
    """Whether the run's holder is where its end cannot be seen."""
    holder = holder_of(path)
    writer = Writer.of(holder.mark) if holder else None
    return holder is not None and not (writer and writer.is_here)
