"""``sparsity-lab report``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import OptionalPath, Outcome, SettingsCommand, check_target
from sparsity_lab.cli.output import results_in, show_arms, show_unfinished
from sparsity_lab.settings import SettingError, check_that

if TYPE_CHECKING:
    from sparsity_lab.sweeps import Results


@dataclass(frozen=True, kw_only=True)
class Report(SettingsCommand):
    """Write the report of a folder of runs or the result pages of a study, or check committed result pages."""

    folder: Positional[Annotated[Path | None, arg(metavar="[FOLDER]", help_behavior_hint="")]] = None
    """Folder of the runs. With --check, --render or --relabel: a study or a folder of studies; by default
    experiments."""
    out: OptionalPath = None
    """Output page; by default report.html in the folder. With --study: output folder, by default the study's own."""
    title: str = "Extrapolation in length"
    """Title of the page."""
    picture: OptionalPath = None
    """Also write the curves to this PNG file."""
    study: OptionalPath = None
    """Instead, write the result files of this study (its folder or file) from the runs in the folder."""
    size: Literal["smoke", "small", "full"] = "small"
    """Size of the study."""
    check: bool = False
    """Render the result files again from their frames and compare, without writing."""
    render: bool = False
    """Render the result files again from their frames."""
    untrusted: bool = False
    """The folder is from someone else: parse its frames in a separate process. A folder that another user owns is
    always read this way."""
    relabel: bool = False
    """Update the run ids in the frames of studies to those of this release, by arm and seed, and render the result
    files again. In a folder of runs: rename each run to its id in this release."""

    def run(self, console: Console) -> Outcome:
        if self.check or self.render or self.relabel:
            studies = self.folder or Path("experiments")
            check_that(studies.exists(), "folder", "a study, or a folder of studies", str(studies))
            return self._checked(studies, console) if self.check else self._rendered(studies, console)
        if self.folder is None or not self.folder.is_dir():
            raise SettingError(
                "folder", f"{self.folder} is not a folder" if self.folder else "missing; give a folder with runs"
            )
        if self.study is not None:
            return self._study_written(self.folder, self.study, console)
        page = self.out or self.folder / "report.html"
        check_target("--out", page)
        if self.picture is not None:
            check_target("--picture", self.picture)
        with results_in(self.folder, untrusted=self.untrusted) as results:
            return self._report_written(results, page, console)

    def _checked(self, studies: Path, console: Console) -> Outcome:
        from sparsity_lab.studies import check_results

        differing = check_results(studies)
        _show_files(studies, differing, "differs from the file rendered from its frame", console)
        return Outcome({"results": str(studies), "differing": differing}, good=not differing)

    def _rendered(self, studies: Path, console: Console) -> Outcome:
        from sparsity_lab.studies import relabel_results, render_results
        from sparsity_lab.sweeps import rename_runs

        if self.relabel and (renamed := rename_runs(studies)):
            for old, new in renamed.items():
                console.print(f"{old} is now {new}")
            return Outcome({"results": str(studies), "renamed": renamed})
        changed = relabel_results(studies) if self.relabel else []
        changed += render_results(studies)
        _show_files(studies, changed, "was written again", console)
        return Outcome({"results": str(studies), "changed": changed})

    def _study_written(self, folder: Path, path: Path, console: Console) -> Outcome:
        from sparsity_lab.studies import load_study, results_folder, write_result

        study = load_study(path)
        command = f"sparsity-lab sweep {path} --size {self.size}"
        with results_in(folder, study.sweep(self.size), untrusted=self.untrusted) as results:
            unfinished = show_unfinished(results, console)
            try:
                page = write_result(study, results, self.size, self.out or results_folder(path), command)
            except SettingError as error:
                if not unfinished:
                    raise
                # A claim can lack a whole arm whose runs are not finished.
                console.print(f"No result: {error}")
                return Outcome({"page": None, "unfinished": unfinished}, good=False)
        console.print(f"Result: {page}")
        return Outcome({"page": str(page), "unfinished": unfinished}, not unfinished)

    def _report_written(self, results: "Results", page: Path, console: Console) -> Outcome:
        from sparsity_lab.analysis import write_picture, write_report

        data: dict[str, Any] = {"report": str(write_report(results, page, title=self.title, explorer=True))}
        data["arms"] = show_arms(results, console)
        unfinished = data["unfinished"] = show_unfinished(results, console)
        console.print(f"Report: {page}")
        if self.picture is not None and data["arms"]:
            data["picture"] = str(write_picture(results, self.picture))
            console.print(f"Picture: {data['picture']}")
        return Outcome(data, not unfinished)


def _show_files(studies: Path, names: list[str], what: str, console: Console) -> None:
    for name in names:
        console.print(f"{name} {what}")
    if not names:
        console.print(f"{studies}: every file matches its frame")
