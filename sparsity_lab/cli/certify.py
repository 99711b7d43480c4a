"""``sparsity-lab certify``."""

# ruff: noqa: PLC0415

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import OptionalNumber, OptionalNumbers, Outcome, SettingsCommand, import_modules
from sparsity_lab.cli.output import progress_bar
from sparsity_lab.settings import SettingError, Shown, from_text

if TYPE_CHECKING:
    from sparsity_lab.generators import Certificate

__all__ = ["Certify", "certify_text"]


_MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class Certify(SettingsCommand):
    """Test everything that a task declares about its sequences."""

    task: Positional[Annotated[str | None, arg(metavar="[TASK]")]] = None
    """The task in short form; leave it out with --all."""
    all: bool = False
    """The examples of every registered task."""
    effort: str = "default"
    """How much to spend: quick, default or thorough."""
    sequences: OptionalNumber = None
    """Sequences drawn at each length; what the effort says if left out."""
    lengths: OptionalNumbers = None
    """Lengths of the sequences, as in --lengths 12 300; the task's own choice if left out."""
    seed: int = 0
    """Seed of the sequences."""
    workers: int = 2
    """Worker processes for --all."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.generators import Task
        from sparsity_lab.generators.certify.certificate import effects
        from sparsity_lab.settings import kinds

        if (self.task is None) == (not self.all):
            raise SettingError("task", "a task or --all", self.task if self.all else Shown("neither"))
        if self.workers < 1:
            raise SettingError("workers", "at least 1", self.workers)
        if self.workers > _MOST_WORKERS:
            raise SettingError("workers", f"at most {_MOST_WORKERS}", self.workers)
        if self.lengths == ():
            raise SettingError("--lengths", "at least one length", Shown("nothing"))
        start = time.perf_counter()
        if self.task is not None:
            texts = [str(from_text(Task, self.task, "task"))]
        else:
            classes = [cls for cls in kinds("task").values() if issubclass(cls, Task)]
            texts = [str(example) for cls in classes for example in cls.examples()]
        table = Table("task", "tests", "smallest p", "passed", box=None, pad_edge=False)
        rows = []
        for certificate in self._certificates(texts, console):
            smallest = float(certificate.frame()["p_value"].min())  # type: ignore[arg-type]
            failed = Text(f"no: {', '.join(certificate.failed_checks)}", style="bold red")
            verdict = "yes" if certificate.passed else failed
            table.add_row(str(certificate.task), str(len(certificate.findings)), f"{smallest:.2g}", verdict)
            rows.append(
                {
                    "task": str(certificate.task),
                    "passed": certificate.passed,
                    "failed_checks": list(certificate.failed_checks),
                    "tests": len(certificate.findings),
                    "smallest_p": smallest,
                    "threshold": certificate.threshold,
                    "sequences": certificate.sequences,
                    "power": certificate.power().to_dicts(),
                    "searched": list(certificate.searched),
                    "not_applicable": list(certificate.not_applicable),
                }
            )
        console.print(table)
        seconds = time.perf_counter() - start
        if self.task is not None:
            power = Table("check", "seen with 99 % probability", "from", box=None, pad_edge=False)
            for row in certificate.power().iter_rows(named=True):
                power.add_row(row["check"], row["of"], effects(row))
            console.print(power, *certificate.searched, sep="\n")
        drawn = rows[0]["sequences"]
        console.print(f"{drawn} sequences a length, nominal false-alarm rate 1e-6 a task, {seconds:.1f} s")
        return Outcome({"certificates": rows, "seconds": seconds}, all(row["passed"] for row in rows))

    def _certificates(self, texts: list[str], console: Console) -> list["Certificate"]:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        work = [(text, self.seed, self.sequences, self.lengths, self.effort) for text in texts]
        with progress_bar(console) as progress:
            if len(texts) == 1 or self.workers < 2:
                return [certify_text(*item) for item in progress.track(work, description="certifying")]
            context = multiprocessing.get_context("spawn")
            # One thread for each worker: numpy's libraries would take all cores each, and read this as they load.
            os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            with ProcessPoolExecutor(self.workers, context, import_modules, (self.modules,)) as pool:
                done = pool.map(certify_text, *zip(*work, strict=True))
                return list(progress.track(done, total=len(work), description="certifying"))


def certify_text(
    text: str, seed: int, sequences: int | None, lengths: tuple[int, ...] | None = None, effort: str = "default"
) -> "Certificate":
    """The certificate of a task in short form; on its own so that worker processes can call it."""
    from sparsity_lab.generators import Task, certify

    return certify(from_text(Task, text, "task"), seed=seed, sequences=sequences, lengths=lengths, effort=effort)
