"""Sweeps that are killed, stopped, or not alone: each in a process forked from this one, which has imported all it
needs and run nothing, so that hundreds of processes cost little.

Called as ``killing.py FOLDER CASE=COUNT ...``; prints what it saw as JSON. ``problems`` is what should not be.
"""

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweeps.curricula import Counted
from training.small_runs import small_run

from sparsity_lab.sweeps import Engine, Processes, Serial, Sweep, run_sweep, workers
from sparsity_lab.training import RunConfig, Status, claims, status, store, train

CLOCKS = ("environment.json", "timing.parquet", "timing.sha256")


def counted(tally: Path, seed: int, **changes: object) -> RunConfig:
    training = small_run().training.replace(
        curriculum=Counted(length=8, tally=str(tally)), steps=8, log_every=1, checkpoint_every=3, **changes
    )
    return small_run(training=training, data_seed=seed)


class Cases:
    """A sweep of five runs, one with a parent and one that diverges, and its folder after no interruption."""

    def __init__(self, root: Path) -> None:
        workers.START_METHOD = "fork"  # from here it is safe, and a hundred times as fast
        self.random = random.Random(0)
        self.root, self.tally = root, root / "tally"
        self.tally.mkdir(parents=True)
        child = counted(self.tally, 5).replace(parent=counted(self.tally, 6))
        diverging = counted(self.tally, 7, learning_rate=1e30, warmup=0.0, clip=1e30)
        self.sweep = Sweep(name="killed", runs=[*(counted(self.tally, seed) for seed in range(3)), child, diverging])
        import_what_a_run_imports(root / "imports")
        self.problems: list[str] = []
        self.seconds = min(self.uninterrupted() for _ in range(3))

    def uninterrupted(self) -> float:
        begun = time.monotonic()
        self.whole(self.root / "whole")
        taken = time.monotonic() - begun
        self.expected, self.names = contents(self.root / "whole"), everything(self.root / "whole")
        self.clear()
        return taken

    def clear(self) -> None:
        for folder in self.root.iterdir():
            shutil.rmtree(folder)
        self.tally.mkdir()

    def whole(self, out: Path, **options: object) -> None:
        self.finish(self.begin(out, **options), "a sweep")

    def begin(self, out: Path, engine: Engine | None = None, lease: float | None = None) -> int:
        """Run the sweep in a process group of its own; its number."""

        def run() -> None:
            os.setpgid(0, 0)
            if lease:
                claims.LEASE = lease
            results = run_sweep(self.sweep, out, engine or Processes(workers=2))
            assert [failure.status for failure in results.failures] == ["diverged"], results.failures

        process = forked(run)
        # Both sides do it, so that the group is there whichever comes first.
        with contextlib.suppress(OSError):
            os.setpgid(process, process)
        return process

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
        over = (Status.FINISHED, Status.DIVERGED)
        return {str(run.data_seed) for run in self.sweep.runs if status(run, out) in over}

    def instants(self, count: int) -> list[float]:
        """Random instants, spread over the time that the sweep takes."""
        return [self.seconds * (i + self.random.random()) / count for i in range(count)]

    # --- cases

    def group(self, count: int) -> dict[str, object]:
        """All processes of a sweep are killed; the next sweep completes it and repeats nothing that was finished."""
        begun, finished = 0, 0
        for i, instant in enumerate(self.instants(count)):
            out = self.root / f"group {i}"
            process = self.begin(out)
            time.sleep(instant)
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            before, over = self.steps(), self.over(out)
            begun += bool(before) and len(over) < len(self.sweep.runs)
            finished += len(over)
            self.whole(out)
            after = self.steps()
            self.problems += [f"group {i}: run {seed} repeated" for seed in over if before[seed] != after[seed]]
            self.compare(out, f"group {i}")
            self.clear()
        return {"killed in the middle": begun, "runs finished before": finished}

    def worker(self, count: int) -> dict[str, object]:
        """One worker is killed; the sweep itself makes up for it, and no other run is trained again."""
        killed = 0
        for i, instant in enumerate(self.instants(count)):
            out = self.root / f"worker {i}"
            process = self.begin(out)
            time.sleep(instant)
            if victims := children(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.random.choice(victims), signal.SIGKILL)
                    killed += 1
            self.finish(process, f"worker {i}")
            again = [seed for seed, steps in self.steps().items() if len(steps) > len(set(steps))]
            if len(again) > 1:
                self.problems.append(f"worker {i}: {len(again)} runs repeated steps after one death")
            self.compare(out, f"worker {i}")
            self.clear()
        return {"killed": killed}

    def coordinator(self, count: int) -> dict[str, object]:
        """The process that started the workers is killed; they leave, and give up their claims on the way."""
        for i, instant in enumerate(self.instants(count)):
            out = self.root / f"coordinator {i}"
            process = self.begin(out)
            time.sleep(instant)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            deadline = time.monotonic() + 20
            while group_lives(process) and time.monotonic() < deadline:
                time.sleep(0.02)
            if group_lives(process):
                self.problems.append(f"coordinator {i}: workers stayed")
                os.killpg(process, signal.SIGKILL)
            self.problems += [f"coordinator {i}: {path} left" for path in out.glob("*/claim/*")]
            self.whole(out)
            self.compare(out, f"coordinator {i}")
            self.clear()
        return {}

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
        """A sweep is stopped for longer than its lease, another one takes over, the first one wakes up."""
        taken = 0
        for i, instant in enumerate(self.instants(count)):
            out = self.root / f"stopped {i}"
            first = self.begin(out, Serial(), lease=0.3)
            time.sleep(instant)
            os.kill(first, signal.SIGSTOP)
            held = {holder.mark for run in self.sweep.runs if (holder := claims.holder_of(out / run.id))}
            second = self.begin(out, Serial(), lease=0.3)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and group_lives(second):
                now = {holder.mark for run in self.sweep.runs if (holder := claims.holder_of(out / run.id))}
                if i % 2 and now - held:  # wake it while the other one is at its run, or after all is done
                    taken += 1
                    break
                time.sleep(0.01)
            os.kill(first, signal.SIGCONT)
            self.finish(first, f"stopped {i}, the first")
            self.finish(second, f"stopped {i}, the second")
            self.compare(out, f"stopped {i}")
            self.clear()
        return {"woken in the middle": taken}


def twice(steps: list[int]) -> bool:
    """Whether a step came twice; the one that diverges ends early."""
    return steps != list(range(len(steps)))


def contents(folder: Path) -> dict[str, bytes]:
    """All files that the config decides, with their bytes."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in CLOCKS]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


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


if __name__ == "__main__":
    cases = Cases(Path(sys.argv[1]))
    seen = {name: getattr(cases, name)(int(count)) for name, count in (item.split("=") for item in sys.argv[2:])}
    sys.stdout.write(json.dumps({"seconds": cases.seconds, "problems": cases.problems, **seen}))
