"""``sparsity-lab bench``."""

# ruff: noqa: PLC0415

import inspect
from dataclasses import dataclass

from rich.console import Console
from tyro.conf import Positional, UseAppendAction

from sparsity_lab.cli.command import Command, OptionalNumbers, OptionalPath, Outcome
from sparsity_lab.cli.output import plain_table
from sparsity_lab.settings import SettingError

__all__ = ["Bench"]


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure speed, as ratios within one run; or, with "verdicts", how often diagnose is right."""

    name: Positional[str]
    """Name of the benchmark; "sparsity-lab list benchmark" shows all."""
    only: UseAppendAction[tuple[str, ...]] = ()
    """Only this case, of a benchmark with cases to choose, as in "--only Softmax"; may be given again."""
    lengths: OptionalNumbers = None
    """Lengths of the sequences, of a benchmark with lengths to choose, as in "--lengths 2048 4096"."""
    seeds: OptionalNumbers = None
    """Seeds of what is drawn, of a benchmark with seeds to choose."""
    out: OptionalPath = None
    """Folder that keeps what is done, so that the same command goes on from there; of a benchmark that takes long."""
    device: str | None = None
    """Where it is measured, cpu or cuda, of a benchmark with a device to choose."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.benchmarks import find_benchmark, machine
        from sparsity_lab.benchmarks.terminal import tables

        measure = find_benchmark(self.name)
        names = ("only", "lengths", "device", "seeds", "out")
        options = {name: value for name in names if (value := getattr(self, name))}
        for name in options.keys() - inspect.signature(measure).parameters.keys():
            raise SettingError(f"--{name}", f"a benchmark with {name} to choose", self.name)
        frame = measure(**options)
        shown, common = tables(frame)
        for title, table in shown.items():
            if title:
                console.print(f"\n{title}")
            console.print(plain_table(table))
        if common:
            console.print(f"\nAll: {common}")
        console.print("\nOn: " + ", ".join(f"{name} {value}" for name, value in machine().items()))
        return Outcome({"benchmark": self.name, "machine": machine(), "rows": frame.to_dicts()})
