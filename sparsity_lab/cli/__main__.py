"""``python -m sparsity_lab.cli``."""

from sparsity_lab.cli.command_line import main

main()
