"""Parses parquet files for another process. A file that was made to end its reader, or to fill the memory, ends this
process alone.

A script. It imports nothing of the lab, so that it starts quickly. It is given the number of its end of a pipe. Two
messages come for each file: the largest allowed number of rows, and the file. The reply is JSON with the columns and
the rows, or with the problem.
"""

import json
import resource
import signal
import sys
from multiprocessing.connection import Connection

import polars as pl

MEMORY = 2**32
"""Bytes that this process may take."""
SECONDS = 30
"""For a file; then the system ends the process, wherever it is."""


def parsed(content: bytes, most_rows: int) -> dict[str, object]:
    """What the file holds, or what is wrong with it."""
    try:
        frame = pl.read_parquet(content, n_rows=most_rows + 1)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, MemoryError) as error:
        return {"wrong": f"is no frame: {error}"}
    if frame.height > most_rows:
        return {"wrong": f"has more than {most_rows} rows"}
    return {"columns": {name: str(kind) for name, kind in frame.schema.items()}, "rows": frame.rows()}


def serve() -> None:
    """Parse what comes, until nothing more does."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = Connection(int(sys.argv[1]))
    while True:
        try:
            most_rows, content = int(pipe.recv_bytes()), pipe.recv_bytes()
        except EOFError:
            return
        signal.alarm(SECONDS)
        answer = json.dumps(parsed(content, most_rows), default=str).encode()
        signal.alarm(0)
        pipe.send_bytes(answer)


if __name__ == "__main__":
    serve()
