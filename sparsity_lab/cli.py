"""The ``sparsity-lab`` command.

Exit codes: 0, it worked; 1, it ran and the outcome is bad (a certificate failed, a run diverged); 2, the input is
bad, said in one line; 130, interrupted.
"""

import contextlib
import io
import itertools
import json
import re
import sys
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from sparsity_lab import cli_commands as commands
from sparsity_lab.cli_commands import Command
from sparsity_lab.settings import SettingError, Shown

__all__ = ["main"]

_COMMANDS: dict[str, type[Command]] = {
    "demo": commands.Demo,
    "list": commands.List,
    "sample": commands.Sample,
    "certify": commands.Certify,
    "train": commands.Train,
    "sweep": commands.Sweep,
    "report": commands.Report,
    "bench": commands.Bench,
}
_DESCRIPTION = "A lab for length generalization: data whose truth is known, models trained short and tested long."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    try:
        command = _parse(arguments)
        # Texts of settings and failures may hold brackets, which are not markup.
        console = Console(quiet=command.json, soft_wrap=True, markup=False)
        outcome = command.run(console)
    except SettingError as error:
        print(f"sparsity-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sparsity-lab: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if command.json:
        print(json.dumps(outcome.data))
    return 0 if outcome.good else 1


def _parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments describe.

    Raises:
        SettingError: bad arguments.
        SystemExit: help was asked for and shown.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
        raise SettingError("command", "a command", arguments[0], _COMMANDS)
    union: Any = typing.Union[  # noqa: UP007
        tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in _COMMANDS.items())
    ]
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            command: Command = tyro.cli(
                union, prog="sparsity-lab", description=_DESCRIPTION, args=list(arguments), config=config
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _bad_arguments(told.getvalue(), arguments) from None
    return command


def _bad_arguments(box: str, arguments: Sequence[str]) -> SettingError:
    """One line from the parser's box of several."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    text = " ".join(line for line in lines if line and not set(line) <= {"─"})
    name = next((argument for argument in arguments if argument in _COMMANDS), "")
    if not name:
        return SettingError("command", "a command", Shown("nothing"), _COMMANDS)
    hints = typing.get_type_hints(_COMMANDS[name], include_extras=True)
    positional = [field for field, hint in hints.items() if typing.get_origin(hint) is Annotated]
    flags = [f"--{field.replace('_', '-')}" for field in hints if field not in positional]
    if found := re.search(r"Error parsing (\S+):", text):
        flag = found.group(1)
        metavar = re.search(rf"{flag} (\{{.*?\}}|\S+)", text[found.end() :])
        value = dict(itertools.pairwise(arguments)).get(flag, Shown("nothing"))
        return SettingError(flag, metavar.group(1) if metavar else "a value", value)
    if found := re.search(r"invalid choice (.*?) for argument '(\S+)'. Expected one of \((.*?)\)", text):
        choices = [choice.strip("' ") for choice in found.group(3).split(",")]
        return SettingError(found.group(2), "a choice", found.group(1).strip("'"), choices)
    if found := re.search(r"Missing value for argument '(\S+)'", text):
        return SettingError(found.group(1), "a value", Shown("nothing"))
    if found := re.search(r"Unrecognized options: ([^\s,]+)", text):
        return SettingError(found.group(1), f"an option of sparsity-lab {name}", found.group(1), flags)
    if "Missing from" in text:
        # Only positional arguments are required, and a command has one at most.
        return SettingError(positional[0], "a value", Shown("nothing"))
    return SettingError(name, "arguments as in --help", Shown(text))


if __name__ == "__main__":
    main()
