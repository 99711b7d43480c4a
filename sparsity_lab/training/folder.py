"""A run's folder: what state it is in, what its files hold, and what is written there by the process that holds it.

A file that cannot be read, for whatever reason, counts as damaged. So whatever is wrong in a run's folder is said
here, and the next call of ``train`` repairs it or says why it cannot.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from sparsity_lab.settings import SettingError, canonical_json, from_data
from sparsity_lab.training import store
from sparsity_lab.training.checkpoint import verify_checkpoint
from sparsity_lab.training.config import RunConfig
from sparsity_lab.training.evaluate import EVALUATION_SCHEMA
from sparsity_lab.training.files import (
    MOST_BYTES,
    DamagedFile,
    Writer,
    first_link,
    open_file,
    read_file,
    remove,
    write_file,
)
from sparsity_lab.training.frames import ParseFrame, parse_frame
from sparsity_lab.training.lease import LEASE, Lease, Leased, LeaseLost, holder_of
from sparsity_lab.training.store import Marker, evaluation_file

_DYING = 3.0
"""Seconds for which a holder that has been killed may still look alive."""
_SCHEMAS = {store.METRICS: store.METRICS_SCHEMA, store.TIMING: store.TIMING_SCHEMA}
"""Of the frames that are no evaluations."""
_MOST_SECONDS = 1e9
_MOST_BYTES, _MOST_FOREIGN = 2**40, 2**32
"""Of any file of a run, and of one from somebody else, whatever its config asks for."""


class Status(Enum):
    """What a run folder holds.

    >>> status(run.config, run.folder.parent)
    <Status.FINISHED: 'finished'>
    """

    MISSING = "missing"
    """Nothing yet."""
    INTERRUPTED = "interrupted"
    """Training began and did not end; it goes on from the checkpoint, if there is one."""
    BROKEN = "broken"
    """It ended, and a file of the training was damaged since; it will be repeated."""
    UNEVALUATED = "unevaluated"
    """Trained; this evaluation is missing or damaged."""
    FINISHED = "finished"
    """Trained and evaluated, all files intact."""
    DIVERGED = "diverged"
    """The loss, the gradient or the weights stopped being finite. A result: it is not repeated."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self in (Status.FINISHED, Status.DIVERGED)


@dataclass(frozen=True)
class Inspection:
    """What was found in a run's folder.

    Attributes:
        status: its state.
        damage: the file that is not what was written, and what is wrong with it; None if there is none.
        evaluated: the run was brought to its end, be it with another evaluation than the one that is asked for now:
            its weights can be used.
    """

    status: Status
    damage: str | None = None
    evaluated: bool = False

    def __str__(self) -> str:
        return self.status.value + (f": {self.damage}" if self.damage else "")


def status(config: RunConfig, out: Path | str) -> Status:
    """State of a run in the store ``out``: all checksums are verified, nothing is written. A text is opened only if
    its hash is not yet a field.

    >>> status(run.config, run.folder.parent).value
    'finished'
    """
    config = config if config.is_planned else config.planned()
    return RunFolder(Path(out) / config.id, config).inspect().status


