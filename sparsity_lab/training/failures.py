"""``failed.json``: why a run has no result. A run that is tried again loses it."""

import contextlib
import os
import time
from pathlib import Path

from sparsity_lab.training.files import remove
from sparsity_lab.training.lease import Lease, Leased, LeaseLost, holder_of
from sparsity_lab.training.store import FAILED, read_object, write_json
from sparsity_lab.training.writers import Writer

__all__ = ["forget_failure", "leave_failure", "read_failure", "reason_of", "record_failure"]

_DYING = 3.0
"""Seconds for which a holder that has been killed may still look alive."""


def reason_of(error: Exception) -> str:
    """Why something failed, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def record_failure(lease: Lease, reason: str, trace: str | None = None) -> None:
    """Write the reason, one line, and the traceback if there is one; nothing if the folder cannot be written, which
    can be the very failure."""
    with contextlib.suppress(OSError):
        write_json(lease.folder / FAILED, {"reason": reason, "step": None, "traceback": trace}, check=lease.check)


def leave_failure(folder: Path, reason: str, trace: str | None = None) -> None:
    """``record_failure`` for a run that this process does not hold: nothing if that is what is on record, or if
    another process holds the run, whose affair it is. A holder of this machine is given some seconds to end: of a
    worker that was killed the connection breaks before the process is gone."""
    if read_failure(folder) == reason:
        return
    end = time.monotonic() + _DYING
    with contextlib.suppress(OSError, LeaseLost):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with Lease.hold(folder, wait=False) as lease:
                    record_failure(lease, reason, trace)
                return
            except Leased:
                if time.monotonic() > end or _is_held_elsewhere(folder):
                    return
                time.sleep(0.05)


def _is_held_elsewhere(folder: Path) -> bool:
    """Whether the run's holder is where its end cannot be seen."""
    holder = holder_of(folder)
    writer = Writer.of(holder.mark) if holder else None
    return holder is not None and not (writer and writer.is_here)


def forget_failure(lease: Lease) -> None:
    """Remove the record of an earlier failure: the run is tried again."""
    lease.check()
    remove(lease.folder / FAILED)


def read_failure(folder: Path) -> str | None:
    """The recorded reason, None if there is no record; of a damaged one, that it is damaged."""
    record = read_object(folder / FAILED)
    if record is None or not isinstance(record.get("reason"), str):
        # Unlike Path.exists, this is not stopped by a folder that cannot be entered.
        return f"{FAILED} is damaged" if os.path.exists(folder / FAILED) else None
    return str(record["reason"])
