"""The run folder: which files it holds, how they are written, and what state they are in.

A folder belongs to one run id. ``finished.json`` is renamed into place last and lists the SHA-256 of every file
that the config decides; ``trained.json`` has the same form and stands for it between training and evaluation. Every
file is written beside its place and renamed, so that no reader ever meets a part of one. Nothing is pickled.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sparsity_lab.settings import SettingError, canonical_json, from_data
from sparsity_lab.training.config import RunConfig

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "ENVIRONMENT",
    "FINISHED",
    "METRICS",
    "METRICS_SCHEMA",
    "MODEL",
    "TIMING",
    "TIMING_SCHEMA",
    "TRAINED",
    "Marker",
    "Status",
    "discard",
    "evaluation_file",
    "folder_status",
    "mark",
    "prepare_folder",
    "read_config",
    "read_marker",
    "read_timing",
    "status",
    "tidy",
    "write_config",
    "write_file",
    "write_frame",
    "write_json",
]

CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS, TIMING, MODEL = "metrics.parquet", "timing.parquet", "model.safetensors"
CHECKPOINT, TRAINED, FINISHED = "checkpoint.safetensors", "trained.json", "finished.json"

METRICS_SCHEMA = pl.Schema(
    {
        "step": pl.Int64(),
        "length": pl.Int64(),
        "loss": pl.Float64(),
        "accuracy": pl.Float64(),
        "gradient_norm": pl.Float64(),
        "learning_rate": pl.Float64(),
    }
)
"""Columns of the metrics: loss in nats a scored target, gradient norm before clipping."""

TIMING_SCHEMA = pl.Schema({"phase": pl.String(), "step": pl.Int64(), "tokens": pl.Int64(), "seconds": pl.Float64()})
"""Columns of the clocks: tokens and seconds since the row before; ``phase`` is training or evaluation."""


class Status(Enum):
    """What a run folder holds."""

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
    """The loss stopped being finite. A result: it is not repeated."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """Contents of ``finished.json`` and ``trained.json``.

    Attributes:
        status: ``"trained"``, ``"finished"`` or ``"diverged"``.
        files: SHA-256 in hexadecimal of each file that the config decides, by its path in the folder.
        step, loss, reason: where and why a diverged run ended; the loss is text, since JSON has no NaN.
    """

    status: str
    files: dict[str, str]
    step: int | None = None
    loss: str | None = None
    reason: str | None = None

    def intact(self, folder: Path, *names: str) -> bool:
        """Whether these files are what they were when the marker was written."""
        return all(name in self.files and _checksum(folder / name) == self.files[name] for name in names)


_MARKER = TypeAdapter(Marker)


def evaluation_file(config: RunConfig) -> str:
    """Path of the evaluation's frame in the run's folder."""
    return f"evaluation/{config.evaluation_id}.parquet"


def prepare_folder(out: Path) -> None:
    """Make ``out`` if it does not exist.

    Raises:
        SettingError: at ``out``; it is not a folder, cannot be made, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError("out", f"a folder ({error.strerror})", str(out)) from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise SettingError("out", "a folder that can be written", str(out))


# --- writing


def write_file(file: Path, content: bytes, *, flush: bool = False) -> None:
    """Put ``content`` at ``file`` in one step: write beside it, then rename.

    Args:
        flush: wait until the disk has it, so that it survives a power cut. This takes milliseconds, so it is kept
            for what only training can bring back.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("wb") as handle:
            handle.write(content)
            if flush:
                handle.flush()
                os.fsync(handle.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def write_json(file: Path, data: Mapping[str, Any], *, flush: bool = False) -> None:
    """Sorted, indented JSON: the same bytes for the same data."""
    write_file(file, (json.dumps(data, sort_keys=True, indent=1) + "\n").encode(), flush=flush)


def write_frame(file: Path, frame: pl.DataFrame, *, flush: bool = False) -> None:
    """A parquet file: the same bytes for the same frame."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    write_file(file, buffer.getvalue(), flush=flush)


def write_config(config: RunConfig, folder: Path) -> None:
    """Write the canonical config, unless that is what is there."""
    content = canonical_json(config).encode()
    file = folder / CONFIG
    if not file.exists() or file.read_bytes() != content:
        write_file(file, content)


def mark(
    folder: Path,
    name: str,
    state: str,
    files: Sequence[str],
    *,
    kept: Mapping[str, str] | None = None,
    step: int | None = None,
    loss: str | None = None,
    reason: str | None = None,
) -> None:
    """Write the marker ``name`` with the checksums of ``files`` as they are now, beside those ``kept``."""
    digests = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}
    marker = Marker(status=state, files={**(kept or {}), **digests}, step=step, loss=loss, reason=reason)
    write_json(folder / name, _MARKER.dump_python(marker, exclude_none=True), flush=name == FINISHED)


def tidy(folder: Path) -> None:
    """Remove from a finished run's folder what it needed on the way, wherever an earlier call was cut off."""
    for name in (TRAINED, CHECKPOINT):
        (folder / name).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Forget a run: the markers go first, so that whatever happens next the folder is not taken for finished."""
    for name in (FINISHED, TRAINED, CHECKPOINT, MODEL, METRICS, TIMING):
        (folder / name).unlink(missing_ok=True)
    for frame in (folder / "evaluation").glob("*.parquet"):
        frame.unlink()


# --- reading


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        SettingError: there is none, or it is not a run that this release knows.
    """
    file = folder / CONFIG
    try:
        data = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise SettingError("folder", f"a run's folder, with a {CONFIG}", str(folder)) from None
    except ValueError:
        raise SettingError(str(file), "valid JSON", "a damaged file") from None
    return from_data(RunConfig, data)


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder, ``finished.json`` before ``trained.json``; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    for name in (FINISHED, TRAINED):
        with contextlib.suppress(FileNotFoundError):
            try:
                return _MARKER.validate_json((folder / name).read_bytes())
            except ValidationError:
                raise ValueError(f"{folder / name} is damaged") from None
    return None


def read_timing(folder: Path) -> pl.DataFrame:
    """The clocks of a run. No checksum covers them, since they differ each time; damaged ones are gone."""
    try:
        return pl.read_parquet(folder / TIMING)
    except (FileNotFoundError, pl.exceptions.ComputeError):
        return TIMING_SCHEMA.to_frame()


def status(config: RunConfig, out: Path | str) -> Status:
    """State of a run in the store ``out``: all checksums are verified, nothing is written."""
    return folder_status(config, Path(out) / config.id)


def folder_status(config: RunConfig, folder: Path, *, weights: bool = True) -> Status:
    """State of a run in its own folder.

    Args:
        weights: verify the model's file too, by far the largest.
    """
    try:
        marker = read_marker(folder)
    except ValueError:
        return Status.BROKEN
    if marker is None:
        begun = (folder / CONFIG).exists() or (folder / CHECKPOINT).exists()
        return Status.INTERRUPTED if begun else Status.MISSING
    if marker.status == "diverged":
        return Status.DIVERGED if marker.intact(folder, METRICS) else Status.BROKEN
    if not marker.intact(folder, METRICS, *([MODEL] if weights else [])):
        return Status.BROKEN
    if marker.status != "finished" or not marker.intact(folder, evaluation_file(config), CONFIG):
        return Status.UNEVALUATED
    # What the id leaves out can still differ: the evaluation, of this run or of a parent.
    current = (folder / CONFIG).read_bytes() == canonical_json(config).encode()
    return Status.FINISHED if current else Status.UNEVALUATED


def _checksum(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
