"""The README's code runs as it stands, in a smaller size."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsity_lab.studies.agreement import agree
from sparsity_lab.sweeps import load_sweep

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


SMALLER = {"steps=400": "steps=2", "192)": "192), sequences=16", "range(3)": "range(1)"}


def test_the_notebook_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    for size, smaller in SMALLER.items():
        assert code.count(size) == 1
        code = code.replace(size, smaller)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["curve"].frame()["arm"].n_unique() == len(names["results"].runs) == 6


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my_rules.py").write_text(blocks("python")[1])
    (command,) = re.findall(r"^sparsity-lab (.* --import my_rules)$", README, re.MULTILINE)
    program = Path(sys.executable).parent / "sparsity-lab"
    told = subprocess.run([program, *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "Planted(rule=Last())" in told.stdout


def test_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(blocks("toml")[0])
    assert len(load_sweep(tmp_path / "sweep.toml").runs) == 3 * 2 * 3


def test_every_command_exists() -> None:
    from sparsity_lab.cli import COMMANDS  # noqa: PLC0415

    assert set(re.findall(r"^sparsity-lab (\w+)", README, re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.committed
def test_the_picture_is_drawn_from_the_study_and_named_by_its_finding() -> None:
    import front_picture  # noqa: PLC0415

    drawn = front_picture.picture()
    assert agree(front_picture.PICTURE.read_text(encoding="utf-8"), drawn), "run `make pictures`"
    (words,) = re.findall(r'aria-label="([^"]*)"', drawn)
    assert f"![{words}](docs/images/front.svg)" in README
    assert f"![{words}](images/front.svg)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
