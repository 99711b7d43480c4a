"""Sweeps that are killed, stopped, or not alone: each in a process forked from this one, which has imported all it
needs and run nothing, so that hundreds of processes cost little.

They are struck just before their n-th event, by whichever process comes to it: a step of training, or a file that is
made, half written, renamed or removed. So the instants are spread over what a sweep does, however fast the machine.

Called as ``killing.py FOLDER CASE=COUNT ...``; prints what it saw as JSON. ``problems`` is what should not be.
"""

import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import polars as pl
from sweeps.curricula import Counted
from training.small_runs import small_run

from sparsity_lab.sweeps import Engine, Processes, Serial, Sweep, execute, run_sweep, workers
from sparsity_lab.training import RunConfig, files, folder, status, store, train
from sparsity_lab.training import lease as leases

CLOCKS = ("environment.json", "timing.parquet", "timing.sha256", "verified.json")
LONGEST_WAIT = 500
"""Seconds, for what takes twenty on an idle machine."""


def counted(tally: Path, seed: int, **changes: object) -> RunConfig:
    training = small_run().training.replace(
        curriculum=Counted(length=8, tally=str(tally)), steps=8, log_every=1, checkpoint_every=3, **changes
    )
    return small_run(training=training, data_seed=seed)


@dataclass(frozen=True)
class Events:
    """What a sweep does, counted over its processes.

    Attributes:
        out: the folder of the sweep.
        tally: the folder in which every step of training leaves a line.
        counter: a file beside them that gets a byte for each event.
        at: the number of the event that is the last one before ``strike``; None for never.
        strike: what is done then.
        in_runs: count only what a process does to a run that it holds: steps, and files half written.
    """

    out: Path
    tally: Path
    counter: Path
    at: int | None = None
    strike: Callable[[], None] = lambda: None
    in_runs: bool = False

    def watch(self) -> None:
        """Count the events of this process and of those that it starts, for good."""
        opened, events = Path.open, self

        class HalfWritten(io.FileIO):
            def write(self, content: bytes) -> int:  # type: ignore[override]
                half = super().write(content[: len(content) // 2])
                events.seen("half", Path(self.name))  # type: ignore[arg-type]
                return half + super().write(content[half:])

        def opened_in_halves(self: Path, mode: str = "r", *arguments: object, **options: object) -> object:
            return HalfWritten(self, mode) if mode == "wb" else opened(self, mode, *arguments, **options)  # type: ignore[call-overload]

        def own_open(path: Path, mode: str, opener: Callable[[str, int], int]) -> Any:
            return (HalfWritten if mode == "wb" else open)(path, mode, opener=opener)

        Path.open = opened_in_halves  # type: ignore[method-assign, assignment]
        files.open = own_open  # type: ignore[attr-defined]
        sys.addaudithook(self._hear)

    def _hear(self, name: str, arguments: tuple[object, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            if isinstance(path, str) and int(flags) & os.O_CREAT:  # type: ignore[call-overload]
                self.seen("step" if path.startswith(str(self.tally)) else "file", Path(path))
        elif name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self.seen("file", Path(os.fspath(arguments[0])))  # type: ignore[arg-type]

    def seen(self, kind: str, path: Path) -> None:
        in_run = kind == "step" or (kind == "half" and path.parent != self.out)
        if not (in_run or (path.is_relative_to(self.out) and not self.in_runs)):
            return
        # An appending file that is opened for each byte says how many there are, without a lock that could be left.
        counter = os.open(self.counter, os.O_WRONLY | os.O_APPEND)
        os.write(counter, b".")
        number = os.lseek(counter, 0, os.SEEK_CUR)
        os.close(counter)
        if number == self.at:
            self.strike()


def _unparsed(self: folder.RunFolder, name: str, content: bytes) -> pl.DataFrame | None:
    """In place of ``RunFolder.parsed``: the clocks alone, to which whoever evaluates a run adds."""
    return parsed(self, name, content) if name == store.TIMING else None


parsed = folder.RunFolder.parsed


class _WithoutClocks(folder.RunFolder):
    """What the process of a sweep sees, which adds up the clocks of each run."""

    @property
    def timing(self) -> Any:  # type: ignore[override]
        return {"seconds": SimpleNamespace(sum=float)}


class Cases:
    """A sweep of five runs, one with a parent and one that diverges, and its folder after no interruption."""

    def __init__(self, root: Path) -> None:
        workers.START_METHOD = "fork"  # from here it is safe, and a hundred times as fast
        execute._LOOKS_AGAIN = 0.05
        # No process parses frames before it forks workers: what has run polars cannot be forked. Bytes are compared.
        execute.RunFolder = _WithoutClocks  # type: ignore[misc]
        folder.RunFolder.parsed = _unparsed  # type: ignore[method-assign, assignment]
        self.random = random.Random(0)
        self.root, self.tally, self.counter = root, root / "tally", root / "counter"
        self.tally.mkdir(parents=True)
        child = counted(self.tally, 5).replace(parent=counted(self.tally, 6))
        diverging = counted(self.tally, 7, learning_rate=1e30, warmup=0.0, clip=1e30)
        self.sweep = Sweep(name="killed", runs=[*(counted(self.tally, seed) for seed in range(3)), child, diverging])
        import_what_a_run_imports(root / "imports")
        self.problems: list[str] = []
        self.groups: list[int] = []
        self.clear()
        whole = root / "whole"
        self.finish(self.begin(whole, events=self.events(whole)), "a sweep")
        self.count = self.counter.stat().st_size
        self.expected, self.names = contents(whole), everything(whole)
        self.clear()

    def clear(self) -> None:
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.tally.mkdir()

    def events(self, out: Path, **options: object) -> Events:
        self.counter.write_bytes(b"")
        return Events(out, self.tally, self.counter, **options)  # type: ignore[arg-type]

    def whole(self, out: Path) -> None:
        self.finish(self.begin(out), "a sweep")

    def begin(
        self,
        out: Path,
        engine: Engine | None = None,
        term: float | None = None,
        events: Events | None = None,
    ) -> int:
        """Run the sweep in a process group of its own; its number."""

        def run() -> None:
            os.setpgid(0, 0)
            if term:
                leases.TERM = term
            if events:
                events.watch()
            results = run_sweep(self.sweep, out, engine or Processes(workers=2))
            assert [failure.status for failure in results.failures] == ["diverged"], results.failures

        process = forked(run)
        # Both sides do it, so that the group is there whichever comes first.
        with contextlib.suppress(OSError):
            os.setpgid(process, process)
        self.groups.append(process)
        return process

    def end(self) -> None:
        """Kill what is left."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def finish(self, process: int, what: str) -> None:
        _, code = os.waitpid(process, 0)
        if code:
            self.problems.append(f"{what} ended with {code}")

    def compare(self, out: Path, what: str) -> None:
        """Every file there, equal to those of an uninterrupted sweep, and no other."""
        found = contents(out)
        self.problems += [f"{what}: {name} differs" for name in found if found[name] != self.expected.get(name)]
        self.problems += [f"{what}: only one has {name}" for name in sorted(everything(out) ^ self.names)]
        for run in self.sweep.runs:
            clocks, expected = out / run.id / "timing.parquet", out / run.id / "timing.sha256"
            # Not parsed: a process that has run polars cannot be forked.
            if store.digest(clocks.read_bytes()) != expected.read_text():
                self.problems.append(f"{what}: torn clocks of {run.id}")

    def steps(self) -> dict[str, list[int]]:
        """The steps that were trained so far, by data seed."""
        return {file.name: [int(line) for line in file.read_text().split()] for file in self.tally.iterdir()}

    def over(self, out: Path) -> set[str]:
        """Data seeds of the runs that are over."""
        return {str(run.data_seed) for run in self.sweep.runs if status(run, out).over}

    def instants(self, count: int, events: int) -> list[int]:
        """Random numbers of events, spread over all of them."""
        return [1 + int(events * (i + self.random.random()) / count) for i in range(count)]

    # --- cases

    def group(self, count: int) -> dict[str, object]:
        """All processes of a sweep are killed; the next sweep completes it and repeats nothing that was finished."""
        killed, begun, finished = 0, 0, 0
        for i, instant in enumerate(self.instants(count, self.count)):
            out = self.root / f"group {i}"
            process = self.begin(out, events=self.events(out, at=instant, strike=kill_the_group))
            _, code = os.waitpid(process, 0)
            killed += os.WIFSIGNALED(code)
            before, over = self.steps(), self.over(out)
            begun += bool(before) and len(over) < len(self.sweep.runs)
            finished += len(over)
            self.whole(out)
            after = self.steps()
            self.problems += [f"group {i}: run {seed} repeated" for seed in over if before[seed] != after[seed]]
            self.compare(out, f"group {i}")
            self.clear()
        return {"killed": killed, "killed in the middle": begun, "runs finished before": finished}

    def worker(self, count: int) -> dict[str, object]:
        """One worker is killed; the sweep itself makes up for it, and no other run is trained again."""
        killed = 0
        for i, instant in enumerate(self.instants(count, self.count)):
            out, victim = self.root / f"worker {i}", self.root / "victim"
            events = self.events(out, at=instant, strike=lambda: kill_a_worker(victim))  # noqa: B023
            self.finish(self.begin(out, events=events), f"worker {i}")
            killed += victim.exists()
            again = [seed for seed, steps in self.steps().items() if len(steps) > len(set(steps))]
            if len(again) > 1:
                self.problems.append(f"worker {i}: {len(again)} runs repeated steps after one death")
            self.compare(out, f"worker {i}")
            self.clear()
        return {"killed": killed}

    def coordinator(self, count: int) -> dict[str, object]:
        """The process that started the workers is killed; they leave, and give up their leases on the way."""
        killed = 0
        for i, instant in enumerate(self.instants(count, self.count)):
            out = self.root / f"coordinator {i}"
            process = self.begin(out, events=self.events(out, at=instant, strike=kill_the_coordinator))
            _, code = os.waitpid(process, 0)
            killed += os.WIFSIGNALED(code)
            if not wait_until(lambda: not group_lives(process)):  # noqa: B023
                self.problems.append(f"coordinator {i}: workers stayed")
                os.killpg(process, signal.SIGKILL)
            self.problems += [f"coordinator {i}: {path} left" for path in out.glob("*/lease/*")]
            self.whole(out)
            self.compare(out, f"coordinator {i}")
            self.clear()
        return {"killed": killed}

    def together(self, count: int) -> dict[str, object]:
        """Three sweeps at once: every step of every run is trained once."""
        shared = 0
        for i in range(count):
            out = self.root / f"together {i}"
            processes = [self.begin(out, engine) for engine in (Processes(workers=2), Processes(workers=1), Serial())]
            for process in processes:
                self.finish(process, f"together {i}")
            steps = self.steps()
            self.problems += [f"together {i}: run {seed} took {done}" for seed, done in steps.items() if twice(done)]
            self.compare(out, f"together {i}")
            shared += len(steps)
            self.clear()
        return {"runs": shared}

    def stopped(self, count: int) -> dict[str, object]:
        """A sweep is stopped at a run for longer than its term, another one takes the run over, the first one wakes
        up: while the other one is at it, or after all is done."""
        taken, whole = 0, self.root / "whole"
        self.finish(self.begin(whole, Serial(), events=self.events(whole, in_runs=True)), "a sweep")
        events = self.counter.stat().st_size
        self.clear()
        for i, instant in enumerate(self.instants(count, events)):
            out = self.root / f"stopped {i}"
            striking = self.events(out, at=instant, strike=stop, in_runs=True)
            first = self.begin(out, Serial(), term=0.3, events=striking)
            _, code = os.waitpid(first, os.WUNTRACED)
            held = {run: holder.mark for run in out.iterdir() if (holder := leases.holder_of(run))}
            if not os.WIFSTOPPED(code) or len(held) != 1:
                self.problems.append(f"stopped {i}: {code}, holding {len(held)} runs")
                continue
            ((run, mark),) = held.items()
            second = self.begin(out, Serial(), term=0.3)
            # Nobody but the second can have removed the file of the first.
            taken += wait_until(lambda: not (run / "lease" / mark).exists())  # noqa: B023
            if i % 2:
                self.finish(second, f"stopped {i}, the second")
            os.kill(first, signal.SIGCONT)
            self.finish(first, f"stopped {i}, the first")
            if not i % 2:
                self.finish(second, f"stopped {i}, the second")
            self.compare(out, f"stopped {i}")
            self.clear()
        return {"taken over": taken}


# --- what is done to a sweep, by one of its processes; the first one gives the group its number


def kill_the_group() -> None:
    os.killpg(0, signal.SIGKILL)


def kill_the_coordinator() -> None:
    os.kill(os.getpgrp(), signal.SIGKILL)


def kill_a_worker(victim: Path) -> None:
    """This one, or any if this is none; ``victim`` is made if there was one to kill."""
    here, coordinator = os.getpid(), os.getpgrp()
    if chosen := [here] if here != coordinator else children(coordinator)[-1:]:
        victim.touch()
        os.kill(chosen[0], signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


# ---


def twice(steps: list[int]) -> bool:
    """Whether a step came twice; the one that diverges ends early."""
    return steps != list(range(len(steps)))


def contents(folder: Path) -> dict[str, bytes]:
    """All files that the config decides, with their bytes."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in CLOCKS]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "verified.json"}


def forked(run: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        run()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def import_what_a_run_imports(out: Path) -> None:
    """Import, without running anything here, what torch imports when it is first used: a second and more."""

    def list_modules() -> None:
        train(small_run(), out)
        (out / "modules").write_text("\n".join(sys.modules))

    os.waitpid(forked(list_modules), 0)
    for name in (out / "modules").read_text().split("\n"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def group_lives(group: int) -> bool:
    """Whether a process of the group lives; what only waits to be asked how it ended does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def give_up(*_: object) -> None:
    raise TimeoutError(f"not done in {LONGEST_WAIT} s")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST_WAIT)
    cases = Cases(Path(sys.argv[1]))
    try:
        seen = {name: getattr(cases, name)(int(count)) for name, count in (item.split("=") for item in sys.argv[2:])}
    finally:
        cases.end()
    sys.stdout.write(json.dumps({"events": cases.count, "problems": cases.problems, **seen}))
