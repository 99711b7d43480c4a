"""Progress in notebooks: one line that is updated during the work, and stays in the saved notebook.

It is plain HTML, so it needs no widgets and survives export. Outside a notebook nothing is shown. The command line
has its own progress bars.
"""

# ruff: noqa: PLC0415

import sys
import time
from typing import Any

from sparsity_lab.settings.markup import Markup, element, join
from sparsity_lab.sweeps.progress import SweepEvent, SweepProgress
from sparsity_lab.training import Progress

_SECONDS_BETWEEN = 0.2
"""The shortest time between two updates of a line. More updates would only slow the page down."""


def sweep_progress() -> SweepProgress:
    """A function for ``run_sweep(..., progress=...)``. It shows the number of runs that are over, the last run,
    failed and damaged runs, and the time left.

    >>> callable(sweep_progress())
    True
    """
    line = _Line()
    remarks: list[str] = []

    def show(event: SweepEvent) -> None:
        if event.status in ("failed", "diverged"):
            remarks.append(f"{event.status}: {event.run}: {event.reason}")
        if event.damage:
            remarks.append(f"damaged before: {event.run}: {event.damage}")
        left = f", about {event.seconds_left:.0f} s left" if event.seconds_left else ""
        words = f"{event.finished} of {event.total} runs{left}; {event.status}: {event.run}"
        line.show(words, event.finished, event.total, remarks)

    return show


def training_progress() -> Progress:
    """A function for ``train(..., progress=...)``. It shows steps, loss and accuracy.

    >>> callable(training_progress())
    True
    """
    line = _Line()

    def show(done: int, total: int, loss: float, accuracy: float) -> None:
        line.show(f"step {done} of {total}, loss {loss:.3f}, accuracy {accuracy:.2f}", done, total)

    return show


class _Line:
    """A line of a notebook's output."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._shown_at = -1.0
        self._handle: Any = None

    def show(self, words: str, done: int, total: int, remarks: list[str] | None = None) -> None:
        now = time.monotonic() - self._begun
        last = done == total
        if not _in_notebook() or (not last and now - self._shown_at < _SECONDS_BETWEEN and self._handle is not None):
            return
        self._shown_at = now
        self._display(_line(f"{words} ({now:.0f} s)", done, total, remarks or []))

    def _display(self, html: Markup) -> None:
        import IPython.display

        page: Any = IPython.display  # its functions have no type hints
        if self._handle is None:
            self._handle = page.display(page.HTML(html), display_id=True)
        else:
            self._handle.update(page.HTML(html))


def _line(words: str, done: int, total: int, remarks: list[str]) -> Markup:
    bar = element("progress", value=str(done), max=str(total))
    return element("div", bar, " ", words, join([element("div", remark) for remark in remarks]))


def _in_notebook() -> bool:
    """Whether this process is a notebook kernel. IPython in a terminal has no page to write to."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
