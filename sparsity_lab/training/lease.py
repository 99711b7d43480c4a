"""Leases: which process makes a run, so that several on a shared folder never make the same one.

The lease on a run is the folder ``lease`` in the run's folder, with one file whose name says who holds it. It is
created by renaming a folder that already holds the file. A folder can only be renamed to a free name or to that of an
empty folder. So of several processes one gets it, on every file system whose rename is atomic.

The holder renews its lease by touching the file, from a thread of its own. A lease is given up

- at once, if its holder ran on the same machine and is gone;
- when the holder has not renewed it for ``TERM`` seconds, measured by the clock of the process that watches it,
  while it watches. The clocks of two machines are never compared.

Taking over begins by removing the holder's file, by a name that no later holder has. A process that judges late
removes nobody's lease but the one that it judged. A holder that was only paused (a stopped process, a machine without
its network) finds its file gone and is stopped by ``check``. What it was writing at that moment cannot reach its
place, see ``files.write_file``. It can only remove a file, if it was paused in the microseconds between a check and a
removal. This is detected as damage and only costs a repetition.

``filelock.SoftFileLease`` (4.2.11) is not used. A fence could be built on it too, by the same removal of unfinished
files. But it takes a lease at once if the holder has the contender's host name and another boot id: that holder must
have ended before the machine was booted. Where two machines have one host name, as copied images and containers do,
they would take each other's runs in turn, and no run would end. Here a machine is its name, its boot id and its
process namespace together (``files.Writer``). Holders elsewhere are given the whole term.
"""

import contextlib
import errno
import json
import os
import shutil
import socket
import stat
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sparsity_lab.training.files import Writer, first_link, open_file, remove, remove_unfinished, unfinished_name

LEASE = "lease"

_MOST_BYTES = 2**16
"""Of a holder's file."""
TERM = 60.0
"""Seconds without renewal after which a lease is given up. Long compared with what stops a healthy process (a slow
disk, an attribute cache of a network file system), short compared with what is lost with a machine."""
_RENEWALS = 6
"""In a term; a watcher looks at least as often."""
_POLL = 0.5
_TRIES = 5
"""To take a lease that seems to be free, before it is looked at as one that is held."""
_INNER = ("evaluation",)
"""Folders in a run's folder that hold files of the run."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP)
"""What a file system says of a file that is not there, or not there any more."""
_NO_FILE = (errno.EISDIR, errno.EINVAL, errno.ENXIO)
"""What ``open_file`` says of folders, pipes and sockets."""


class Leased(Exception):
    """Another process makes this run now.

    Attributes:
        run: the id, of the run that was asked for or of a parent.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        super().__init__(f"run {run} is being made by another process")


