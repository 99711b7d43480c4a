"""Frames of runs, parsed from bytes of which a marker has vouched: in this process, or in one of their own."""

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
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
        self._pipe: Connection | None = None
        self._end: Callable[[], object] | None = None

    def __call__(self, file: Path, content: bytes, schema: pl.Schema, most_rows: int) -> pl.DataFrame:
        """As ``parse_frame``."""
        try:
            pipe = self._pipe = self._pipe or self._started()
            pipe.send_bytes(str(most_rows).encode())
            pipe.send_bytes(content)
            answer = json.loads(pipe.recv_bytes(_MOST_ANSWER))
            columns, rows, wrong = (answer.get(name) for name in ("columns", "rows", "wrong"))
        except (OSError, EOFError, ValueError, AttributeError):
            if self._end is not None:
                self._end()
            self._pipe = None
            raise DamagedFile(file, "ended the process that parsed it") from None
        if wrong is not None:
            raise DamagedFile(file, str(wrong))
        _check_columns(file, columns, {name: str(kind) for name, kind in schema.items()})
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _started(self) -> Connection:
        """The pipe to a new process, which ends with this object."""
        pipe, far = Pipe()
        # Without -P the modules beside the script would hide those of Python with the same names.
        command = [sys.executable, "-P", parsing_process.__file__, str(far.fileno())]
        environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdin=nothing, stdout=nothing, stderr=nothing, env=environment, pass_fds=[far.fileno()]
        )
        far.close()
        self._end = weakref.finalize(self, _end, process, pipe)
        return pipe


def _end(process: "subprocess.Popen[bytes]", pipe: Connection) -> None:
    process.kill()
    process.wait()
    pipe.close()


def _check_columns(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in dict.fromkeys((*wanted, *found)):
        if found.get(name) != wanted.get(name):
            difference = f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'to be there')}"
            raise DamagedFile(file, f"has other columns: {difference}")
    if list(found) != list(wanted):
        raise DamagedFile(file, "has other columns: their order differs")
