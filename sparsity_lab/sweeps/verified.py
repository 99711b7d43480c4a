"""``verified.json``: which finished runs were found whole, so that the next look need not read their files again.

For each run it holds a hash of what the file system says of the run's files: inode, size and times of change. A run
counts as whole as long as the hash stays the same. Whatever changes a file, or puts another one in its place, changes
the hash, and then the run is read again. A copy of the folder has other hashes too. Only a fault of the disk itself
changes no hash.

The file is a cache and may be deleted at any time. One that is not what is written here counts as empty.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from sparsity_lab.sweeps.results import State
from sparsity_lab.training import EVALUATION_SCHEMA, RunConfig, store
from sparsity_lab.training.files import read_file, write_file

VERIFIED = "verified.json"
_MOST_BYTES = 2**26
"""A hundred thousand runs take an eighth of it."""
_SETTLED = 60.0
"""Seconds without a change after which a run is entered. Two changes at nearly the same time can leave the same time,
and a network file system may tell of a change a minute late."""

_PLACES = (
    "",
    "evaluation",
    store.FINISHED,
    store.CONFIG,
    store.METRICS,
    store.MODEL,
    store.TIMING,
    store.TIMING_DIGEST,
)
_READ_AS = repr((EVALUATION_SCHEMA, store.METRICS_SCHEMA, store.TIMING_SCHEMA))
"""A release with other columns finds other frames whole."""
_RECORD = TypeAdapter(dict[str, tuple[str, str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]])


class Verified:
    """The runs of a folder that are known to be whole: by id the evaluation, a hash, and seconds of the clocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._before = _read(self._folder / VERIFIED)
        self._now = dict(self._before)

    def state(
        self, run: RunConfig, look: Callable[[], tuple[State, float]], *, any_evaluation: bool = False
    ) -> tuple[State, float]:
        """The state of a run and the seconds of its clocks: those that are known of a whole run, else what ``look``
        finds."""
        evaluation = "" if any_evaluation else store.evaluation_file(run)
        found, changed_at = _looks(self._folder / run.id, evaluation)
        *known, seconds = self._before.get(run.id, ("", "", 0.0))
        if found and known == [evaluation, found]:
            return State("finished"), seconds
        state, seconds = look()
        if found and state.status == "finished" and changed_at < (time.time() - _SETTLED) * 1e9:
            self._now[run.id] = evaluation, found, seconds
        else:
            self._now.pop(run.id, None)
        return state, seconds

    def write(self) -> None:
        """Keep what is known, if the folder can be written."""
        if self._now != self._before:
            with contextlib.suppress(OSError):
                write_file(self._folder / VERIFIED, json.dumps(self._now, separators=(",", ":")).encode())


def _read(file: Path) -> dict[str, tuple[str, str, float]]:
    with contextlib.suppress(OSError, ValidationError):
        return _RECORD.validate_json(read_file(file, _MOST_BYTES))
    return {}


def _looks(folder: Path, evaluation: str) -> tuple[str, int]:
    """A hash of what the file system says of a run's files, this evaluation among them, and when the last of them
    changed; an empty text if one is missing. Folders are among them: they change with every file that is added,
    replaced or removed."""
    try:
        states = [os.lstat(f"{folder}/{place}") for place in (*_PLACES, evaluation)]
    except OSError:
        return "", 0
    facts = [(one.st_mode, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in states]
    hashed = hashlib.blake2b(f"{_READ_AS}{facts}".encode(), digest_size=16).hexdigest()
    return hashed, max(one.st_ctime_ns for one in states)
