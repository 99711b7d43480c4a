"""The files of a run's folder: their names, their columns, and the markers that vouch for them.

A folder belongs to one run id. ``finished.json`` is renamed into place last. It lists the SHA-256 of every file that
the config decides, and its own. ``trained.json`` has the same form and replaces it between training and evaluation.
``timing.sha256`` does the same for the clocks, which differ each time. Every file is written next to its place and
renamed, so that no reader ever meets a part of one, and by the one process that holds the run's lease. Nothing is
pickled, and what polars parses has been verified: a changed byte in a parquet file can end the process.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import polars as pl
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sparsity_lab.settings import SettingError, check_that
from sparsity_lab.training.config import RunConfig
from sparsity_lab.training.files import MOST_BYTES, read_file, remove, remove_abandoned
from sparsity_lab.training.frames import bytes_of_rows
from sparsity_lab.training.lease import drop_lease

CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS, TIMING, MODEL = "metrics.parquet", "timing.parquet", "model.safetensors"
TIMING_DIGEST = "timing.sha256"
CHECKPOINT, TRAINED, FINISHED = "checkpoint.safetensors", "trained.json", "finished.json"
FAILED = "failed.json"
MADE = (FINISHED, TRAINED, CHECKPOINT, MODEL, METRICS, TIMING, TIMING_DIGEST)
"""What a run consists of but its settings and evaluations, the markers first."""
EVALUATION = "evaluation"
_MOST_WEIGHTS = 2**40

METRICS_SCHEMA = pl.Schema(
    dict.fromkeys(("step", "length"), pl.Int64())
    | dict.fromkeys(("loss", "accuracy", "gradient_norm", "learning_rate"), pl.Float64())
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
        rest = json_bytes(_MARKER.dump_python(self, exclude_none=True))
        return _digest_line(rest) + rest.removeprefix(_BEGIN)

    @classmethod
    def of_json(cls, content: bytes) -> Self | None:
        """The marker in a file; None if it is not, to the byte, what was written."""
        line = len(_digest_line(b""))
        if content.startswith(_digest_line(_BEGIN + content[line:])):
            with contextlib.suppress(ValidationError):
                return cast("Self", _MARKER.validate_json(content))
        return None


_MARKER = TypeAdapter(Marker)
_BEGIN = b"{\n"
CHANGED = "was changed after it was written: the checksum differs"


def _digest_line(rest: bytes) -> bytes:
    """The first two lines of a marker's file, whose keys are sorted: the digest of what it is without the second."""
    return _BEGIN + f' "digest": "{digest(rest)}",\n'.encode()


def evaluation_file(config: RunConfig) -> str:
    """Path of the evaluation's frame in the run's folder."""
    return f"{EVALUATION}/{config.evaluation_id}.parquet"


def prepare_folder(out: Path) -> None:
    """Make ``out`` if it does not exist.

    Raises:
        SettingError: at ``out``; it is not a folder, cannot be made, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError("out", f"cannot make the folder {out}: {error.strerror}") from None
    check_that(os.access(out, os.W_OK | os.X_OK), "out", f"cannot write to {out}")


def most_rows(config: RunConfig, name: str) -> int:
    """The most rows that a frame of a run can have."""
    if name == evaluation_file(config):
        return len(config.grid)
    # The first step and the last one have one too; and of the clocks, the evaluation.
    return config.training.steps // config.training.log_every + 3


def most_bytes(config: RunConfig, name: str) -> int:
    """The most bytes that a file of a run can have."""
    if name in (MODEL, CHECKPOINT):
        # Weights, gradients and two moments, if the model has an estimate at all; the adapter, and records.
        needed = config.model.num_bytes(0, config.task.vocabulary.size, training=True)
        return 2 * needed + 2**30 if needed else _MOST_WEIGHTS
    return bytes_of_rows(most_rows(config, name)) if name.endswith(".parquet") else MOST_BYTES


def tidy(folder: Path) -> None:
    """Remove from the folder of a run that is over what it needed on the way, wherever an earlier call was cut off,
    and why it failed before."""
    # In a folder that cannot be written all this stays, and does no harm: finished.json is what is read first.
    with contextlib.suppress(OSError):
        for name in (TRAINED, CHECKPOINT, FAILED):
            remove(folder / name)
        remove_abandoned(folder)
        remove_abandoned(folder / EVALUATION)
        drop_lease(folder)


def read_object(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none, or something else."""
    try:
        return json_object(read_file(file))
    except OSError:
        return None


def json_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that this is; None if it is something else."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):  # lists in lists in lists
        return None
    return data if isinstance(data, dict) else None


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """Sorted, indented JSON: the same bytes for the same data."""
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """A parquet file: the same bytes for the same frame."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal, as markers hold it."""
    return hashlib.sha256(content).hexdigest()
