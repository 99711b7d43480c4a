"""The ``sparsity-lab`` command.

Exit codes:

- 0: success.
- 1: the command ran but the outcome is bad: a certificate failed, a run did not finish, or a file could not be
  written. Also if the reader of the output closed it early.
- 2: bad input, explained in one line.
- 130: interrupted.
"""

import contextlib
import gc
import importlib
import inspect
import io
import itertools
import json
import os
import pkgutil
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro

from sparsity_lab import __version__
from sparsity_lab.cli.command import Command
from sparsity_lab.cli.output import PlainConsole
from sparsity_lab.settings import SettingError, check_text, check_that

_HELP = ("-h", "--help")
_DESCRIPTION = """A lab for length generalization: tasks with known ground truth, models trained on short sequences
and tested on long ones.

Start with "sparsity-lab demo". Write settings as they print, in quotes: "Planted(k=3, locality=Recent(width=8))".
Exit codes: 0, success; 1, the command ran but the outcome is bad; 2, bad input, explained in one line;
130, interrupted."""


def _commands() -> Iterator[tuple[str, type[Command]]]:
    """The names and classes of the commands that the other modules of this folder define."""
    package = sys.modules[__name__.rpartition(".")[0]]
    for found in pkgutil.iter_modules(package.__path__):
        if found.name in ("__main__", "command_line"):
            continue
        for value in vars(importlib.import_module(f"{package.__name__}.{found.name}")).values():
            if inspect.isclass(value) and issubclass(value, Command) and not inspect.isabstract(value):
                yield value.__name__.removesuffix("Command").lower(), value


COMMANDS = dict(_commands())
"""By name, sorted."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit. Characters that the terminal's encoding lacks are escaped, as in ``\\u2265``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    try:
        try:
            return _run(arguments)
        finally:  # also after help, which exits
            if sys.stdout is not None:  # None if it was closed
                sys.stdout.flush()
    except SettingError as error:
        print(f"sparsity-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        command = COMMANDS.get(next(iter(arguments), ""))
        print(f"sparsity-lab: {(command or Command).interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe.
        _write_no_more()
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print("sparsity-lab: out of memory: this machine, or its GPU, does not have enough", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:  # the error of a stream, or of an open file on a full disk
            _write_no_more()
        print(f"sparsity-lab: {error}", file=sys.stderr)
        return 1


def _is_lack_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch ran out of memory. For CPU memory, torch has no separate exception class."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _write_no_more() -> None:
    """Discard later output: at its end, Python would try again to write the buffered text."""
    with contextlib.suppress(io.UnsupportedOperation):  # if standard output is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str]) -> int:
    if "--version" in arguments[:1]:
        print(__version__)
        return 0
    command = _parse(arguments)
    try:
        os.getcwd()
    except FileNotFoundError:  # torch's libraries would end the process with their own message
        raise SettingError("working directory", "this folder was removed; go to another one") from None
    _load(command.needs)
    console = PlainConsole(quiet=command.json, soft_wrap=True)
    # Output of the user's own modules must not appear in the document.
    with contextlib.redirect_stdout(sys.stderr) if command.json else contextlib.nullcontext():
        command.prepare()
        outcome = command.run(console)
    if command.json:
        print(json.dumps(outcome.data), flush=True)
    return 0 if outcome.good else 1


def _load(package: str) -> None:
    """Import the package that a command needs, which registers its kinds. Imported objects are never garbage, so the
    collector skips them, which saves a tenth of the time."""
    if package in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(package)
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


def _parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments describe.

    Raises:
        SettingError: bad arguments.
        SystemExit: the help was requested and shown.
    """
    _check_names(arguments)
    union: Any = typing.Union[  # noqa: UP007
        tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in COMMANDS.items())
    ]
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # hides the parser's message of several lines
            command: Command = tyro.cli(
                union, prog="sparsity-lab", description=_DESCRIPTION, args=list(arguments), config=config
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _bad_arguments(arguments) from None
    command.check_numbers()
    return command


def _check_names(arguments: Sequence[str]) -> None:
    """Raise ``SettingError`` for an argument that is not valid text, an unknown command, or an unknown option. The
    parser would instead report a missing value of the wrong option."""
    for argument in arguments:
        check_text(argument, "arguments")
    check_that(arguments, "command", "missing; give a command", known=COMMANDS)
    name, *rest = arguments
    if name in _HELP:
        return
    check_that(not name.startswith("-"), name, "options come after the command; give a command first", known=COMMANDS)
    check_that(name in COMMANDS, "command", "a command", name, COMMANDS)
    options, _ = _arguments_of(name)
    for argument in itertools.takewhile(lambda argument: argument != "--", rest):
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in (*options, *_HELP):
            raise SettingError(option, f"an option of sparsity-lab {name}", option, options)


def _arguments_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and positional arguments of a command, with their type hints."""
    options, positional = {}, {}
    for field, hint in typing.get_type_hints(COMMANDS[name], include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        if tyro.conf.Positional in marks:
            positional[field] = hint
        else:
            own = next((mark.name for mark in marks if getattr(mark, "name", None)), field)
            options[f"--{own.replace('_', '-')}"] = hint
    return options, positional


def _bad_arguments(arguments: Sequence[str]) -> SettingError:
    """The error of arguments that the parser has refused. The parser's own error is text for people. Its structured
    form is private (``tyro._errors`` in 1.0.17) and may change with any release."""
    name, *rest = arguments
    options, positional = _arguments_of(name)
    given = [("--", list[str]())]
    for argument in rest:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            given.append((option, [value] * bool(equals)))
        else:
            given[-1][1].append(argument)
    left = list[str]()
    for option, values in given:
        hint = options.get(option)
        kinds = list(_kinds(hint))
        most = 0 if hint in (None, bool) else None if tuple in kinds and tyro.conf.UseAppendAction not in kinds else 1
        own, left = values[:most], left + values[len(values[:most]) :]
        if most == 1 and not own:
            return SettingError(option, "missing value")
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        for value in own:
            if choices and value not in choices:
                return SettingError(option, "a choice", value, choices)
            for kind, words in ((int, "a whole number"), (float, "a number")):
                if kind in kinds and not _is(kind, value):
                    return SettingError(option, words, value)
    if not left:
        # Only positional arguments are required, and a command has at most one.
        return SettingError(next(iter(positional), name), "missing; this argument is required")
    return SettingError(left[-1], f"an option of sparsity-lab {name}", left[-1], options)


def _kinds(hint: Any) -> Iterator[Any]:
    """All parts of a type hint: origins, arguments and annotations."""
    yield typing.get_origin(hint) or hint
    yield from getattr(hint, "__metadata__", ())
    for inner in typing.get_args(hint):
        yield from _kinds(inner)


def _is(kind: type[int] | type[float], text: str) -> bool:
    with contextlib.suppress(ValueError):
        kind(text)
        return True
    return False
