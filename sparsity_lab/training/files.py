"""Files that are written whole or not at all, which process writes them, and what is left of one that was killed.

Every file is first written next to its place, under a name that identifies the writer, and then renamed. So no reader
ever meets a part of one, and what a killed writer left is recognized by its name.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Self

MOST_BYTES = 2**22
"""Of a file, but for frames, weights and the list of a sweep's runs."""
Check = Callable[[], None]
"""Raises if this process may no longer write here."""

_MARK = r"[0-9a-f]{12}\.\d+\.\d+\.[0-9a-f]{8}"
_UNFINISHED = re.compile(rf"\..+\.({_MARK})\.tmp")
_DAY = 86_400.0


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
        place, *numbers, _ = mark.split(".") if re.fullmatch(_MARK, mark) else ("", "")
        return cls(place, *map(int, numbers)) if place else None

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


class DamagedFile(ValueError):
    """A file that is not what was written.

    Attributes:
        file: its path.
        what: what is wrong with it, in words that follow its name.
    """

    def __init__(self, file: Path, what: str) -> None:
        self.file, self.what = file, what
        super().__init__(file, what)

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


def first_link(*places: Path) -> Path | None:
    """The first of these that is a symbolic link; None if none is.

    A store may come from somebody else, and a link in it would let its author have this process read, overwrite or
    remove files anywhere. So below the folder that the user names no link is followed.
    """
    return next((place for place in places if os.path.islink(place)), None)


def open_file(file: Path) -> BufferedReader:
    """A file of a run, opened for reading.

    Raises:
        OSError: the file is missing or unreadable, it or its folder is a link, or it is not a regular file. (The
            reader of a pipe would wait for a writer.)
    """
    if link := first_link(file.parent):
        raise OSError(errno.ELOOP, "Symbolic links are not followed", str(link))
    flags = os.O_NONBLOCK | os.O_NOFOLLOW
    opened = open(file, "rb", opener=lambda path, mode: os.open(path, mode | flags))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError(errno.EINVAL, "Not a file", str(file))
    return opened


def read_file(file: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file; ``OSError`` as ``open_file``, and if it has more than ``most`` bytes: a file can claim to
    have more than the memory holds."""
    with open_file(file) as opened:
        # Room is made for all that is asked for.
        content = opened.read(min(most, os.fstat(opened.fileno()).st_size) + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"More than {most} bytes", str(file))
    return content


def write_file(
    file: Path, content: bytes, *, flush: bool = False, check: Check | None = None, mode: int = 0o666
) -> None:
    """Put ``content`` at ``file`` in one step. A folder that stands there goes.

    Args:
        flush: wait until the disk has it, so that it survives a power cut. This takes milliseconds, so it is kept
            for what only training can bring back.
        check: called when the temporary file is complete, before it is renamed. So a process that takes over from
            this one first makes the check fail, and then removes the temporary file. Whatever this process does, it
            can no longer rename.
        mode: who may read and write it, at most.

    Raises:
        OSError: it cannot be written; the file is named, and what was there is still there.
    """
    beside = file.with_name(unfinished_name(file.name))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb", opener=lambda path, flags: os.open(path, flags | os.O_EXCL, mode)) as handle:
            handle.write(content)
            if flush:
                handle.flush()
                os.fsync(handle.fileno())
        if check:
            check()
        _make_room(file)
        beside.replace(file)
    except OSError as error:
        # A full disk does not say of itself what it had no room for.
        error.filename = error.filename or str(file)
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def unfinished_name(name: str) -> str:
    """The name of this process's temporary file for ``name``."""
    return f".{name}.{Writer.here().mark()}.tmp"


def _make_room(file: Path) -> None:
    """Remove a folder that stands in a file's place."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)


def remove(file: Path) -> None:
    """Remove a file if there is one, and a folder that stands in its place."""
    _make_room(file)
    file.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left unfinished: those of this machine that are gone, and any a day ago, by which
    no clock is wrong. Others may be alive."""
    for file, writer in _unfinished(folder):
        with contextlib.suppress(FileNotFoundError):
            if writer.gone or time.time() - file.stat().st_mtime > _DAY:
                remove(file)


def remove_unfinished(folder: Path) -> None:
    """Remove what anyone left unfinished, alive or not: only for the one process that may write here."""
    for file, _ in _unfinished(folder):
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)  # a lease that was not to be
        else:
            file.unlink(missing_ok=True)


def _unfinished(folder: Path) -> list[tuple[Path, Writer]]:
    if first_link(folder):
        return []
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = ((name, _UNFINISHED.fullmatch(name)) for name in names if name.endswith(".tmp"))
    marked = ((name, Writer.of(match[1])) for name, match in found if match)
    return [(folder / name, writer) for name, writer in marked if writer]
