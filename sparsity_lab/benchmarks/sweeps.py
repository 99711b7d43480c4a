"""Speed of sweeps: on several worker processes, with many short runs, and with many runs to plan and to read."""

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_lab.benchmarks.measure import alternate, seconds
from sparsity_lab.generators import Planted
from sparsity_lab.settings import SettingError, canonical_json
from sparsity_lab.sweeps import Ended, Engine, Processes, RayEngine, Results, Sweep, SweepEvent, grid, run_sweep
from sparsity_lab.training import Evaluation, FixedLength, Logger, RunConfig, Training, store, train
from sparsity_lab.training.folder import RunFolder

_BASE = RunConfig(
    task=Planted(k=2),
    training=Training(steps=100, curriculum=FixedLength(length=24)),
    evaluation=Evaluation(lengths=(24, 48), sequences=256),
)
_SHORT = _BASE.replace(training=_BASE.training.replace(steps=20), evaluation=Evaluation(lengths=(24,), sequences=64))
_SHORT_RUNS = 200
_MOST_LINKS = 50_000
"""To a file; ext4 takes 65,000."""


def sweeps(*, only: Sequence[str] = ()) -> pl.DataFrame:
    """Sweeps: two workers compared with one; many short runs compared with training alone; Ray; planning; reading.

    ``workers``: 8 equal runs of 100 steps with two worker processes, and with one. ``short runs``: 200 runs of 20
    steps with two workers, from the call of ``run_sweep`` to its end. The baseline is half the seconds of the 200
    training loops by their own clocks. The difference is starting the workers, building models, evaluating, and
    keeping files. ``Ray``, where it is installed: the same runs on a Ray cluster of this machine, started and
    stopped, two at a time, and with two worker processes. ``planning``: from a base and a grid to the first run that
    an engine would begin. ``reading``: the evaluation frame of that many finished runs, from a new ``Results``.
    """
    for name in only:
        if name not in _CASES:
            raise SettingError("--only", "a case", name, _CASES)
    cases = only or [name for name in _CASES if name != "Ray" or importlib.util.find_spec("ray")]
    rows = [row for name, case in _CASES.items() if name in cases for row in case()]
    return pl.DataFrame(rows, schema=_SCHEMA)


_SCHEMA = pl.Schema(
    {
        "case": pl.String(),
        "runs": pl.Int64(),
        "seconds": pl.Float64(),
        "beside": pl.String(),
        "seconds of that": pl.Float64(),
        "ratio": pl.Float64(),
    }
)


def _check_finished(event: SweepEvent) -> None:
    """Raise if a run did not finish: the time of one that failed says nothing."""
    if event.status != "finished":
        raise RuntimeError(f"{event.run} {event.status}: {event.reason}")


def _workers() -> Iterator[dict[str, Any]]:
    sweep = Sweep(name="equal runs", runs=tuple(grid(_BASE, {"seed": range(8)})))

    def with_workers(workers: int) -> Callable[[], object]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                run_sweep(sweep, folder, Processes(workers=workers), _check_finished)

        return run

    two, one, ratio = alternate(with_workers(2), with_workers(1), rounds=2)
    yield _row("workers", 8, two, "one worker", one, ratio)


def _short_runs() -> Iterator[dict[str, Any]]:
    sweep = Sweep(name="short runs", runs=tuple(grid(_SHORT, {"seed": range(_SHORT_RUNS)})))
    with tempfile.TemporaryDirectory() as folder:
        taken = seconds(lambda: run_sweep(sweep, folder, Processes(workers=2), _check_finished))
        clocks = Results(folder).frame("timing").filter(phase="training")
    training = float(clocks["seconds"].sum()) / 2
    yield _row("short runs", _SHORT_RUNS, taken, "half of the training loops", training, taken / training)


def _ray() -> Iterator[dict[str, Any]]:
    sweep = Sweep(name="short runs", runs=tuple(grid(_SHORT, {"seed": range(_SHORT_RUNS)})))

    def swept(engine: Engine) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_sweep(sweep, folder, engine, _check_finished)

    half = max(1.0, (os.cpu_count() or 2) / 2)  # so that two run at a time
    workers, cluster = seconds(lambda: swept(Processes(workers=2))), seconds(lambda: swept(RayEngine(cpus=half)))
    yield _row("Ray", _SHORT_RUNS, cluster, "two worker processes", workers, cluster / workers)


class _Planned(Exception):
    """The plan is made."""


class _Planner(Engine):
    """Begins nothing."""

    def run(
        self, runs: Sequence[str], out: Path, modules: Sequence[str] = (), loggers: Sequence[Logger] = ()
    ) -> Iterator[Ended]:
        raise _Planned


def _planning() -> Iterator[dict[str, Any]]:
    def plan(count: int) -> None:
        sweep = Sweep(name="planned", runs=tuple(grid(_SHORT, {"task.k": [1, 2], "seed": range(count // 2)})))
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Planned):
            run_sweep(sweep, folder, _Planner())

    plan(10)
    small, large = seconds(lambda: plan(1000)), seconds(lambda: plan(10_000))
    yield _row("planning", 1000, small)
    yield _row("planning", 10_000, large, "1,000 runs", small, large / small)


def _reading() -> Iterator[dict[str, Any]]:
    def read(folder: Path) -> None:
        assert Results(folder).frame("evaluation")["run"].n_unique() == len(os.listdir(folder)) - 1

    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        for folder, count in ((small, 1000), (large, 10_000)):
            _finish(Path(folder), count)
        first, second = seconds(lambda: read(Path(small))), seconds(lambda: read(Path(large)))
    yield _row("reading", 1000, first)
    yield _row("reading", 10_000, second, "1,000 runs", first, second / first)


def _finish(out: Path, count: int) -> None:
    """Fill a folder with finished runs: the files of one, under other configs."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = train(_SHORT, folder).folder
        marker = RunFolder(made).marker
        assert marker is not None
        names = [str(file.relative_to(made)) for file in made.rglob("*.*") if file.is_file()]
        sweep = Sweep(name="read", runs=tuple(grid(_SHORT, {"seed": range(count)})))
        for i, config in enumerate(sweep.runs):
            source, copy = Path(folder) / str(i // _MOST_LINKS), out / config.id
            if i % _MOST_LINKS == 0:
                shutil.copytree(made, source)
            (copy / "evaluation").mkdir(parents=True)
            for name in names:
                if name not in (store.CONFIG, store.FINISHED):
                    (copy / name).hardlink_to(source / name)
            content = canonical_json(config).encode()
            (copy / store.CONFIG).write_bytes(content)
            files = marker.files | {store.CONFIG: store.digest(content)}
            (copy / store.FINISHED).write_bytes(store.Marker(status="finished", files=files).to_json())
    (out / "sweep.json").write_text(canonical_json(sweep))


def _row(
    case: str,
    runs: int,
    taken: float,
    beside: str | None = None,
    other: float | None = None,
    ratio: float | None = None,
) -> dict[str, Any]:
    return dict(zip(_SCHEMA, (case, runs, taken, beside, other, ratio), strict=True))


_CASES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "workers": _workers,
    "short runs": _short_runs,
    "Ray": _ray,
    "planning": _planning,
    "reading": _reading,
}
