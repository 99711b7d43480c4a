"""``sparsity-lab decide``."""

# ruff: noqa: PLC0415

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import GOES_ON, OptionalNumber, OptionalPath, OptionalText, Outcome, SettingsCommand
from sparsity_lab.cli.output import swept
from sparsity_lab.settings import SettingError, counted

if TYPE_CHECKING:
    from sparsity_lab.studies import Review
    from sparsity_lab.sweeps import Results, Sweep


@dataclass(frozen=True, kw_only=True)
class Decide(SettingsCommand):
    """Add seeds to the arms of a study until its primary claims are decided or the budget is spent."""

    interrupted = GOES_ON

    study: Positional[Annotated[str, arg(metavar="STUDY")]]
    """Path of the study: its folder or file."""
    out: OptionalPath = None
    """Folder of the runs; by default runs/NAME."""
    budget: Annotated[float | None, arg(metavar="MINUTES", help_behavior_hint="")] = None
    """Core-minutes that all of the study's runs in that folder may take, including finished ones. Required."""
    results: OptionalPath = None
    """Folder of the result; by default the study's own. Runs whose rows are already there are not repeated."""
    size: Literal["smoke", "small", "full"] = "small"
    """Size of the study."""
    at_once: Annotated[int | None, arg(metavar="SEEDS", help_behavior_hint="")] = None
    """Seeds to add per arm before the claims are judged again, if there are more workers than arms; by default as
    many as take a core-minute."""
    workers: OptionalNumber = None
    """Worker processes, one thread each; by default 2."""
    engine: OptionalText = None
    """Engine that executes the runs, instead of --workers, as in "RayEngine(address='auto', cpus=2)"."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.cli.sweep import chosen_engine
        from sparsity_lab.studies import decide, load_study, results_folder
        from sparsity_lab.sweeps.sweep import folder_of

        if self.budget is None:
            raise SettingError("--budget", "missing; give core-minutes, as in --budget 60")
        path = Path(self.study)
        study, engine = load_study(path), chosen_engine(self.engine, self.workers)
        out = self.out or folder_of(study.name)
        folder = self.results or results_folder(path)

        def run(sweep: "Sweep") -> "Results":
            return swept(sweep, out, engine, console)[0]

        looks = decide(
            study,
            out,
            folder,
            run,
            budget=self.budget,
            size=self.size,
            at_once=self.at_once,
            command=f"sparsity-lab decide {self.study} --size {self.size}",
        )
        for look in looks:
            _show(look, self.budget, console)
        console.print(f"Result: {folder}")
        return Outcome({"out": str(out), "results": str(folder), **_data(look)}, not look.failed)


def _show(look: "Review", budget: float, console: Console) -> None:
    """Print the state of each claim, and how many more seeds the open claims need."""
    console.print(f"\n{look.spent:.1f} of {budget:g} core-minutes")
    for name, decision in look.decisions.items():
        words = decision.cannot_tell if decision.cannot_tell else decision.verdict
        values = " / ".join(f"{value:.3g}" for value in decision.evidences)
        console.print(f"{name}: {words}; {decision.count} seeds, e-values {values}")
    for name, still in look.open.items():
        if still.seeds is None:
            console.print(f"open: {name}; it is too early to estimate how many seeds it needs")
        else:
            minutes = still.core_minutes
            cost = "" if minutes is None else f", {counted(max(1, round(minutes)), 'core-minute')}"
            seeds = counted(still.seeds, "more seed")
            console.print(f"open: {name}; about {seeds}{cost}, if they resemble the seeds so far")
    costs = [f"{arm} {minutes:.2f}" for arm, minutes in look.minutes.items() if minutes is not None]
    if costs:
        console.print(f"Core-minutes per seed: {', '.join(costs)}")
    for run, reason in look.failed.items():
        console.print(f"no result: {run}: {reason}")


def _data(look: "Review") -> dict[str, Any]:
    return {
        "core_minutes": look.spent,
        "claims": [
            {
                "id": name,
                "verdict": decision.verdict,
                "cannot_tell": decision.cannot_tell,
                "seeds": decision.count,
                "e_values": list(decision.evidences),
            }
            for name, decision in look.decisions.items()
        ],
        "open": {name: asdict(still) for name, still in look.open.items()},
        "minutes": dict(look.minutes),
        "failed": dict(look.failed),
    }
