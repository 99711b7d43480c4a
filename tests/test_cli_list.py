"""``sparsity-lab list`` has one line for each thing, at any width; help is readable and says the exit codes."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import sparsity_lab.sweeps  # noqa: F401  (registers what is listed)
from sparsity_lab import cli
from sparsity_lab.cli import COMMANDS
from sparsity_lab.cli.show import Show
from sparsity_lab.settings import families, from_text, kinds
from sparsity_lab.settings.descriptions import in_words
from sparsity_lab.settings.setting import field_hints


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


def test_what_things_are_is_said_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No formula, and none cut in two."""
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["list"]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert not re.search(r"[=Σ^|]|w_ij", text)
    # A class of another test may have a longer name, and then each column is elsewhere.
    words = " ".join(text.split())
    assert " Planted A rule of k planted tokens among l " in words
    assert " LSSAR Re-weighted softplus attention (LSSAR) " in words
    assert " PowerLaw Heavy-tailed in the distance from the query " in words


def test_words_before_a_formula() -> None:
    assert in_words("Softmax attention, o_i = Σ_j a_ij v_j. More.", 60) == "Softmax attention"
    assert (
        in_words("One thing (its name): another thing, and more; w = 1.", 60)
        == "One thing (its name): another thing, and more"
    )
    assert in_words("One thing (its name): another thing, and more.", 30) == "One thing (its name)"
    assert in_words("Indices 0 .. n, in training.", 60) == "Indices 0 .. n, in training"


OWN = [cls for family in families() for cls in kinds(family).values() if cls.__module__.startswith("sparsity_lab.")]


def test_everything_can_be_shown() -> None:
    """Every field with its default and a meaning; and the example is one."""
    for cls in OWN:
        found = Show(kind=cls.kind.lower(), json=True).run(Console(quiet=True)).data
        (shown,) = [one for one in found if one["family"] == cls.family]
        assert {one["field"] for one in shown["fields"]} == set(field_hints(cls))
        assert all(one["meaning"] for one in shown["fields"]), cls
        example = shown["example"].removeprefix('sparsity-lab sample "').rstrip('"')
        assert from_text(cls, example) in cls.examples()


def test_show_says_it_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["show", "Planted"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^k +3 +number of planted tokens\.", text, re.MULTILINE)
    assert re.search(r"One of [\w, ]*Anchored, [\w, ]*Geometric, ", " ".join(text.split()))
    assert cli.run(["show", "Plantd"]) == 2
    assert capsys.readouterr().err.endswith("got 'Plantd'; did you mean 'Planted'?\n")


def test_a_folder_lists_its_studies(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Runs, minutes and verdicts of those with a result; and of the others what is planned."""
    folder = Path(__file__).parent.parent / "experiments"
    assert cli.run(["list", str(folder), "--json"]) == 0
    found = {Path(one["study"]).name: one for one in json.loads(capsys.readouterr().out)}
    assert set(found) == {file.parent.name for file in folder.glob("*/study.py")}
    record = json.loads((folder / "sparse_parity" / "result.json").read_text())
    assert found["sparse_parity"]["core_minutes"] == record["run"]["core_minutes"]
    assert sum(found["sparse_parity"]["verdicts"].values()) == len(record["primary"])
    assert all(one["runs"] > 0 and one["title"] for one in found.values())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(folder.parent)
    assert cli.run(["list", "experiments/"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"\b1 (arms|runs|core-minutes)", text)
    assert cli.run(["list", f"{tmp_path}/"]) == 2
    assert "expected a folder of studies, got none" in capsys.readouterr().err
