"""``sparsity-lab bench``."""

# ruff: noqa: PLC0415

import inspect
from dataclasses import dataclass

from rich.console import Console
from tyro.conf import Positional, UseAppendAction

from sparsity_lab.cli.command import Command, OptionalNumbers, OptionalPath, OptionalText, Outcome
from sparsity_lab.cli.output import plain_table
from sparsity_lab.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Run a benchmark: speeds as ratios within one run or, for "verdicts", how often diagnose is right."""

    name: Positional[str]
    """Name of the benchmark. "sparsity-lab list benchmark" shows all."""
    only: UseAppendAction[tuple[str, ...]] = ()
    """Run only this case, as in "--only Softmax"; repeat it for more cases."""
    lengths: OptionalNumbers = None
    """Sequence lengths, as in "--lengths 2048 4096"."""
    seeds: OptionalNumbers = None
    """Random seeds, for benchmarks that draw data."""
    out: OptionalPath = None
    """Folder for partial results of a long benchmark. The same command continues from there."""
    device: OptionalText = None
    """Device to measure on: cpu or cuda. Only some benchmarks have this option."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.benchmarks import find_benchmark, machine
        from sparsity_lab.benchmarks.terminal import tables

        measure = find_benchmark(self.name)
        names = ("only", "lengths", "device", "seeds", "out")
        options = {name: value for name in names if (value := getattr(self, name))}
        for name in options.keys() - inspect.signature(measure).parameters.keys():
            raise SettingError(f"--{name}", f"benchmark {self.name!r} does not have this option")
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
