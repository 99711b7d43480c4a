"""The ``sparsity-lab`` command, with one file for each subcommand. A file with a subclass of ``Command`` adds one.

Importing this package is fast: a command imports heavy modules only when it runs.
"""

from sparsity_lab.cli.command import Command as Command
from sparsity_lab.cli.command import Outcome as Outcome
from sparsity_lab.cli.command_line import COMMANDS as COMMANDS
from sparsity_lab.cli.command_line import main as main
from sparsity_lab.cli.command_line import run as run
