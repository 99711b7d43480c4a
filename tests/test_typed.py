"""What prints can be typed: in Python, in short form, in TOML and on the command line, for every registered class."""

import contextlib
import importlib
import json
import pkgutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import sparsity_lab
from sparsity_lab import cli
from sparsity_lab.cli import command_line
from sparsity_lab.generators import Task
from sparsity_lab.settings import Setting, SettingError, families, from_data, from_text, kinds, to_data
from sparsity_lab.settings.setting import field_hints

for _found in pkgutil.walk_packages(sparsity_lab.__path__, "sparsity_lab."):
    if not _found.name.endswith("__main__"):
        importlib.import_module(_found.name)

CLASSES = [
    cls
    for family in families()
    for cls in kinds(family).values()
    if cls.__module__.partition(".")[0] == sparsity_lab.__name__
]
"""Every class that the package registers."""
PUBLIC = {
    cls.__name__: getattr(importlib.import_module(".".join(cls.__module__.split(".")[:2])), cls.__name__)
    for cls in CLASSES
}
"""What ``from sparsity_lab.generators import *`` and its like give."""
VALUES = (
    None, True, False, 0, 1, 2, 7, -1, 0.0, 0.5, 1.0, -0.25, 1e-07, 1.5e16,
    "a", "it's \"quoted\"", "", (), (1,), (1, 2), (0.5,), (1e-07, 0.5), ("q",), ("q", "it's"), {}, {"it's": 1},
)  # fmt: skip


def variations(cls: type[Setting]) -> Iterator[Setting]:
    """The examples, and all that comes of giving one field of the first another value."""
    first, *others = cls.examples()
    yield from (first, *others)
    for name in field_hints(cls):
        for value in (*VALUES, *OTHERS):
            for given in (value, (value,), {"it's": value}):
                with contextlib.suppress(SettingError):
                    yield first.replace(**{name: given})


OTHERS = [example for cls in CLASSES for example in cls.examples()[:1] if cls.family not in ("run", "sweep")]


def test_kinds_are_the_names_of_public_classes() -> None:
    assert [cls for cls in CLASSES if PUBLIC[cls.__name__] is not cls or cls.kind != cls.__name__] == []
    assert [name for name, count in Counter(cls.__name__ for cls in CLASSES).items() if count > 1] == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.family}.{cls.kind}")
def test_what_prints_can_be_typed(cls: type[Setting]) -> None:
    for setting in dict.fromkeys(variations(cls)):
        for text in (str(setting), repr(setting)):
            assert eval(text, {"__builtins__": {}}, PUBLIC) == setting, text
            assert from_text(cls, text) == setting
            document = tomllib.loads(f"setting = {json.dumps(text, ensure_ascii=False)}")
            assert from_data(cls, document["setting"]) == setting
        assert from_data(cls, json.loads(json.dumps(to_data(setting)))) == setting


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.family}.{cls.kind}")
def test_the_command_line_takes_what_prints(cls: type[Setting]) -> None:
    for example in cls.examples():
        for text in (str(example), repr(example)):
            command: Any = command_line._parse(["sample", text])
            assert from_text(cls, command.task) == example


TASKS = [cls for cls in CLASSES if issubclass(cls, Task)]


@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.kind)
def test_the_command_line_runs_what_prints(cls: type[Task], capsys: pytest.CaptureFixture[str]) -> None:
    for example in cls.examples():
        length = str(min(example.certified_lengths))
        assert cli.run(["sample", repr(example), "--length", length, "--count", "1", "--json"]) == 0
        assert from_text(Task, json.loads(capsys.readouterr().out)["task"]) == example