class RunFolder:
    """The folder of a run. Each file is read at most once, when it is first asked for, and remembered: the weights by
    their checksum, the checkpoint not at all. To see what has become of the run since, make another one.

    Args:
        path: the folder, which may be missing.
        config: the run that belongs there; what the folder says if None.
        parse: what parses frames; ``parse_frame`` if None.
    """

    def __init__(self, path: Path, config: RunConfig | None = None, *, parse: ParseFrame | None = None) -> None:
        self.path = path
        self._config, self._parse = config, parse or parse_frame
        self._most = _MOST_BYTES if self._parse is parse_frame else _MOST_FOREIGN
        self._contents: dict[str, bytes | OSError] = {}
        self._digests: dict[str, str | OSError] = {}

    @cached_property
    def config(self) -> RunConfig:
        """The run that belongs here.

        Raises:
            SettingError: none was given, and the folder holds none, or one that this release does not know.
        """
        if self._config is not None:
            return self._config
        content = self.content(store.CONFIG)
        if isinstance(content, FileNotFoundError | NotADirectoryError):
            raise SettingError("folder", f"a run's folder, with a {store.CONFIG}", str(self.path))
        if isinstance(content, OSError):
            raise SettingError(str(self.path / store.CONFIG), content.strerror or "cannot be read")
        return self._parsed_config(content)

    @cached_property
    def marker(self) -> Marker | None:
        """``finished.json``, or else ``trained.json``; None if there is neither. One that is not, to the byte, what
        was written has the status ``"damaged"``."""
        for name in (store.FINISHED, store.TRAINED):
            content = self.content(name)
            if isinstance(content, FileNotFoundError):
                continue
            wrong = _unreadable(content) if isinstance(content, OSError) else store.CHANGED
            found = None if isinstance(content, OSError) else Marker.of_json(content)
            return found or Marker(status="damaged", files={}, reason=f"{self.path.name}/{name} {wrong}")
        return None

    @property
    def divergence(self) -> str | None:
        """Why and where the run diverged; None if it did not."""
        marker = self.marker
        return f"{marker.reason} at step {marker.step}" if marker and marker.status == "diverged" else None

    @property
    def environment(self) -> dict[str, Any] | None:
        """Where the run was made, as ``environment.environment`` said; None if that is missing or damaged."""
        content = self.content(store.ENVIRONMENT)
        return None if isinstance(content, OSError) else store.json_object(content)

    @property
    def failure(self) -> str | None:
        """Why the run has no result, None if that is not recorded; of a damaged record, that it is damaged."""
        content = self.content(store.FAILED)
        record = None if isinstance(content, OSError) else store.json_object(content)
        if record is not None and isinstance(record.get("reason"), str):
            return str(record["reason"])
        # Unlike Path.exists, this is not stopped by a folder that cannot be entered.
        return f"{store.FAILED} is damaged" if os.path.exists(self.path / store.FAILED) else None

    @property
    def timing(self) -> pl.DataFrame:
        """The clocks; damaged ones are gone."""
        content, expected = self.content(store.TIMING), self.content(store.TIMING_DIGEST)
        if isinstance(content, bytes) and expected == store.digest(content).encode():
            with contextlib.suppress(DamagedFile):
                return self.parsed(store.TIMING, content)
        return store.TIMING_SCHEMA.to_frame()

    @property
    def metrics(self) -> pl.DataFrame:
        """One row for each logged step; ``DamagedFile`` as ``verified``."""
        return self._frame(store.METRICS)

    @property
    def evaluation(self) -> pl.DataFrame:
        """One row for each condition and length; ``DamagedFile`` as ``verified``."""
        return self._frame(evaluation_file(self.config))

    def content(self, name: str) -> bytes | OSError:
        """The bytes of a file, or why it cannot be read."""
        if name not in self._contents:
            try:
                most = store.most_bytes(self.config, name) if name.endswith(".parquet") else MOST_BYTES
                self._contents[name] = read_file(self.path / name, most)
            except OSError as error:
                self._contents[name] = error.with_traceback(None)
        return self._contents[name]

    def digest(self, name: str) -> str | OSError:
        """SHA-256 of a file, or why it cannot be read."""
        if name not in self._digests:
            content = self._weights_digest() if name == store.MODEL else self.content(name)
            self._digests[name] = store.digest(content) if isinstance(content, bytes) else content
        return self._digests[name]

    def damage(self, name: str) -> str | None:
        """What is wrong with a file that the marker should vouch for, in words that follow its name; None if it is
        unchanged since."""
        found = self.digest(name)
        if isinstance(found, OSError):
            return _unreadable(found)
        return None if self.marker and self.marker.files.get(name) == found else store.CHANGED

    def verified(self, name: str) -> bytes:
        """The bytes of a file that the marker vouches for.

        Raises:
            DamagedFile: it is missing, or not what was written.
        """
        if self.marker is None:
            raise DamagedFile(self.path / store.FINISHED, "is missing")
        content = self.content(name)
        if isinstance(content, OSError) or self.damage(name):
            raise DamagedFile(self.path / name, self.damage(name) or "")
        return content

    def parsed(self, name: str, content: bytes) -> pl.DataFrame:
        """The frame in the bytes of a file for which a checksum has vouched.

        Raises:
            DamagedFile: it is none, or holds what no run writes: of another release, or forged with its checksum.
        """
        file = self.path / name
        frame = self._parse(file, content, _SCHEMAS.get(name, EVALUATION_SCHEMA), store.most_rows(self.config, name))
        if name == store.TIMING and not frame["seconds"].is_between(0, _MOST_SECONDS).all():
            raise DamagedFile(file, "has seconds that no clock shows")
        if name not in _SCHEMAS and list(zip(frame["condition"], frame["length"], strict=True)) != self.config.grid:
            raise DamagedFile(file, "has other conditions or lengths than its run")
        return frame

    def inspect(self, *, large: bool = True) -> Inspection:
        """What is in the folder.

        Args:
            large: verify the weights and the checkpoint too, by far the largest files, and that frames are frames;
                otherwise their reader finds out.
        """
        config, path = self.config, self.path
        evaluation = evaluation_file(config)
        if link := first_link(path, path / LEASE, (path / evaluation).parent):
            return Inspection(Status.BROKEN, f"{link.relative_to(path.parent)} is a link, which is not followed")
        marker = self.marker
        if marker is None:
            begun = (path / store.CONFIG).exists() or (path / store.CHECKPOINT).exists()
            damage = self._checkpoint_damage() if large else None
            return Inspection(Status.INTERRUPTED if begun else Status.MISSING, damage)
        if marker.status == "damaged":
            return Inspection(Status.BROKEN, marker.reason)
        diverged = marker.status == "diverged"
        said, config_damage = self._config_damage()
        damage = self._frame_damage(store.METRICS, large)
        if damage is None and large and not diverged:
            wrong = self.damage(store.MODEL)
            damage = wrong and f"{path.name}/{store.MODEL} {wrong}"
        # A folder with the config of another run has its weights too. Of what diverged, the config is half of the
        # record.
        if damage is None and (diverged or said not in (config.id, None)):
            damage = config_damage
        if damage:
            return Inspection(Status.BROKEN, damage)
        if diverged:
            return Inspection(Status.DIVERGED)
        if marker.status == "trained":
            return Inspection(Status.UNEVALUATED)
        damage = config_damage
        if evaluation in marker.files:
            damage = damage or self._frame_damage(evaluation, large)
        whole = damage is None and evaluation in marker.files
        return Inspection(Status.FINISHED if whole else Status.UNEVALUATED, damage, damage is None)

    def _frame(self, name: str) -> pl.DataFrame:
        return self.parsed(name, self.verified(name))

    def _frame_damage(self, name: str, parsed: bool) -> str | None:
        wrong = self.damage(name)
        if parsed and not wrong:
            try:
                self._frame(name)
            except DamagedFile as error:
                wrong = error.what
        return wrong and f"{self.path.name}/{name} {wrong}"

    def _weights_digest(self) -> str | OSError:
        most = min(self._most, store.most_bytes(self.config, store.MODEL))
        try:
            with open_file(self.path / store.MODEL) as opened:
                if os.fstat(opened.fileno()).st_size > most:
                    return OSError(errno.EFBIG, f"More than {most} bytes")
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            return error.with_traceback(None)

    def _checkpoint_damage(self) -> str | None:
        most = min(self._most, store.most_bytes(self.config, store.CHECKPOINT))
        try:
            verify_checkpoint(self.path / store.CHECKPOINT, self.config.id, most)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            return f"{self.path.name}/{store.CHECKPOINT} {error.what}"
        return None

    def _config_damage(self) -> tuple[str | None, str | None]:
        """The run that ``config.json`` says, None if it says none, and what is wrong with the file, None if nothing.

        It may differ from ``config`` in the evaluation of the run and its parents. The file records the last
        requested evaluation; other frames in the folder are equally valid.
        """
        content, wrong, said = self.content(store.CONFIG), self.damage(store.CONFIG), self.config.id
        name = f"{self.path.name}/{store.CONFIG}"
        if isinstance(content, OSError):
            return None, f"{name} {wrong}"
        if content != canonical_json(self.config).encode():
            try:
                said = self._parsed_config(content).id
            except SettingError as error:
                return None, str(error) if content else f"{name} {wrong}"
        if said != self.config.id:
            wrong = f"belongs to another run, {said}"
        return said, wrong and f"{name} {wrong}"

    def _parsed_config(self, content: bytes) -> RunConfig:
        """The run that ``config.json`` says; ``SettingError`` if this release does not know it."""
        file = str(self.path / store.CONFIG)
        try:
            return from_data(RunConfig, json.loads(content))
        except SettingError as error:
            # Of a newer release, for instance, with fields that this one does not know.
            raise error.inside(file) from None
        except (ValueError, RecursionError):  # lists in lists in lists
            raise SettingError(file, "invalid JSON; the file is damaged") from None


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


def _unreadable(error: OSError) -> str:
    """Why a file could not be read, in words that follow its name."""
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
