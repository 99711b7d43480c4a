"""The commands of ``sparsity-lab``: a file each, and a new one is one more file with a subclass of ``Command``.

The modules are light: what is heavy is imported when a command runs.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

from sparsity_lab.commands.command import Command as Command
from sparsity_lab.commands.command import Outcome as Outcome

__all__ = ["COMMANDS", "Command", "Outcome"]


def _commands() -> Iterator[type[Command]]:
    """What the modules of this package define, but for the bases of others."""
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, Command) and not inspect.isabstract(value):
                yield value


COMMANDS = {command.__name__.lower(): command for command in _commands()}
"""By name, sorted."""
