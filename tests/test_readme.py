"""The README's code runs as it stands, in a smaller size."""

import re
from pathlib import Path
from typing import Any

import pytest

from sparsity_lab import settings
from sparsity_lab.config_file import load_sweep

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_notebook_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    smaller = (
        code.replace("steps=400", "steps=2").replace("192)", "192), sequences=16").replace("range(3)", "range(1)")
    )
    assert smaller.count("steps=2") == smaller.count("sequences=16") == smaller.count("range(1)") == 1
    names = run(smaller)
    assert names["curve"].frame()["arm"].n_unique() == 6
    assert len(names["results"].runs) == 6


def test_a_rule_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings._registry, "rule", dict(settings._registry["rule"]))
    run(blocks("python")[1])


def test_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(blocks("toml")[0])
    assert len(load_sweep(tmp_path / "sweep.toml").runs) == 3 * 2 * 3


def test_every_command_exists() -> None:
    from sparsity_lab.cli import _COMMANDS  # noqa: PLC0415

    assert set(re.findall(r"^sparsity-lab (\w+)", README, re.MULTILINE)) <= set(_COMMANDS)
