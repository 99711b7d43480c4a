"""Frames of runs, parsed from bytes of which a marker has vouched: in this process, or in one of their own."""

import contextlib
import json
import os
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_lab.training import parsing_process
from sparsity_lab.training.files import DamagedFile

_MOST_ANSWER = 2**29
ParseFrame = Callable[[Path, bytes, pl.Schema, int], pl.DataFrame]
"""``parse_frame``, here or elsewhere."""


def bytes_of_rows(rows: int) -> int:
    """The most that a file with a frame of so many rows takes."""
    return 2**20 + 2**8 * rows


def parse_frame(file: Path, content: bytes, schema: pl.Schema, most_rows: int) -> pl.DataFrame:
    """The frame that a file holds, of which the marker has vouched.

    Args:
        most_rows: that it may have: a few kilobytes can hold millions of equal ones.

    Raises:
        DamagedFile: it is no frame with these columns, or has more rows: of another release, or made so together
            with its marker. (A frame made to do harm can still end the process: a parser's abort cannot be caught.)
    """
    try:
        # No other columns and no more rows are made, so that their number is no danger.
        _check_columns(file, pl.read_parquet_schema(content), schema)
        frame = pl.read_parquet(content, n_rows=most_rows + 1)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DamagedFile(file, f"is no frame: {error}") from None
    if frame.height > most_rows:
        raise DamagedFile(file, f"has more than {most_rows} rows")
    return frame


class FrameProcess:
    """A process that parses the frames of a folder from somebody else. It may be ended by one of them, or refuse it
    for the memory that it takes; then the next one gets a new process. It sends back numbers and texts as JSON."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, file: Path, content: bytes, schema: pl.Schema, most_rows: int) -> pl.DataFrame:
        """As ``parse_frame``."""
        try:
            answer = json.loads(self._answer(struct.pack("<Q", most_rows) + content))
            columns, rows, wrong = (answer.get(name) for name in ("columns", "rows", "wrong"))
        except (OSError, EOFError, ValueError, AttributeError):
            if self._process is not None:
                _end(self._process)
            self._process = None
            raise DamagedFile(file, "ended the process that parsed it") from None
        if wrong is not None:
            raise DamagedFile(file, str(wrong))
        _check_columns(file, columns, {name: str(kind) for name, kind in schema.items()})
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _answer(self, request: bytes) -> bytes:
        process = self._process = self._process or _started(self)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(struct.pack("<Q", len(request)) + request)
        process.stdin.flush()
        (size,) = struct.unpack("<Q", _whole(process.stdout.read(8), 8))
        if size > _MOST_ANSWER:
            raise EOFError
        return _whole(process.stdout.read(size), size)


def _whole(content: bytes, size: int) -> bytes:
    if len(content) < size:
        raise EOFError
    return content


def _started(owner: FrameProcess) -> "subprocess.Popen[bytes]":
    """A process that ends with its owner."""
    # Without -P the modules beside the script would hide those of Python with the same names.
    command = [sys.executable, "-P", parsing_process.__file__]
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, env=environment)
    weakref.finalize(owner, _end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # of what could not be written any more
            if stream is not None:
                stream.close()


def _check_columns(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in dict.fromkeys((*wanted, *found)):
        if found.get(name) != wanted.get(name):
            difference = f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'to be there')}"
            raise DamagedFile(file, f"has other columns: {difference}")
    if list(found) != list(wanted):
        raise DamagedFile(file, "has other columns: their order differs")
