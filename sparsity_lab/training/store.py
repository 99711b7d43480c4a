"""The run folder: which files it holds, and how they are written and read.

A folder belongs to one run id. ``finished.json`` is renamed into place last. It lists the SHA-256 of every file that
the config decides, and its own. ``trained.json`` has the same form and replaces it between training and evaluation.
``timing.sha256`` does the same for the clocks, which differ each time. Every file is written next to its place and
renamed, so that no reader ever meets a part of one, and by the one process that holds the run's lease. Nothing is
pickled, and what polars parses has been verified: a changed byte in a parquet file can end the process.

A file that cannot be read, for whatever reason, counts as damaged. So whatever is wrong in a run's folder, readers
say so (``inspection``), and the next call of ``train`` repairs it or says why it cannot.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sparsity_lab.settings import SettingError, canonical_json, from_data
from sparsity_lab.training.config import RunConfig
from sparsity_lab.training.files import (
    MOST_BYTES,
    Check,
    DamagedFile,
    open_file,
    read_file,
    remove,
    remove_abandoned,
    write_file,
)
from sparsity_lab.training.frames import ParseFrame, bytes_of_rows, parse_frame
from sparsity_lab.training.lease import Lease, drop_lease

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "ENVIRONMENT",
    "FAILED",
    "FINISHED",
    "METRICS",
    "METRICS_SCHEMA",
    "MODEL",
    "TIMING",
    "TIMING_SCHEMA",
    "TRAINED",
    "Marker",
    "digest",
    "discard",
    "evaluation_file",
    "examine",
    "examine_weights",
    "mark",
    "most_bytes",
    "most_rows",
    "parse_config",
    "prepare_folder",
    "read_config",
    "read_environment",
    "read_frame",
    "read_marker",
    "read_object",
    "read_timing",
    "tidy",
    "write_config",
    "write_frame",
    "write_json",
    "write_timing",
]

CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS, TIMING, MODEL = "metrics.parquet", "timing.parquet", "model.safetensors"
TIMING_DIGEST = "timing.sha256"
CHECKPOINT, TRAINED, FINISHED = "checkpoint.safetensors", "trained.json", "finished.json"
FAILED = "failed.json"
_EVALUATION = "evaluation"
_MOST_WEIGHTS = 2**40

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


@dataclass(frozen=True, kw_only=True)
class Marker:
    """Contents of ``finished.json`` and ``trained.json``.

    Attributes:
        status: ``"trained"``, ``"finished"`` or ``"diverged"``; ``"damaged"`` for a marker that is not what was
            written, which vouches for nothing.
        files: SHA-256 in hexadecimal of each file that the config decides, by its path in the folder.
        step, loss, reason: where and why a diverged run ended; the loss is text, since JSON has no NaN. Of a damaged
            marker, the reason is what is wrong with which file.
    """

    status: Literal["trained", "finished", "diverged", "damaged"]
    files: dict[str, str]
    step: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    loss: str | None = None
    reason: str | None = None

    def to_json(self) -> bytes:
        """The marker's file; it holds a digest of the rest of itself."""
        data = _MARKER.dump_python(self, exclude_none=True)
        return _json({**data, "digest": digest(_json(data))})


_MARKER = TypeAdapter(Marker)
_CHANGED = "was changed after it was written: the checksum differs"


def evaluation_file(config: RunConfig) -> str:
    """Path of the evaluation's frame in the run's folder."""
    return f"{_EVALUATION}/{config.evaluation_id}.parquet"


