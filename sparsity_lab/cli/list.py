"""``sparsity-lab list``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from typing import Annotated

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import Outcome, SettingsCommand
from sparsity_lab.settings import SettingError

__all__ = ["List"]


@dataclass(frozen=True, kw_only=True)
class List(SettingsCommand):
    """List what there is: tasks, laws, kernels, positions and benchmarks, one line each, as long as the
    terminal is wide; --json has all of it."""

    family: Positional[Annotated[str | None, arg(metavar="[FAMILY]")]] = None
    """Only this family, as in "sparsity-lab list kernel"."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.benchmarks import benchmarks
        from sparsity_lab.settings import families, kinds

        found = {name: {kind: cls.__doc__ for kind, cls in kinds(name).items()} for name in families()}
        found["benchmark"] = dict(benchmarks())
        if self.family is not None:
            if self.family not in found:
                raise SettingError("family", "a family", self.family, found)
            found = {self.family: found[self.family]}
        listed = {
            family: {name: " ".join((doc or "").split("\n\n")[0].split()) for name, doc in members.items()}
            for family, members in found.items()
        }
        widest = max(len(name) for members in listed.values() for name in members)
        for family, members in listed.items():
            console.print(Text(family, style="bold"))
            for name, doc in members.items():
                line = Text(f"  {name:{widest}}  ").append(doc, style="dim")
                line.truncate(console.width, overflow="ellipsis")
                console.print(line)
        return Outcome(listed)
