"""``verified.json``: which finished runs were found whole, so that the next look need not read their files again.

For each run it holds a hash of what the file system says of the run's files: inode, size and times of change. A run
counts as whole as long as the hash stays the same. Whatever changes a file, or puts another one in its place, changes
the hash, and then the run is read again. A copy of the folder has other hashes too. Only a fault of the disk itself
changes no hash. The number of the device is not part of it: on a network file system each machine has another one.

The file is a cache and may be deleted at any time. One that is not what is written here, or that another user owns or
may write, counts as empty: with the right hash in it, damaged files would pass.
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
"""A hundred thousand runs take an eighth of it."""
_SETTLED = 60.0
"""Seconds without a change after which what somebody else made is entered. Two changes at nearly the same time can
leave the same time, and a network file system may tell of a change a minute late."""
_SECONDS_BETWEEN = 60.0
"""Writes of a sweep in progress."""

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
"""A release with other columns finds other frames whole."""
_RECORD = TypeAdapter(dict[str, tuple[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]])


class FileStates(NamedTuple):
    """What the file system says of a run's files.

    Attributes:
        place: of the run and the evaluation that is meant; of a parent any will do.
        found: a hash; empty if a file is missing.
        changed: when the last of them changed, in nanoseconds.
    """

    place: str
    found: str
    changed: int

    @property
    def settled(self) -> bool:
        """Whether nothing has changed for so long that a further change would show."""
        return self.changed < (time.time() - _SETTLED) * 1e9


class Verified:
    """The runs of a folder that are known to be whole, each with the seconds of its clocks.

    Args:
        trusted: False for a folder from somebody else: nothing is known of it, and nothing written there.
    """

    def __init__(self, folder: Path, *, trusted: bool = True) -> None:
        self._folder, self._trusted = folder.resolve(), trusted
        self._written = _read(self._folder / VERIFIED) if trusted else {}
        self._known, self._at = dict(self._written), time.monotonic()

    def look(self, run: RunConfig, *, any_evaluation: bool = False) -> FileStates:
        """At a run's folder and files, before they are read. Folders change with every file that is added, replaced
        or removed in them."""
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
        """The seconds of the clocks of a run that is known to be whole; None of any other."""
        found, seconds = self._known.get(look.place, ("", 0.0))
        return seconds if found and found == look.found else None

    def enter(self, look: FileStates, seconds: float | None) -> None:
        """A run was read after that look; of a whole one these are the seconds of its clocks."""
        if look.found and seconds is not None:
            self._known[look.place] = look.found, seconds
        else:
            self._known.pop(look.place, None)

    def write(self, *, now: bool = True) -> None:
        """Keep what is known, in a folder that belongs to this user and can be written.

        Args:
            now: otherwise once a minute.
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
