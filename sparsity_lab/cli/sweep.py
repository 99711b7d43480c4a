"""``sparsity-lab sweep``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import GOES_ON, OptionalNumber, OptionalPath, OptionalText, Outcome, SettingsCommand
from sparsity_lab.cli.output import results_in, show_arms, show_overview, show_unfinished, swept
from sparsity_lab.settings import SettingError, check_that, from_text

if TYPE_CHECKING:
    from sparsity_lab.sweeps import Engine


@dataclass(frozen=True, kw_only=True)
class SweepCommand(SettingsCommand):
    """Run a study, or a sweep described in a file. Finished runs are skipped. Several processes can share one
    folder."""

    interrupted = GOES_ON

    sweep: Positional[Annotated[str | None, arg(metavar="[STUDY|FILE]", help_behavior_hint="")]] = None
    """Path of a study (its folder or file), or a TOML or JSON file; omit it with --status."""
    status: OptionalPath = None
    """Run nothing; show the progress of the sweep in this folder."""
    size: Literal["smoke", "small", "full"] = "small"
    """Size of the study."""
    out: OptionalPath = None
    """Folder of the runs; by default runs/NAME."""
    workers: OptionalNumber = None
    """Worker processes, one thread each; by default 2."""
    engine: OptionalText = None
    """Engine that executes the runs, instead of --workers, as in "RayEngine(address='auto', cpus=2)"."""
    report: bool = False
    """Also write report.html into the folder."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.studies import fix_rules, load_study
        from sparsity_lab.sweeps.config_file import is_config_file, load_sweep
        from sparsity_lab.sweeps.sweep import folder_of

        if (self.sweep is None) == (self.status is None):
            choice = (
                "either a study or file, or --status, not both" if self.status else "a study, a file, or --status"
            )
            raise SettingError("sweep", f"give {choice}")
        if self.status is not None:
            return _status_shown(self.status, console)
        assert self.sweep is not None
        engine = chosen_engine(self.engine, self.workers)
        path = Path(self.sweep)
        is_file = is_config_file(path)
        study = None if is_file else load_study(path)
        sweep = load_sweep(path) if study is None else study.sweep(self.size)
        out = self.out or folder_of(sweep.name)
        if study is not None:
            fix_rules(study, out)
        results, seconds = swept(sweep, out, engine, console)
        arms = show_arms(results, console)
        data = {"out": str(out), "runs": len(results.runs), "seconds": seconds, "arms": arms}
        unfinished = data["unfinished"] = show_unfinished(results, console)
        if self.report:
            from sparsity_lab.analysis import write_report

            command = f"sparsity-lab sweep {self.sweep}" + ("" if is_file else f" --size {self.size}")
            page = out / "report.html"
            write_report(results, page, title=sweep.name, command=command, explorer=True)
            data["report"] = str(page)
            console.print(f"Report: {page}")
        return Outcome(data, not unfinished)


def chosen_engine(engine: str | None, workers: int | None) -> "Engine":
    """The engine that executes runs: given in short form, or as a number of worker processes on this machine.

    Raises:
        SettingError: both are given, or the engine is unknown.
    """
    from sparsity_lab.sweeps import Engine, Processes

    if engine is None:
        return Processes(workers=2 if workers is None else workers)
    check_that(workers is None, "--workers", "give either --engine or --workers, not both")
    return from_text(Engine, engine, "--engine")


def _status_shown(folder: Path, console: Console) -> Outcome:
    """The progress of the sweep in a folder; good if every run is finished."""
    from dataclasses import asdict

    from sparsity_lab.sweeps import overview

    check_that(folder.is_dir(), "--status", "a folder with runs", str(folder))
    with results_in(folder) as results:
        found = overview(results)
    show_overview(found, console)
    return Outcome({"out": str(folder), **asdict(found)}, found.complete)
