"""``sparsity-lab list``."""

# ruff: noqa: PLC0415

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import Outcome, SettingsCommand
from sparsity_lab.settings import check_that, counted


@dataclass(frozen=True, kw_only=True)
class List(SettingsCommand):
    """List all tasks, laws, kernels, position schemes and benchmarks, each in a few words. "sparsity-lab show NAME"
    shows details. For a folder, list its studies with their runs and minutes."""

    family: Positional[Annotated[str | None, arg(metavar="[FAMILY|FOLDER]", help_behavior_hint="")]] = None
    """List only this family, as in "sparsity-lab list kernel", or a folder of studies, as in "sparsity-lab list
    experiments/"."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.benchmarks import benchmarks
        from sparsity_lab.settings import families, kinds

        if self.family is not None and (Path(self.family).is_dir() or "/" in self.family):
            return Outcome(_studies(Path(self.family), console))
        found: dict[str, Mapping[str, str | None]] = {
            name: {kind: cls.__doc__ for kind, cls in kinds(name).items()} for name in families()
        }
        found["benchmark"] = dict(benchmarks())
        if self.family is not None:
            check_that(self.family in found, "family", "a family, or a folder of studies", self.family, found)
            found = {self.family: found[self.family]}
        return Outcome({family: _members(family, members, found, console) for family, members in found.items()})


def _members(
    family: str, members: Mapping[str, str | None], found: Mapping[str, Mapping[str, str | None]], console: Console
) -> dict[str, str]:
    """Print the members of a family. Returns the first paragraph of each docstring, by name."""
    from sparsity_lab.settings.descriptions import in_words, paragraphs

    widest = max(len(name) for each in found.values() for name in each)
    console.print(Text(family, style="bold"))
    for name, doc in members.items():
        room = max(20, console.width - widest - 4)
        first, *more = textwrap.wrap(in_words(doc, room), room) or [""]
        console.print(Text(f"  {name:{widest}}  ").append(first, style="dim"), soft_wrap=True)
        for line in more:
            console.print(Text(f"{'':{widest + 4}}").append(line, style="dim"), soft_wrap=True)
    return {name: next(iter(paragraphs(doc)), "") for name, doc in members.items()}


def _studies(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Print the studies in a folder with their runs, minutes and verdicts so far. Returns the same as data."""
    from sparsity_lab.studies.overview import studies_overview

    found = studies_overview(folder)
    widest = max(len(one["study"]) for one in found)
    for one in found:
        room = max(20, console.width - widest - 2)
        first, *more = textwrap.wrap(_runs_words(one), room)
        name = Text(f"{one['study']:{widest}}  ", style="bold")
        console.print(name.append(first, style="not bold"), soft_wrap=True)
        for line in [*more, *textwrap.wrap(one["title"], room)]:
            console.print(Text(f"{'':{widest}}  ").append(line, style="dim"), soft_wrap=True)
    return found


def _runs_words(one: Mapping[str, Any]) -> str:
    arms = counted(one["arms"], "arm")
    if one["finished"] is None:
        return f"{arms}, {counted(one['runs'], 'run')} planned, no result yet"
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in one["verdicts"].items())
    done = f"{counted(one['finished'], 'run')}, {counted(round(one['core_minutes']), 'core-minute')}"
    return f"{arms}, {done}; {verdicts or 'no primary claims'}"
