"""``sparsity-lab demo``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from sparsity_lab.cli.command import GOES_ON, Command, Outcome
from sparsity_lab.cli.output import plain_table, show_arms, show_unfinished, swept


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train small models, decide how k and coupled IDs affect lengths beyond training, and write a report (2-3
    minutes)."""

    interrupted = GOES_ON

    out: Path = Path("runs/demo")
    """Folder of the runs and the report. The same command continues where it stopped."""
    workers: int = 2
    """Worker processes, one thread each."""
    size: Literal["smoke", "small", "full"] = "small"
    """How much to train: smoke is a quick test, small suits two cores."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.analysis import write_report
        from sparsity_lab.studies import demo, verdict_frame, verdict_section
        from sparsity_lab.sweeps import Processes

        results, seconds = swept(demo.sweep(self.size), self.out, Processes(workers=self.workers), console)
        evidence = None if results.frame("evaluation").is_empty() else demo.evidence(results, self.size)
        page = write_report(
            results,
            self.out / "report.html",
            title="sparsity_lab demo",
            command=f"sparsity-lab demo --size {self.size}",
            first=None if evidence is None else verdict_section(demo, evidence),
            explorer=True,
        )
        arms, unfinished = show_arms(results, console), show_unfinished(results, console)
        claims: list[dict[str, Any]] = []
        if evidence is not None:
            decided = verdict_frame(demo, evidence)
            claims = decided.to_dicts()
            console.print("\nVerdicts, by the rules of `sparsity-lab decide`")
            console.print(plain_table(decided))
        console.print(f"\n{len(results.runs)} runs in {seconds:.0f} s. Report: {page}")
        data = {"out": str(self.out), "report": str(page), "seconds": seconds, "arms": arms, "claims": claims}
        return Outcome(data | {"unfinished": unfinished}, not unfinished)
