"""Terminal output of the commands: progress bars, tables and sweeps."""

# ruff: noqa: PLC0415

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sparsity_lab.settings.errors import counted, one_line
from sparsity_lab.settings.markup import visible

if TYPE_CHECKING:
    import polars as pl

    from sparsity_lab.sweeps import Engine, Overview, Results, Sweep


class PlainConsole(Console):
    """A console that never interprets text as markup, emoji or terminal commands.

    Run names and failure messages can come from an untrusted folder, with brackets, colons and control characters.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with control characters escaped."""
        return super().render_str(visible(text), **options)


def progress_bar(console: Console, left: ProgressColumn | None = None) -> Progress:
    """A progress bar on standard error, so that standard output holds only the outcome. Silent outside a terminal.

    Args:
        left: column that shows the time left. By default the bar estimates it, assuming equally long steps.
    """
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), MofNCompleteColumn()
    shown_on = PlainConsole(stderr=True, quiet=console.quiet, soft_wrap=True)
    watched = shown_on.is_terminal and not console.quiet
    return Progress(*columns, left or TimeRemainingColumn(), console=shown_on, transient=True, disable=not watched)


@contextlib.contextmanager
def steps_shown(
    console: Console, words: str, total: int | None = None
) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a progress bar. Yields a function that updates it with a description, the steps done and the total."""
    with progress_bar(console) as progress:
        bar = progress.add_task(words, total=total)
        yield lambda words, done, total: progress.update(bar, description=words, completed=done, total=total)


@contextlib.contextmanager
def results_in(folder: Path, sweep: "Sweep | None" = None, *, untrusted: bool = False) -> Iterator["Results"]:
    """The results in a folder. If the folder is from someone else, the memory of this process is limited
    meanwhile."""
    from sparsity_lab.sweeps.results import Results, is_own
    from sparsity_lab.training.memory import limited

    trusted = is_own(folder) and not untrusted
    with contextlib.nullcontext() if trusted else limited():
        yield Results(folder, sweep, trusted=trusted)


def swept(sweep: "Sweep", out: Path, engine: "Engine", console: Console) -> tuple["Results", float]:
    """Run a sweep with a progress bar. Returns the results and the elapsed seconds."""
    from sparsity_lab.sweeps import SweepEvent, run_sweep

    start = time.perf_counter()
    with progress_bar(console, TextColumn("{task.fields[left]}", markup=False)) as progress:
        bar = progress.add_task(counted(len(sweep.runs), "run"), total=len(sweep.runs), left="")
        failed = 0

        def show(event: SweepEvent) -> None:
            nonlocal failed
            failed += event.status == "failed"
            words = f"{event.status}: {event.run}" + (f": {event.reason}" if event.reason else "")
            words = one_line(words + (f" (damaged before: {event.damage})" if event.damage else ""))
            left = [*([f"{failed} failed"] if failed else []), *_time_left(event.seconds_left)]
            progress.update(bar, completed=event.finished, total=event.total, description=words, left=", ".join(left))
            if event.reason or event.damage or progress.disable:
                progress.console.print(f"{event.finished}/{event.total} {words}", highlight=False)

        # Output of libraries, such as Ray's message about a lost node, must not appear in the outcome.
        with contextlib.redirect_stdout(sys.stderr):
            results = run_sweep(sweep, out, engine, show)
    return results, time.perf_counter() - start


def show_overview(overview: "Overview", console: Console) -> None:
    """Print the progress of a sweep: counts, time left, runs in progress, and failures with reasons."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(overview.counts.items()))
    name = f"{overview.sweep}: " if overview.sweep else ""
    head = f"{name}{counted(overview.total, 'run')}: {counts}"
    console.print(one_line("; ".join([head, *_time_left(overview.seconds_left)])))
    for one in overview.running:
        lost = f"; silent for {one.silent:.0f} s, possibly lost" if one.lost else ""
        since = f"on {one.host}, process {one.process}, since {one.since}"
        console.print(one_line(f"running {one.run}: {since}{lost}"))
    for what, runs in (("failed", overview.failed), ("damaged", overview.damaged)):
        for run, reason in runs:
            console.print(one_line(f"{what} {run}: {reason}"))


def _time_left(seconds: float | None) -> list[str]:
    """The time left in words; empty if unknown."""
    if not seconds:
        return []
    if seconds < 90:
        return [f"about {max(1, round(seconds))} s left"]
    minutes = round(seconds / 60)
    return [f"about {minutes} min left" if minutes < 120 else f"about {minutes // 60} h {minutes % 60} min left"]


def show_arms(results: "Results", console: Console) -> list[dict[str, Any]]:
    """Print a table for each panel with the normalized accuracy by length and the reach of each arm. Returns it as
    data."""
    from sparsity_lab.analysis import arm_table
    from sparsity_lab.training.environment import devices_words

    frame = arm_table(results)
    for panel in frame.partition_by("panel", maintain_order=True):
        console.print(f"\n{panel['panel'][0]}: normalized accuracy by length, median of learned runs")
        # A panel may lack lengths that other panels have.
        empty = [column.name for column in panel if column.name.isdigit() and column.null_count() == len(column)]
        console.print(plain_table(panel.drop("panel", *empty)))
    if note := devices_words(results.devices):
        console.print(f"\nNote: {note}.")
    return frame.to_dicts()


def show_unfinished(results: "Results", console: Console) -> list[dict[str, Any]]:
    """Print the unfinished runs and parents, one per line. Returns them as data; an empty list means success."""
    from sparsity_lab.sweeps import overview

    found = overview(results).unfinished
    for one in found:
        console.print(one_line(f"{one.status} {one.run}" + (f": {one.reason}" if one.reason else "")))
    return [asdict(one) for one in found]


def plain_table(frame: "pl.DataFrame") -> Table:
    """A frame as a table without rules."""
    table = Table(box=None, pad_edge=False)
    for column in frame.iter_columns():
        justify: Literal["left", "right"] = "right" if column.dtype.is_numeric() else "left"
        # In a narrow terminal, long texts are folded, but numbers are not.
        short = max(len(_cell(value)) for value in [column.name, *column]) <= len("condition")
        table.add_column(column.name.replace("_", " "), justify=justify, no_wrap=short, overflow="fold")
    for row in frame.iter_rows():
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"
