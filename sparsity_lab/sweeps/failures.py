"""``failed.json``: why a run has no result. A run that is tried again loses it."""

import json
from pathlib import Path
from typing import Any

from sparsity_lab.training.store import write_json

__all__ = ["forget_failure", "read_failure", "record_failure"]

_FILE = "failed.json"


def record_failure(folder: Path, reason: str, trace: str | None = None) -> None:
    """Write the reason, one line, and the traceback if there is one."""
    write_json(folder / _FILE, {"reason": reason, "step": None, "traceback": trace})


def read_failure(folder: Path) -> dict[str, Any] | None:
    """The record of a folder, None if there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / _FILE).read_bytes())
    except FileNotFoundError:
        return None
    return record


def forget_failure(folder: Path) -> None:
    """Remove the record."""
    (folder / _FILE).unlink(missing_ok=True)