def prepare_folder(out: Path) -> None:
    """Make ``out`` if it does not exist.

    Raises:
        SettingError: at ``out``; it is not a folder, cannot be made, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError("out", f"cannot make the folder {out}: {error.strerror}") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise SettingError("out", f"cannot write to {out}")


# --- writing


def write_json(file: Path, data: Mapping[str, Any], *, check: Check | None = None) -> None:
    """Sorted, indented JSON: the same bytes for the same data."""
    write_file(file, _json(data), check=check)


def write_frame(lease: Lease, name: str, frame: pl.DataFrame, *, flush: bool = False) -> None:
    """A parquet file: the same bytes for the same frame."""
    if not (place := (lease.folder / name).parent).is_dir():
        lease.check()
        remove(place)  # a file where the folder of the evaluations belongs
    write_file(lease.folder / name, _parquet(frame), flush=flush, check=lease.check)


def write_timing(lease: Lease, frame: pl.DataFrame) -> None:
    """The clocks, with their digest in a file of its own: no marker can hold it and be the same on every engine."""
    content = _parquet(frame)
    write_file(lease.folder / TIMING, content, check=lease.check)
    write_file(lease.folder / TIMING_DIGEST, digest(content).encode(), check=lease.check)


def write_config(lease: Lease, config: RunConfig) -> None:
    """Write the canonical config, unless that is what is there."""
    content = canonical_json(config).encode()
    if _content(lease.folder / CONFIG) != content:
        write_file(lease.folder / CONFIG, content, check=lease.check)


def mark(
    lease: Lease,
    name: str,
    state: Literal["trained", "finished", "diverged"],
    files: Sequence[str],
    *,
    kept: Mapping[str, str] | None = None,
    step: int | None = None,
    loss: str | None = None,
    reason: str | None = None,
) -> None:
    """Write the marker ``name`` with the checksums of ``files`` as they are now, in addition to those ``kept``."""
    digests = dict[str, str]()
    for file in files:
        with open_file(lease.folder / file) as opened:
            digests[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    marker = Marker(status=state, files={**(kept or {}), **digests}, step=step, loss=loss, reason=reason)
    write_file(lease.folder / name, marker.to_json(), flush=name == FINISHED, check=lease.check)


def tidy(folder: Path) -> None:
    """Remove from the folder of a run that is over what it needed on the way, wherever an earlier call was cut off,
    and why it failed before."""
    # In a folder that cannot be written all this stays, and does no harm: finished.json is what is read first.
    with contextlib.suppress(OSError):
        for name in (TRAINED, CHECKPOINT, FAILED):
            remove(folder / name)
        remove_abandoned(folder)
        remove_abandoned(folder / _EVALUATION)
        drop_lease(folder)


def discard(lease: Lease) -> None:
    """Forget a run: the markers go first, so that whatever happens next the folder is not taken for finished."""
    evaluation = lease.folder / _EVALUATION
    frames = [f"{_EVALUATION}/{file.name}" for file in evaluation.glob("*.parquet")]
    for name in (FINISHED, TRAINED, CHECKPOINT, MODEL, METRICS, TIMING, TIMING_DIGEST, *frames):
        lease.check()
        remove(lease.folder / name)
    if not evaluation.is_dir():
        remove(evaluation)


# --- reading


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        SettingError: there is none, or it is not a run that this release knows.
    """
    file = folder / CONFIG
    try:
        content = read_file(file)
    except (FileNotFoundError, NotADirectoryError):
        raise SettingError("folder", f"a run's folder, with a {CONFIG}", str(folder)) from None
    except OSError as error:
        raise SettingError(str(file), error.strerror or "cannot be read") from None
    return parse_config(file, content)


def parse_config(file: Path, content: bytes) -> RunConfig:
    """The config that a file holds; ``SettingError`` if it is not a run that this release knows."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):  # lists in lists in lists
        raise SettingError(str(file), "invalid JSON; the file is damaged") from None
    try:
        return from_data(RunConfig, data)
    except SettingError as error:
        # Of a newer release, for instance, with fields that this one does not know.
        raise error.inside(str(file)) from None


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder, ``finished.json`` before ``trained.json``; None if there is none, and one with the
    status ``"damaged"`` if it is not, to the byte, what was written."""
    for name in (FINISHED, TRAINED):
        try:
            content = read_file(folder / name)
            marker = _MARKER.validate_json(content)
            if marker.to_json() == content:
                return marker
            wrong = _CHANGED
        except FileNotFoundError:
            continue
        except OSError as error:
            wrong = _unreadable(error)
        except ValidationError:
            wrong = _CHANGED
        return Marker(status="damaged", files={}, reason=f"{folder.name}/{name} {wrong}")
    return None


