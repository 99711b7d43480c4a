"""What commands show: progress, tables, and sweeps as they go."""

# ruff: noqa: PLC0415

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from sparsity_lab.sweeps import Results, Sweep

__all__ = ["plain_table", "progress_bar", "show_arms", "swept", "unfinished_runs"]


def progress_bar(console: Console) -> Progress:
    """Progress on the error stream, so that standard output holds the outcome alone; silent where nobody watches."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
    )
    shown_on = Console(stderr=True, quiet=console.quiet, soft_wrap=True, markup=False, emoji=False)
    watched = shown_on.is_terminal and not console.quiet
    return Progress(*columns, TimeRemainingColumn(), console=shown_on, transient=True, disable=not watched)


def swept(sweep: "Sweep", out: Path, workers: int, console: Console) -> tuple["Results", float]:
    """The results of a sweep, shown as it goes, and the seconds that it took."""
    from sparsity_lab.sweeps import Processes, SweepEvent, run_sweep

    start = time.perf_counter()
    with progress_bar(console) as progress:
        bar = progress.add_task(f"{len(sweep.runs)} runs", total=len(sweep.runs))

        def show(event: SweepEvent) -> None:
            words = f"{event.status}: {event.run}" + (f": {event.reason}" if event.reason else "")
            progress.update(bar, completed=event.finished, total=event.total, description=words)
            if event.reason or progress.disable:
                progress.console.print(f"{event.finished}/{event.total} {words}", highlight=False)

        results = run_sweep(sweep, out, Processes(workers=workers), show)
    return results, time.perf_counter() - start


def show_arms(results: "Results", console: Console) -> list[dict[str, Any]]:
    """Print the arms, a table for each panel: normalised accuracy by length, and reach; the same as data. Then the
    runs without a result."""
    from sparsity_lab.analysis import arm_table

    frame = arm_table(results)
    for panel in frame.partition_by("panel", maintain_order=True):
        console.print(f"\n{panel['panel'][0]}: normalised accuracy by length, median of learned runs")
        # A panel may lack lengths that others have.
        empty = [column.name for column in panel if column.name.isdigit() and column.null_count() == len(column)]
        console.print(plain_table(panel.drop("panel", *empty)))
    for run in unfinished_runs(results):
        console.print(f"{run['status']} {run['run']}" + (f": {run['reason']}" if run["reason"] else ""))
    return frame.to_dicts()


def unfinished_runs(results: "Results") -> list[dict[str, Any]]:
    """Run, status and reason of every run without a result."""
    rows = results.frame("runs").select("run", "status", "reason").to_dicts()
    return [row for row in rows if row["status"] != "finished"]


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
