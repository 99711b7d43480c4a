"""Which process made a file or a lease, and whether it still runs."""

import functools
import hashlib
import os
import re
import secrets
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_MARK = re.compile(r"(?P<place>[0-9a-f]{12})\.(?P<process>\d+)\.(?P<started>\d+)\.[0-9a-f]{8}")


@dataclass(frozen=True)
class Writer:
    """A process, as others that see the same folder know it.

    Attributes:
        place: of a machine since it was booted, and of a container on it: where process numbers mean the same.
        process: its number there.
        started: when it started, in the system's ticks, since numbers are used again; 0 where the system does not
            say.
    """

    place: str
    process: int
    started: int

    @classmethod
    def here(cls) -> Self:
        """This process."""
        return cls(_place(), os.getpid(), _started(os.getpid()) or 0)

    @classmethod
    def numbered(cls, process: int) -> Self | None:
        """The process of this machine that has this number; None if none has."""
        started = _started(process)
        return None if started is None else cls(_place(), process, started)

    @classmethod
    def of(cls, mark: str) -> Self | None:
        """The writer that made this mark; None if it is no mark."""
        found = _MARK.fullmatch(mark)
        return cls(found["place"], int(found["process"]), int(found["started"])) if found else None

    def mark(self) -> str:
        """A new name that says who made it, and that no other has."""
        return f"{self.place}.{self.process}.{self.started}.{secrets.token_hex(4)}"

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this place, where its end can be seen."""
        return self.place == _place()

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended. Of processes elsewhere nothing is known, nor of one that may not be
        looked at."""
        if not self.is_here:
            return False
        started = _started(self.process)
        return started is None or (0 not in (started, self.started) and started != self.started)


@functools.cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot, numbers = f"{uuid.getnode():x}", ""
    return hashlib.sha256(f"{socket.gethostname()} {boot} {numbers}".encode()).hexdigest()[:12]


def _started(process: int) -> int | None:
    """The start time of a process on this machine, or 0 if the system does not report it. None if there is no such
    process, or only a zombie."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        # The name before the last bracket may hold anything, and need not be text.
        state, *fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return None if state in (b"Z", b"X") else int(fields[18])
