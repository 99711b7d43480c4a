"""``verified.json``: a cache of verified runs, so that the next check does not read their files again.

For each run it holds a hash of the inodes, sizes and times of change of the run's files. A run counts as verified
while the hash stays the same. Any change or replacement of a file changes the hash, and then the run is read again. A
copy of the folder has other hashes too. Only a fault of the disk itself changes no hash. The device number is not
part of the hash, because it differs between machines on a network file system.

You can delete the file at any time. It counts as empty if its content is invalid, or if another user owns it or can
write to it: with the right hash, damaged files would pass.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from sparsity_lab.training import EVALUATION_SCHEMA, RunConfig, store
from sparsity_lab.training.files import open_file, write_file

VERIFIED = "verified.json"
_MOST_BYTES = 2**26
"""The largest size. A hundred thousand runs take an eighth of it."""
_SETTLED = 60.0
"""Seconds without a change before a run of another process is entered. Two changes in quick succession can have the
same time, and a network file system may report a change a minute late."""
_SECONDS_BETWEEN = 60.0
"""The shortest time between two writes of a sweep in progress."""

_PLACES = (
    store.EVALUATION,
    store.FINISHED,
    store.CONFIG,
    store.METRICS,
    store.MODEL,
    store.TIMING,
    store.TIMING_DIGEST,
)
_READ_AS = repr((EVALUATION_SCHEMA, store.METRICS_SCHEMA, store.TIMING_SCHEMA))
"""The schemas are part of the hash, because a release with other columns accepts other frames."""
_RECORD = TypeAdapter(dict[str, tuple[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]])


class FileStates(NamedTuple):
    """The state of a run's files in the file system.

    Attributes:
        place: the ids of the run and its evaluation; for a parent, any evaluation counts.
        found: a hash; empty if a file is missing.
        changed: the time of the last change, in nanoseconds.
    """

    place: str
    found: str
    changed: int

    @property
    def settled(self) -> bool:
        """Whether the last change is so old that a new change would have another time."""
        return self.changed < (time.time() - _SETTLED) * 1e9


class Verified:
    """The verified runs of a folder, each with its seconds.

    Args:
        trusted: False for a folder from someone else. Then the cache is neither read nor written.
    """

    def __init__(self, folder: Path, *, trusted: bool = True) -> None:
        self._folder, self._trusted = folder.resolve(), trusted
        self._written = _read(self._folder / VERIFIED) if trusted else {}
        self._known, self._at = dict(self._written), time.monotonic()

    def look(self, run: RunConfig, *, any_evaluation: bool = False) -> FileStates:
        """The state of a run's folder and files, taken before they are read. A folder changes when a file in it is
        added, replaced or removed."""
        folder = self._folder / run.id
        own = store.evaluation_file(run)
        names = _PLACES if any_evaluation and not os.path.lexists(folder / own) else (*_PLACES, own)
        place = f"{run.id}/{'' if any_evaluation else run.evaluation_id}"
        try:
            states = [os.lstat(folder), *(os.lstat(f"{folder}/{name}") for name in names)]
        except OSError:
            return FileStates(place, "", 0)
        facts = [(one.st_mode, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in states]
        hashed = hashlib.blake2b(f"{_READ_AS}{facts}".encode(), digest_size=16).hexdigest()
        return FileStates(place, hashed, max(one.st_ctime_ns for one in states))

    def seconds(self, look: FileStates) -> float | None:
        """The seconds of a verified run; None for other runs."""
        found, seconds = self._known.get(look.place, ("", 0.0))
        return seconds if found and found == look.found else None

    def enter(self, look: FileStates, seconds: float | None) -> None:
        """Record that a run was read after this look. ``seconds`` are those of a verified run; None for others."""
        if look.found and seconds is not None:
            self._known[look.place] = look.found, seconds
        else:
            self._known.pop(look.place, None)

    def write(self, *, now: bool = True) -> None:
        """Write the cache, if the folder belongs to this user and is writable.

        Args:
            now: write now; otherwise at most once a minute.
        """
        if (now or time.monotonic() > self._at + _SECONDS_BETWEEN) and self._known != self._written:
            self._written, self._at = dict(self._known), time.monotonic()
            with contextlib.suppress(OSError):
                if self._trusted and self._folder.stat().st_uid == os.geteuid():
                    content = json.dumps(self._known, separators=(",", ":")).encode()
                    write_file(self._folder / VERIFIED, content, mode=0o600)


def _read(file: Path) -> dict[str, tuple[str, float]]:
    with contextlib.suppress(OSError, ValidationError), open_file(file) as opened:
        state = os.fstat(opened.fileno())
        if state.st_uid == os.geteuid() and not state.st_mode & 0o022 and state.st_size <= _MOST_BYTES:
            return _RECORD.validate_json(opened.read(_MOST_BYTES))
    return {}