class LeaseLost(Exception):
    """This process did not renew its lease in time, and another one may have taken over; or the run's folder was
    removed."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        mark: name of its file, which no other holder has.
        renewed: when, by the clock of the file system, in nanoseconds.
        host: name of its machine.
        process: its number there.
        since: when it took the lease, by its own clock, as ISO 8601 text.
    """

    mark: str
    renewed: int
    host: str = "?"
    process: int = 0
    since: str = ""

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended."""
        writer = Writer.of(self.mark)
        return writer is not None and writer.gone


class Lease:
    """A run's folder, held by this process until ``release``.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self._file = folder, folder / LEASE / mark
        self._released = threading.Event()
        threading.Thread(target=self._renew, name=f"lease of {folder.name}", daemon=True).start()

    @classmethod
    def take(cls, folder: Path) -> Self | None:
        """Hold the folder; None if another process does.

        Raises:
            OSError: the folder is a link, or cannot be written.
        """
        if first_link(folder):
            raise OSError(errno.ELOOP, "Symbolic links are not followed", str(folder))
        mark = Writer.here().mark()
        try:
            return cls._take(folder, mark)
        except BaseException:
            # Such as a signal that came when the lease was there and not yet in hand.
            _give_up(folder / LEASE / mark)
            raise

    @classmethod
    def _take(cls, folder: Path, mark: str) -> Self | None:
        beside = folder / unfinished_name(LEASE)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
        try:
            beside.mkdir()
            (beside / mark).write_text(json.dumps(about) + "\n")
            if not _renamed(beside, folder / LEASE, mark):
                return None
        except FileNotFoundError:
            # One that holds the lease removes all that is unfinished here; or somebody removed the run's folder.
            if folder.exists():
                return None
            raise
        except OSError as error:
            error.filename = error.filename or str(folder / LEASE)
            raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        lease = cls(folder, mark)
        for place in (folder, *(folder / name for name in _INNER)):
            if link := first_link(place):
                link.unlink()
            remove_unfinished(place)
        return lease

    @classmethod
    def hold(cls, folder: Path, *, wait: bool) -> Self:
        """Hold the folder as soon as no other process does.

        Raises:
            Leased: without ``wait``; another one does.
            OSError: the folder cannot be written.
        """
        watch, tries = Watch(folder), 0
        while (lease := cls.take(folder)) is None:
            tries += 1
            # What seems free and cannot be had may be held, and this machine's view of the folder old.
            if watch.free() and tries < _TRIES:
                continue
            if not wait:
                raise Leased(folder.name)
            time.sleep(min(_POLL, TERM / _RENEWALS))
        return lease

    def check(self) -> None:
        """Raise ``LeaseLost`` if this process does not hold the folder any more.

        The holder's file is opened, not queried with ``stat``. On a network file system, ``stat`` may answer from a
        cache that is up to a minute old, while opening asks the server (close-to-open consistency, nfs(5)). A mount
        with ``nocto`` gives up this guarantee. Its name belongs to this lease alone, so that it is there says all.
        """
        if not _is_there(self._file):
            raise LeaseLost(f"the lease on run {self.folder.name} was lost to another process, or with its folder")

    def release(self) -> None:
        """Let others have it."""
        try:
            self._released.set()
            _give_up(self._file)
        except BaseException:
            # A signal came meanwhile. It is raised, or this process would go on after it was told to stop.
            _give_up(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        while not self._released.wait(TERM / _RENEWALS):
            try:
                os.utime(self._file)
            except FileNotFoundError:
                return
            except OSError:
                # The file system is away for a moment; if that lasts, the lease is lost.
                continue


class Watch:
    """What this process has seen of others' leases on a run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[str, int] | None = None
        self._unchanged, self._looked = 0.0, 0.0

    def free(self) -> bool:
        """Whether no process holds the run; one that has given up is put out of its lease.

        Call it several times per term. Only time between closely spaced calls counts, so a pause of this process is
        not mistaken for a pause of the holder.
        """
        holder, now = holder_of(self._folder), time.monotonic()
        if holder is None:
            return True
        if self._seen != (holder.mark, holder.renewed):
            self._seen, self._unchanged = (holder.mark, holder.renewed), 0.0
        else:
            self._unchanged += min(now - self._looked, TERM / _RENEWALS)
        self._looked = now
        if holder.gone or self._unchanged > TERM:
            (self._folder / LEASE / holder.mark).unlink(missing_ok=True)
            return True
        return False


def holder_of(folder: Path) -> Holder | None:
    """Who holds the lease on a run, alive or not; None if nobody does."""
    if first_link(folder, folder / LEASE):
        return None
    try:
        marks = os.listdir(folder / LEASE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    for mark in marks:
        try:
            # Opening makes a network file system ask its server.
            opened = open_file(folder / LEASE / mark)
        except OSError as error:
            if error.errno in (*_GONE, *_NO_FILE):
                continue  # removed meanwhile, or nobody's lease
            raise
        with opened as file:
            renewed = os.fstat(file.fileno()).st_mtime_ns
            try:
                about = json.loads(file.read(_MOST_BYTES))
                return Holder(mark, renewed, str(about["host"]), int(about["process"]), str(about["since"]))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                return Holder(mark, renewed)
    return None


def drop_lease(folder: Path) -> None:
    """Remove the lease on a run if its holder is known to be gone."""
    if first_link(folder):
        return
    holder = holder_of(folder)
    if holder and holder.gone:
        (folder / LEASE / holder.mark).unlink(missing_ok=True)
    if holder is None or holder.gone:
        with contextlib.suppress(OSError):
            (folder / LEASE).rmdir()


def _give_up(file: Path) -> None:
    """Remove a holder's file. One that cannot be removed is given up when its process ends."""
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _is_there(file: Path) -> bool:
    """Whether the file exists now, according to the server that stores it."""
    try:
        open_file(file).close()
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return True


def _renamed(beside: Path, lease: Path, mark: str) -> bool:
    """Whether ``beside`` is now ``lease``."""
    try:
        os.rename(beside, lease)
    except OSError as error:
        # A network file system may repeat a rename whose answer was lost, and then say that it failed.
        if _is_there(lease / mark):
            return True
        if error.errno == errno.ENOTDIR:
            remove(lease)  # a file that is nobody's lease
            return False
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Where a folder cannot be renamed onto an empty one, the empty one has to go; a held one cannot.
        with contextlib.suppress(OSError):
            for inner in lease.iterdir():
                if not stat.S_ISREG(inner.lstat().st_mode):
                    remove(inner)
            lease.rmdir()
        return False
    return True
