"""``sparsity-lab certify``."""

# ruff: noqa: PLC0415

import csv
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import (
    OptionalNumber,
    OptionalNumbers,
    OptionalPath,
    Outcome,
    SettingsCommand,
    check_target,
    import_modules,
)
from sparsity_lab.cli.output import progress_bar
from sparsity_lab.settings import SettingError, check_least, check_most, check_that, from_text, read_whole

if TYPE_CHECKING:
    from sparsity_lab.generators import Certificate

_MOST_WORKERS = 1024
_MOST_SEEDS = 100_000
_MOST_BYTES = 2**28
_COLUMNS = ("task", "seed", "effort", "sequences", "tests", "smallest_p", "threshold", "passed", "failed_checks")


@dataclass(frozen=True, kw_only=True)
class Certify(SettingsCommand):
    """Run statistical tests of everything that a task declares about its sequences."""

    task: Positional[Annotated[str | None, arg(metavar="[TASK]", help_behavior_hint="")]] = None
    """The task in short form; omit it with --all."""
    all: bool = False
    """Certify the examples of every registered task."""
    effort: str = "default"
    """How much to test: quick, default or thorough."""
    sequences: OptionalNumber = None
    """Number of sequences to draw at each length. By default --effort decides."""
    lengths: OptionalNumbers = None
    """Sequence lengths, as in "--lengths 12 300". By default the task decides."""
    seed: int = 0
    """Seed of the sequences."""
    seeds: int = 1
    """Number of seeds, starting at --seed. No certificate of a correct task should fail."""
    first: bool = False
    """With --all, certify only the first example of each task."""
    out: OptionalPath = None
    """Append a line per certificate to this CSV file. Certificates already in it are skipped."""
    workers: int = 2
    """Worker processes for --all."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.generators import Task
        from sparsity_lab.generators.certify.certificate import effects
        from sparsity_lab.settings import kinds

        if (self.task is None) == (not self.all):
            raise SettingError(
                "task", f"give {'either a task or --all, not both' if self.all else 'a task or --all'}"
            )
        check_least(1, workers=self.workers, seeds=self.seeds)
        check_most(_MOST_WORKERS, workers=self.workers)
        check_most(_MOST_SEEDS, seeds=self.seeds)
        check_that(self.all or not self.first, "--first", "this option needs --all")
        check_that(self.lengths != (), "--lengths", "give at least one length")
        if self.out is not None:
            check_target("--out", self.out)
        start = time.perf_counter()
        if self.task is not None:
            tasks = [from_text(Task, self.task, "task")]
        else:
            classes = [cls for cls in kinds("task").values() if issubclass(cls, Task)]
            tasks = [example for cls in classes for example in cls.examples()[: 1 if self.first else None]]
        texts = list(map(str, tasks))
        work = [(text, seed) for seed in range(self.seed, self.seed + self.seeds) for text in texts]
        there = _read(self.out, self.effort, self.sequences)
        rows = [there[one] for one in work if one in there]
        for certificate in self._certificates([one for one in work if one not in there], console):
            rows.append(_row(certificate, self.effort))
            if self.out is not None:
                _append(self.out, rows[-1])
        console.print(_table(rows))
        seconds = time.perf_counter() - start
        if len(rows) == 1 and not there:
            power = Table("check", "detected with 99 % probability", "from", box=None, pad_edge=False)
            for row in certificate.power().iter_rows(named=True):
                power.add_row(row["check"], row["of"], effects(row))
            console.print(power, *certificate.searched, sep="\n")
        drawn = rows[0]["sequences"]
        console.print(f"{drawn} sequences per length, nominal false-alarm rate 1e-6 per task, {seconds:.1f} s")
        return Outcome({"certificates": rows, "seconds": seconds}, all(row["passed"] for row in rows))

    def _certificates(self, wanted: list[tuple[str, int]], console: Console) -> Iterator["Certificate"]:
        """The certificates of tasks and seeds, in the given order."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        work = [(text, seed, self.sequences, self.lengths, self.effort) for text, seed in wanted]
        with progress_bar(console) as progress:
            if len(work) <= 1 or self.workers < 2:
                yield from progress.track((certify_text(*one) for one in work), len(work), description="certifying")
                return
            context = multiprocessing.get_context("spawn")
            # One thread per worker. Otherwise numpy's libraries use all cores; they read these variables when they
            # load.
            os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            with ProcessPoolExecutor(self.workers, context, import_modules, (self.modules,)) as pool:
                done = pool.map(certify_text, *zip(*work, strict=True))
                yield from progress.track(done, total=len(work), description="certifying")


def _row(certificate: "Certificate", effort: str) -> dict[str, Any]:
    return {
        "task": str(certificate.task),
        "seed": certificate.seed,
        "effort": effort,
        "sequences": certificate.sequences,
        "tests": len(certificate.findings),
        "smallest_p": min((finding.p_value for _, finding in certificate.findings), default=1.0),
        "threshold": certificate.threshold,
        "passed": certificate.passed,
        "failed_checks": list(certificate.failed_checks),
        "power": certificate.power().to_dicts(),
        "searched": list(certificate.searched),
        "not_applicable": list(certificate.not_applicable),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """A table with one row per task and its number of seeds."""
    table = Table("task", "seeds", "tests", "smallest p", "passed", box=None, pad_edge=False)
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        failed = sorted({check for row in own for check in row["failed_checks"]})
        verdict = Text(f"no: {', '.join(failed)}", style="bold red") if failed else "yes"
        smallest = min(row["smallest_p"] for row in own)
        table.add_row(task, str(len(own)), str(sum(row["tests"] for row in own)), f"{smallest:.2g}", verdict)
    return table


def _read(path: Path | None, effort: str, sequences: int | None) -> dict[tuple[str, int], dict[str, Any]]:
    """The certificates in a file with this effort and number of sequences, by task and seed."""
    if path is None or not path.exists():
        return {}
    content = read_whole(path, _MOST_BYTES)
    try:
        lines = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
        found = [
            line
            | {name: int(line[name]) for name in ("seed", "sequences", "tests")}
            | {name: float(line[name]) for name in ("smallest_p", "threshold")}
            | {"passed": line["passed"] == "True", "failed_checks": line["failed_checks"].split()}
            for line in lines
        ]
        whole = all(line.keys() == set(_COLUMNS) for line in lines)
    except (csv.Error, KeyError, ValueError, TypeError, AttributeError):
        whole = False
    check_that(whole, "out", f"{path} was not written by this command")
    own = [row for row in found if row["effort"] == effort and sequences in (None, row["sequences"])]
    return {(row["task"], row["seed"]): row for row in own}


def _append(path: Path, row: dict[str, Any]) -> None:
    """Append a line to the file right away, so that nothing is lost if the command is stopped."""
    with path.open("a", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        if not file.tell():
            lines.writeheader()
        lines.writerow(row | {"failed_checks": " ".join(row["failed_checks"])})


def certify_text(
    text: str, seed: int, sequences: int | None, lengths: tuple[int, ...] | None = None, effort: str = "default"
) -> "Certificate":
    """The certificate of a task in short form. A module-level function, so that worker processes can call it."""
    from sparsity_lab.generators import Task, certify

    return certify(from_text(Task, text, "task"), seed=seed, sequences=sequences, lengths=lengths, effort=effort)