def examine(folder: Path, name: str, marker: Marker, most: int = MOST_BYTES) -> tuple[bytes, str | None]:
    """The content of a file of at most so many bytes, and what is wrong with it, in words that follow its name. The
    latter is None if the file is unchanged since the marker was written."""
    try:
        content = read_file(folder / name, most)
    except OSError as error:
        return b"", _unreadable(error)
    return content, None if marker.files.get(name) == digest(content) else _CHANGED


def examine_weights(folder: Path, marker: Marker, most: int) -> str | None:
    """What is wrong with the weights, as ``examine`` says it. They are not all held in memory."""
    try:
        with open_file(folder / MODEL) as opened:
            if os.fstat(opened.fileno()).st_size > most:
                return f"has more than {most} bytes"
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return _unreadable(error)
    return None if marker.files.get(MODEL) == found else _CHANGED


def most_rows(config: RunConfig, name: str) -> int:
    """The most rows that a frame of a run can have."""
    if name == evaluation_file(config):
        return len(config.conditions) * len(config.evaluation.lengths)
    # The first step and the last one have one too; and of the clocks, the evaluation.
    return config.training.steps // config.training.log_every + 3


def most_bytes(config: RunConfig, name: str) -> int:
    """The most bytes that a file of a run can have."""
    if name in (MODEL, CHECKPOINT):
        # Weights, gradients and two moments, if the model has an estimate at all; the adapter, and records.
        needed = config.model.num_bytes(0, config.task.vocabulary.size, training=True)
        return 2 * needed + 2**30 if needed else _MOST_WEIGHTS
    return bytes_of_rows(most_rows(config, name)) if name.endswith(".parquet") else MOST_BYTES


def read_frame(config: RunConfig, folder: Path, name: str, schema: pl.Schema) -> pl.DataFrame:
    """A frame of a run that the marker vouches for.

    Raises:
        DamagedFile: it is missing, or not what was written, or no frame with these columns.
    """
    marker = read_marker(folder)
    if marker is None:
        raise DamagedFile(folder / FINISHED, "is missing")
    content, wrong = examine(folder, name, marker, most_bytes(config, name))
    if wrong:
        raise DamagedFile(folder / name, wrong)
    return parse_frame(folder / name, content, schema, most_rows(config, name))


def read_timing(config: RunConfig, folder: Path, parse: ParseFrame = parse_frame) -> pl.DataFrame:
    """The clocks of a run; damaged ones are gone."""
    content, expected = _content(folder / TIMING, most_bytes(config, TIMING)), _content(folder / TIMING_DIGEST)
    if content is not None and expected == digest(content).encode():
        with contextlib.suppress(DamagedFile):
            return parse(folder / TIMING, content, TIMING_SCHEMA, most_rows(config, TIMING))
    return TIMING_SCHEMA.to_frame()


def read_environment(folder: Path) -> dict[str, Any] | None:
    """Where a run was made, as ``environment.environment`` said; None if that is missing or damaged."""
    return read_object(folder / ENVIRONMENT)


def read_object(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none, or something else."""
    try:
        data = json.loads(_content(file) or b"")
    except (ValueError, RecursionError):  # lists in lists in lists
        return None
    return data if isinstance(data, dict) else None


def _content(file: Path, most: int = MOST_BYTES) -> bytes | None:
    """The bytes of a file; None if it cannot be read, whatever the reason."""
    try:
        return read_file(file, most)
    except OSError:
        return None


def _unreadable(error: OSError) -> str:
    """Why a file could not be read, in words that follow its name."""
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal, as markers hold it."""
    return hashlib.sha256(content).hexdigest()


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()
