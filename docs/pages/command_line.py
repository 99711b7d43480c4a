"""What ``sparsity-lab --help`` says, of every command."""

import contextlib
import io
import os
from pathlib import Path

from pages.markdown import code, page
from sparsity_lab import cli
from sparsity_lab.cli import COMMANDS

__all__ = ["pages"]


def pages(source: Path) -> dict[str, str]:
    parts = [f"### {name}\n\n{code(_help(name), 'text')}" for name in COMMANDS]
    return {"command_line.md": page("## Commands", code(_help(), "text"), *parts)}


def _help(*command: str) -> str:
    told = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "96"
    try:
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            cli.run([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    return told.getvalue()
