"""``sparsity-lab list`` has one line for each thing, at any width; help is readable and says the exit codes."""

from pathlib import Path

import pytest

from sparsity_lab import cli
from sparsity_lab.cli import COMMANDS
from sparsity_lab.settings import families, kinds


@pytest.mark.parametrize("width", [80, 120])
def test_one_line_for_each_thing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert {kind for family in families() for kind in kinds(family)} <= set(listed)
    # A family is a line of its own; a line that went on below would start with neither a name nor a family.
    headings = [line for line in lines if not line.startswith("  ")]
    assert set(families()) <= set(headings)
    assert len(headings) == len(families()) + 1  # benchmarks


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS)], ids=lambda command: " ".join(command) or "all"
)
def test_help_is_readable(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run([*command, "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "{None}" not in text
    assert "Annotated" not in text
    if not command:
        assert "130" in text
        assert all(name in text for name in COMMANDS)


def test_a_new_file_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greet_in_this_test.py").write_text(
        "from sparsity_lab.cli.command import Command, Outcome, SettingsCommand\n"
        "class Greet(Command):\n"
        "    def run(self, console):\n"
        "        return Outcome('hello')\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    found = dict(cli.command_line._commands())
    assert found.keys() - COMMANDS.keys() == {"greet"}
    assert COMMANDS.items() <= found.items()
    assert list(COMMANDS) == sorted(COMMANDS)
