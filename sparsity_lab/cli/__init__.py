"""The ``sparsity-lab`` command, a file for each subcommand. A new one is a file with a subclass of ``Command``.

The modules are light: what is heavy is imported when a command runs.
"""

from sparsity_lab.cli.command import Command as Command
from sparsity_lab.cli.command import Outcome as Outcome
from sparsity_lab.cli.command_line import COMMANDS as COMMANDS
from sparsity_lab.cli.command_line import main as main
from sparsity_lab.cli.command_line import run as run
