"""What all commands share.

A command is a dataclass whose fields are its arguments. ``run`` shows its outcome on a console, which is silent when
``--json`` is given, and returns it as plain data. Heavy modules are imported when a command needs them, so that help
and bad input are answered at once.
"""

import importlib
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import UseAppendAction, arg

from sparsity_lab.settings import SettingError, Shown

__all__ = [
    "Command",
    "OptionalNumber",
    "OptionalNumbers",
    "OptionalPath",
    "OptionalText",
    "Outcome",
    "SettingsCommand",
    "check_target",
    "import_modules",
]

OptionalPath = Annotated[Path | None, arg(metavar="PATH")]
OptionalText = Annotated[str | None, arg(metavar="TEXT")]
OptionalNumber = Annotated[int | None, arg(metavar="NUMBER")]
OptionalNumbers = Annotated[tuple[int, ...] | None, arg(metavar="NUMBER [NUMBER ...]")]


@dataclass(frozen=True)
class Outcome:
    """What a command found, as plain data, and whether it is good."""

    data: Any
    good: bool = True


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """Base of all commands."""

    json: bool = False
    """Print one JSON document and nothing else."""

    # Whether the same command goes on after an interruption; without an annotation, for it is no argument.
    goes_on = False
    # The package whose kinds it reads, imported first; likewise.
    needs = "sparsity_lab.sweeps"

    def prepare(self) -> None:
        """What comes before ``run``."""

    @abstractmethod
    def run(self, console: Console) -> Outcome:
        """Do it; the console is silent with ``--json``."""


@dataclass(frozen=True, kw_only=True)
class SettingsCommand(Command):
    """Base of the commands that read settings, which may be the user's own."""

    modules: UseAppendAction[Annotated[tuple[str, ...], arg(name="import", metavar="MODULE")]] = ()
    """Import this module, or this study's file or folder, first, since it registers settings of your own; may be
    given again."""

    def prepare(self) -> None:
        import_modules(self.modules)


def import_modules(names: Sequence[str]) -> None:
    """Import modules that register settings; those of the working directory are found too.

    Raises:
        SettingError: one cannot be imported, or what it registers cannot be.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        # A folder may also be a package of the user's, which is imported by its name.
        if name and (name.endswith(".py") or (Path(name) / "study.py").is_file()):
            from sparsity_lab.studies import load_study  # noqa: PLC0415

            load_study(name)
            continue
        try:
            importlib.import_module(name)
        # ``register`` raises TypeError and settings ValueError, as does the import of what is no module's name.
        except (ImportError, SyntaxError, TypeError, ValueError) as error:
            raise SettingError("--import", "a module that can be imported", Shown(f"{name} ({error})")) from None


def check_target(option: str, path: Path) -> None:
    """Raise ``SettingError`` if no file can be written there; nothing is left behind."""
    if path.is_dir():
        raise SettingError(option, "a file that can be written", f"{path} (a folder)")
    try:
        # What may be written cannot be told from the permissions alone.
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingError(option, "a file that can be written", f"{path} ({error.strerror})") from None
