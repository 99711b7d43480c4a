"""``failed.json``: why a run has no result. A run that is tried again loses it."""

import contextlib
import os
from pathlib import Path

from sparsity_lab.training.store import FAILED, read_object, write_json

__all__ = ["read_failure", "record_failure"]


def record_failure(folder: Path, reason: str, trace: str | None = None) -> None:
    """Write the reason, one line, and the traceback if there is one; nothing if the folder cannot be written, which
    can be the very failure."""
    with contextlib.suppress(OSError):
        write_json(folder / FAILED, {"reason": reason, "step": None, "traceback": trace})


def read_failure(folder: Path) -> str | None:
    """The recorded reason, None if there is no record; of a damaged one, that it is damaged."""
    record = read_object(folder / FAILED)
    if record is None or not isinstance(record.get("reason"), str):
        # Unlike Path.exists, this is not stopped by a folder that cannot be entered.
        return f"{FAILED} is damaged" if os.path.exists(folder / FAILED) else None
    return str(record["reason"])
