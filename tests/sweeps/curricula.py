"""Curricula that go wrong, in a module that workers must import to know them."""

import os
import signal
from pathlib import Path

from sparsity_lab.generators import Stream
from sparsity_lab.settings import register
from sparsity_lab.training import FixedLength


@register
class Crashing(FixedLength):
    """Raises at step 2 until ``cure`` exists."""

    cure: str = "/nowhere"

    def at(self, stream: Stream, step: int, steps: int) -> int:
        if step == 2 and not Path(self.cure).exists():
            raise RuntimeError("no cure")
        return self.length


@register
class Killing(FixedLength):
    """Kills its process at step 2, as often as ``times``; counts in the folder ``tally``."""

    tally: str = "/nowhere"
    times: int = 1

    def at(self, stream: Stream, step: int, steps: int) -> int:
        if step == 2 and len(list(Path(self.tally).iterdir())) < self.times:
            (Path(self.tally) / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.length
