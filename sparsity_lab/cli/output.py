"""What commands show: progress, tables, and sweeps as they go."""

# ruff: noqa: PLC0415

import contextlib
import sys
import time
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

from sparsity_lab.cli.plain_console import PlainConsole

if TYPE_CHECKING:
    import polars as pl

    from sparsity_lab.sweeps import Engine, Overview, Results, Sweep

__all__ = ["plain_table", "progress_bar", "show_arms", "show_overview", "show_unfinished", "swept"]


def progress_bar(console: Console, left: ProgressColumn | None = None) -> Progress:
    """Progress on the error stream, so that standard output holds the outcome alone; silent where nobody watches.

    Args:
        left: shows the time left; without it, the bar's own estimate, for steps that take the same time each.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
    )
    shown_on = PlainConsole(stderr=True, quiet=console.quiet, soft_wrap=True)
    watched = shown_on.is_terminal and not console.quiet
    return Progress(*columns, left or TimeRemainingColumn(), console=shown_on, transient=True, disable=not watched)


def swept(sweep: "Sweep", out: Path, engine: "Engine", console: Console) -> tuple["Results", float]:
    """The results of a sweep, shown as it goes, and the seconds that it took."""
    from sparsity_lab.sweeps import SweepEvent, run_sweep

    start = time.perf_counter()
    with progress_bar(console, TextColumn("{task.fields[left]}", markup=False)) as progress:
        bar = progress.add_task(f"{len(sweep.runs)} runs", total=len(sweep.runs), left="")
        failed = 0

        def show(event: SweepEvent) -> None:
            nonlocal failed
            failed += event.status == "failed"
            words = f"{event.status}: {event.run}" + (f": {event.reason}" if event.reason else "")
            words += f" (damaged before: {event.damage})" if event.damage else ""
            left = [*([f"{failed} failed"] if failed else []), *_time_left(event.seconds_left)]
            progress.update(bar, completed=event.finished, total=event.total, description=words, left=", ".join(left))
            if event.reason or event.damage or progress.disable:
                progress.console.print(_one_line(f"{event.finished}/{event.total} {words}"), highlight=False)

        # What libraries print meanwhile, as Ray does of a lost node, is no part of the outcome.
        with contextlib.redirect_stdout(sys.stderr):
            results = run_sweep(sweep, out, engine, show)
    return results, time.perf_counter() - start


def show_overview(overview: "Overview", console: Console) -> None:
    """Print how far a sweep is: counts, time left, what is being made, and what failed and why."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(overview.counts.items()))
    name = f"{overview.sweep}: " if overview.sweep else ""
    console.print(
        _one_line("; ".join([f"{name}{overview.total} runs: {counts}", *_time_left(overview.seconds_left)]))
    )
    for one in overview.running:
        lost = f"; no sign of life for {one.silent:.0f} s, lost perhaps" if one.lost else ""
        since = f"on {one.host}, process {one.process}, since {one.since}"
        console.print(_one_line(f"running {one.run}: {since}{lost}"))
    for run, reason in overview.failed:
        console.print(_one_line(f"failed {run}: {reason}"))
    for run, reason in overview.damaged:
        console.print(_one_line(f"damaged {run}: {reason}"))


def _one_line(text: str) -> str:
    """Text from a folder, which may be anybody's, without what moves a terminal's cursor or changes its colors."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _time_left(seconds: float | None) -> list[str]:
    """In words, if there is anything to say."""
    if not seconds:
        return []
    if seconds < 90:
        return [f"about {max(1, round(seconds))} s left"]
    minutes = round(seconds / 60)
    return [f"about {minutes} min left" if minutes < 120 else f"about {minutes // 60} h {minutes % 60} min left"]


def show_arms(results: "Results", console: Console) -> list[dict[str, Any]]:
    """Print the arms, a table for each panel: normalized accuracy by length, and reach; the same as data."""
    from sparsity_lab.analysis import arm_table
    from sparsity_lab.training.environment import devices_words

    frame = arm_table(results)
    for panel in frame.partition_by("panel", maintain_order=True):
        console.print(f"\n{panel['panel'][0]}: normalized accuracy by length, median of learned runs")
        # A panel may lack lengths that others have.
        empty = [column.name for column in panel if column.name.isdigit() and column.null_count() == len(column)]
        console.print(plain_table(panel.drop("panel", *empty)))
    if note := devices_words(results.devices):
        console.print(f"\nNote: {note}.")
    return frame.to_dicts()


def show_unfinished(results: "Results", console: Console) -> list[dict[str, Any]]:
    """Print the runs and parents that are not finished, a line each; the same as data. The outcome of what needs them
    is good if there is none."""
    from sparsity_lab.sweeps import overview

    found = overview(results).unfinished
    for one in found:
        console.print(_one_line(f"{one.status} {one.run}" + (f": {one.reason}" if one.reason else "")))
    return [asdict(one) for one in found]


def plain_table(frame: "pl.DataFrame") -> Table:
    """A frame as a table without lines."""
    table = Table(box=None, pad_edge=False)
    for column in frame.iter_columns():
        justify: Literal["left", "right"] = "right" if column.dtype.is_numeric() else "left"
        # In a narrow terminal long texts are folded, numbers never.
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
