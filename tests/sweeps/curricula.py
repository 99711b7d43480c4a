"""Curricula that go wrong, in a module that workers must import to know them."""

import os
import resource
import signal
import time
from pathlib import Path

from sparsity_lab.generators import Stream
from sparsity_lab.settings import register
from sparsity_lab.training import FixedLength


@register
class Crashing(FixedLength):
    """Raises at step 2 until ``cure`` exists."""

    cure: str = "/nowhere"
    for_memory: bool = False

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        if step == 2 and not Path(self.cure).exists():
            raise MemoryError("no room") if self.for_memory else RuntimeError("no cure")
        return self.length


@register
class Killing(FixedLength):
    """Kills its process at step 2, as often as ``times``; counts in the folder ``tally``."""

    tally: str = "/nowhere"
    times: int = 1

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        if step == 2 and len(list(Path(self.tally).iterdir())) < self.times:
            (Path(self.tally) / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.length


@register
class Holding(FixedLength):
    """Stops at step 2 until ``folder/go`` exists; each process that comes there leaves a file with its seed and
    number."""

    folder: str = "/nowhere"

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        if step == 2:
            (Path(self.folder) / f"{stream.seed}-{os.getpid()}").touch()
            while not (Path(self.folder) / "go").exists():
                time.sleep(0.05)
        return self.length


@register
class Counted(FixedLength):
    """Writes every step that is trained into the folder ``tally``, in a file for each data seed."""

    tally: str = "/nowhere"

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        with (Path(self.tally) / str(stream.seed)).open("a") as file:
            file.write(f"{step}\n")
        return self.length


@register
class Filling(FixedLength):
    """From step 2 on, no file of its process can grow, as if the disk were full."""

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return self.length


@register
class Seeing(FixedLength):
    """Writes into the folder ``tally`` which GPU each process sees, in a file for each process."""

    tally: str = "/nowhere"

    def at(self, stream: Stream, step: int, steps: int | None) -> int:
        (Path(self.tally) / str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        return self.length
