"""The base classes of all commands.

A command is a dataclass whose fields are its arguments. ``run`` prints the outcome on a console, which is silent with
``--json``, and returns it as plain data. Commands import heavy modules only when they need them, so that help and
errors appear at once.
"""

import importlib
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import UseAppendAction, arg

from sparsity_lab.settings import LARGEST_SEED, LARGEST_WHOLE, SettingError, check_range

OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
OptionalText = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
OptionalNumber = Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")]
OptionalNumbers = Annotated[tuple[int, ...] | None, arg(metavar="NUMBER [NUMBER ...]", help_behavior_hint="")]


@dataclass(frozen=True)
class Outcome:
    """The result of a command as plain data, and whether it is good."""

    data: Any
    good: bool = True


GOES_ON = "interrupted; run the same command again to continue"


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """Base of all commands."""

    json: bool = False
    """Print one JSON document and nothing else."""

    # The message after an interruption. Not annotated, because it is not an argument.
    interrupted = "interrupted"
    # The package that registers the kinds that the command reads. It is imported first. Also not an argument.
    needs = "sparsity_lab.sweeps"

    def check_numbers(self) -> None:
        """Raise ``SettingError`` if a number is above the largest allowed value."""
        for field in fields(self):
            option = f"--{field.name.replace('_', '-')}"
            check_range(getattr(self, field.name), option, LARGEST_SEED if field.name == "seed" else LARGEST_WHOLE)

    def prepare(self) -> None:
        """Prepare for ``run``."""

    @abstractmethod
    def run(self, console: Console) -> Outcome:
        """Run the command. The console is silent with ``--json``."""


@dataclass(frozen=True, kw_only=True)
class SettingsCommand(Command):
    """Base of the commands that read settings, including the user's own."""

    modules: UseAppendAction[Annotated[tuple[str, ...], arg(name="import", metavar="MODULE")]] = ()
    """Import this module first (or a study's file or folder), which registers your own settings; repeat it for more
    modules."""

    def prepare(self) -> None:
        import_modules(self.modules)


def import_modules(names: Sequence[str]) -> None:
    """Import modules that register settings, including modules in the working directory.

    Raises:
        SettingError: a module cannot be imported, or it registers an invalid setting.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        # A folder can also be the user's package, which is imported by name.
        if name and (name.endswith(".py") or (Path(name) / "study.py").is_file()):
            from sparsity_lab.studies import load_study  # noqa: PLC0415

            load_study(name)
            continue
        try:
            importlib.import_module(name)
        # ``register`` raises TypeError. Settings and invalid module names raise ValueError.
        except (ImportError, SyntaxError, TypeError, ValueError) as error:
            raise SettingError("--import", f"cannot import {name!r}: {error}") from None


def check_target(option: str, path: Path) -> None:
    """Raise ``SettingError`` if the file cannot be written. The check leaves nothing behind."""
    if path.is_dir():
        raise SettingError(option, f"cannot write {path}: it is a folder")
    try:
        # Permissions alone do not show whether a file can be written.
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingError(option, f"cannot write {path}: {error.strerror}") from None
