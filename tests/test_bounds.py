"""Every number has a bound: what nobody could make is refused in one line, before anything is made."""

import dataclasses
import difflib
import io
import math
import sys
import typing
from typing import Any

import pytest

from sparsity_lab import cli
from sparsity_lab.generators import Mixture, Planted
from sparsity_lab.settings import SettingError, families, from_data, kinds, to_data
from sparsity_lab.sweeps import Sweep, grid
from sparsity_lab.sweeps.config_file import read_data
from sparsity_lab.training import memory
from sparsity_lab.training.config import RunConfig, Training

TOO_LARGE = (2**32, 10**12, 2**63 - 1, 2**63, 10**30, -(10**12), -(2**63), -(10**30))
NOT_TO_BE = (1e300, -1e300, math.inf, -math.inf, math.nan, 10**31)
EXAMPLES = [
    example
    for family in families()
    for cls in kinds(family).values()
    for example in cls.examples()
    if cls.__module__.startswith("sparsity_lab")
]


def numbers(data: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the numbers of a setting's data are."""
    if isinstance(data, dict):
        return [one for key, item in data.items() if key != "version" for one in numbers(item, (*place, key))]
    if isinstance(data, list):
        return [one for i, item in enumerate(data) for one in numbers(item, (*place, i))]
    return [place] if type(data) in (int, float) else []


def with_number(data: Any, place: tuple[Any, ...], number: float) -> Any:
    if not place:
        return number
    changed = dict(data) if isinstance(data, dict) else list(data)
    changed[place[0]] = with_number(data[place[0]], place[1:], number)
    return changed


def value_at(data: Any, place: tuple[Any, ...]) -> Any:
    return value_at(data[place[0]], place[1:]) if place else data


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{e.family} {e}"[:80] for e in EXAMPLES])
def test_no_number_of_a_setting_is_without_a_bound(example: Any) -> None:
    data = to_data(example)
    for place in numbers(data):
        is_seed, is_whole = str(place[-1]).endswith("seed"), type(value_at(data, place)) is int
        for number in (*(TOO_LARGE if is_whole and not is_seed else ()), *NOT_TO_BE):
            with pytest.raises(SettingError) as error:
                from_data(type(example), with_number(data, place, number))
            assert "\n" not in str(error.value)
            # It is said where, unless a check of two fields speaks of the other.
            assert error.value.path


def test_numbers_inside_tuples_and_mappings_are_bounded_too() -> None:
    with pytest.raises(SettingError, match=r"tasks\[1\]\.k: expected at most 4194304, got 9223372036854775807"):
        from_data(Mixture, {"kind": "Mixture", "tasks": ["Planted()", {"kind": "Planted", "k": 2**63 - 1}]})
    with pytest.raises(SettingError, match=r"evaluation\.lengths\[1\]: expected at most 2147483648, got 4294967296"):
        from_data(RunConfig, {"task": "Planted", "evaluation": {"lengths": [8, 2**32]}})


def test_seeds_are_whole_numbers_of_64_bits() -> None:
    for seed in (2**63 - 1, -(2**63)):
        assert RunConfig(task=Planted(), model_seed=seed).model_seed == seed
    with pytest.raises(SettingError, match="model_seed: expected an integer of at most 64 bits"):
        RunConfig(task=Planted(), model_seed=2**63)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udc80"])
def test_texts_that_no_file_can_hold_are_refused(text: str) -> None:
    for make in (
        lambda: Sweep(name=text, runs=RunConfig.examples()[:1]),
        lambda: from_data(RunConfig, {"task": "Planted", "evaluation": {"conditions": {text: "Planted"}}}),
        lambda: from_data(RunConfig, {"task": {"kind": "TextBytes", "path": text}}),
    ):
        with pytest.raises(SettingError, match="expected text") as error:
            make()
        assert str(error.value).isprintable()


def options() -> list[tuple[str, str]]:
    """Command and option, of all options that take a number."""
    found = []
    for name, command in cli.COMMANDS.items():
        for field in dataclasses.fields(command):
            hint = str(typing.get_type_hints(command)[field.name])
            if any(kind in hint.split() or kind in hint for kind in ("int", "float")):
                found.append((name, f"--{field.name.replace('_', '-')}"))
    return found


def test_options_with_numbers_are_found() -> None:
    assert ("certify", "--lengths") in options()
    assert ("decide", "--budget") in options()
    assert len(options()) > 15


@pytest.mark.parametrize(("command", "option"), options())
@pytest.mark.parametrize("number", ["4294967296", "-4294967296", "1" + "0" * 31, "9" * 5000, "²", "1e300", "nan"])
def test_no_number_of_a_command_is_without_a_bound(
    command: str, option: str, number: str, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    if "4294967296" in number and option in ("--seed", "--budget"):
        number = str(2**63 + 1) if option == "--seed" else "1e31"
    needed = {"sample": ["Planted"], "certify": ["Planted"], "decide": ["nothing"], "bench": ["nothing"]}
    positional = needed.get(command, ["nothing", "nothing"] if command == "swap" else [])
    assert cli.run([command, *positional, option, number]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"sparsity-lab: {option}")
    assert (told.out, told.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("argument", ["\x80", "\udc80", "a\0b", "--stream=\udcff"])
def test_arguments_that_are_no_text(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["sample", "Planted", "--stream", argument])
    told = capsys.readouterr()
    if argument == "\x80":  # a control character, and text
        assert code == 0
    else:
        assert (code, told.out, told.err.count("\n")) == (2, "", 1)
        assert told.err.startswith("sparsity-lab: arguments: expected text")


def test_memory_is_that_of_the_group_of_processes_where_it_is_smaller(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = memory.memory_of("cpu")
    assert whole is not None
    assert whole > 2**28
    for name, text in (("max", "max\n"), ("less", "1000000\n"), ("more", f"{2**60}\n"), ("none", "")):
        (tmp_path / name).write_text(text)
    for name, expected in (("max", whole), ("less", 1_000_000), ("more", whole), ("none", whole), ("no", whole)):
        monkeypatch.setattr(memory, "LIMITS", (tmp_path / name,))
        assert memory.memory_of("cpu") == expected


def test_a_run_that_does_not_fit_says_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(task=Planted(), training=Training(device="cuda"))
    asked = []

    def small(device: str) -> int:
        asked.append(device)
        return 2**20

    monkeypatch.setattr(memory, "memory_of", small)
    with pytest.raises(SettingError, match=r"fits in cuda's memory, 0\.00098 GiB, got about 0\.[0-9]+ GiB"):
        run.check_memory()
    assert asked == ["cuda"]


def test_what_takes_much_memory_or_time_to_read_is_refused_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="task: expected a text of at most 1048576 characters, got 1048577"):
        from_data(RunConfig, {"task": "x" * (2**20 + 1)})
    with pytest.raises(SettingError, match="grid: expected at most 1048576 combinations, got 10000000000"):
        grid(RunConfig(task=Planted()), {"data_seed": range(10**5), "model_seed": range(10**5)})
    # Its letters are not compared with those of the right names.
    monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: pytest.fail("compared"))
    assert len(str(SettingError("kind", "a task", "P" * 10**6, ["Planted"]))) < 300


def test_what_the_encoding_of_the_output_lacks_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", told)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "Planted(k=1)", "--length", "8", "--count", "1"])
    assert stop.value.code == 0
    assert "\\u" in told.buffer.getvalue().decode("ascii")


def test_a_working_directory_that_was_removed_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.run(["sample", "Planted"]) == 2
    assert capsys.readouterr().err == "sparsity-lab: working directory: this folder was removed; go to another one\n"


@pytest.mark.parametrize("part", ["a", "a-b_1", '"a b"', "'a.b'", r'"\"."', '""'])
@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "[[ {} ]]", "x = [0.5, {{{} = 1}}]", "\n\t{} = 1"])
def test_keys_of_toml_have_few_parts(form: str, part: str, tmp_path: Any) -> None:
    """The parser would take gigabytes for a key of a hundred kilobytes."""
    file = tmp_path / "run.toml"
    for between in (".", " . ", "\t.\t"):
        file.write_text(form.format(between.join([part] * 65)))
        with pytest.raises(SettingError, match="expected keys with at most 64 parts, got more"):
            read_data(file)
    # These are no keys, however many there are.
    file.write_text(f"x = [{', '.join(['0.5'] * 1000)}]\ny = 'a.{'b, ' * 1000}'\n{part} = '{'..' * 1000}'\n")
    assert len(read_data(file)["x"]) == 1000
