"""``sparsity-lab decide``: what it tells, its exit codes, and every engine."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sparsity_lab import cli

RATES = Path(__file__).parent / "rates" / "study.py"


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    """A copy of the study of rates under a name of its own; ``sys.path`` is as before afterwards."""
    before = list(sys.path)
    folder = tmp_path / f"rates_{tmp_path.name}"
    folder.mkdir()
    shutil.copy(RATES, folder / "study.py")
    yield folder
    sys.path[:] = before


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run([str(one) for one in arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def decided(capsys: pytest.CaptureFixture[str], study: Path, *more: object) -> Any:
    out = study.parent / "runs"
    code, text, error = told(
        capsys, "decide", study, "--out", out, "--budget", 1, "--engine", "Serial()", "--json", *more
    )
    assert code == 0, error
    return json.loads(text)


def edited(study: Path, old: str, new: str) -> None:
    file = study / "study.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_it_writes_the_result_and_says_what_it_found(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    """Four steps teach nothing, so three seeds end it."""
    data = decided(capsys, study, "--at-once", 1)
    (claim,) = data["claims"]
    assert (claim["id"], claim["verdict"], claim["cannot_tell"]) == ("rate", "not decided", "never learned")
    assert claim["seeds"] == 3
    assert data["core_minutes"] > 0
    assert {file.name for file in study.glob("re*")} == {"result.json", "result.svg", "result.md"}
    record = json.loads((study / "result.json").read_text())
    assert record["claims"][0]["primary"] is True
    assert record["run"]["rules"].keys() == {"primary", "rate"}
    assert "**not decided**: never learned" in (study / "result.md").read_text()
    assert "## Rules, fixed before the runs" in (study / "result.md").read_text()
    code, out, _ = told(capsys, "decide", study, "--out", study.parent / "runs", "--budget", 1)
    assert code == 0
    assert "rate: never learned; 3 seeds" in out
    assert "Core-minutes per seed: one " in out


def test_a_sweep_fixes_the_rules_too(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    out = study.parent / "runs"
    assert told(capsys, "sweep", study, "--out", out, "--engine", "Serial()")[0] == 0
    edited(study, "above=0.0, matters=0.1", "above=0.0, matters=0.2")
    code, _, error = told(capsys, "decide", study, "--out", out, "--budget", 1)
    assert code == 2
    assert "the rule of 'rate' has changed since the study started" in error
    code, _, _ = told(capsys, "report", out, "--study", study)
    assert code == 0
    assert "**Changed or added after the first run:** rate." in (study / "result.md").read_text()
    assert json.loads((study / "result.json").read_text())["claims"][0]["rule_changed"] is True


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ("", "", ("--budget", "0"), "budget: expected a positive number of core-minutes, got 0.0"),
        ("", "", ("--budget", "-3"), "budget: expected a positive number of core-minutes, got -3.0"),
        ("", "", ("--budget", "nan"), "--budget: expected a number from "),
        ("", "", ("--budget", "much"), "--budget: expected "),
        ("", "", (), "--budget: missing; give core-minutes, as in --budget 60"),
        ("", "", ("--budget", "1", "--at-once", "0"), "at_once: expected at least 1, got 0"),
        (
            'primary=("rate",)',
            "primary=()",
            ("--budget", "1"),
            "primary: expected one to five names of the study's claims",
        ),
        ('primary=("rate",)', 'primary=("rates",)', ("--budget", "1"), "got 'rates'"),
        ('primary=("rate",)', 'primary=("rate",) * 6', ("--budget", "1"), "expected at most 5 claims, got 6"),
        ('arms=("one", "two")', 'arms=("one", "six")', ("--budget", "1"), "arms of the study (one of one, two)"),
        ("", "", ("--budget", "1", "--workers", "1", "--engine", "Serial()"), "--workers: give either --engine or"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], study: Path, old: str, new: str, options: tuple[str, ...], message: str
) -> None:
    if old:
        edited(study, old, new)
    code, out, error = told(capsys, "decide", study, "--out", study.parent / "runs", *options)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (study.parent / "runs").exists()
    assert not (study / "result.json").exists()


def test_no_such_study(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, error = told(capsys, "decide", tmp_path / "none", "--budget", 1)
    assert code == 2
    assert "study: expected a file that ends in .py or a folder with a study.py" in error


def test_damaged_frames_are_named(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    decided(capsys, study)
    (study / "measures.parquet").unlink()
    code, _, error = told(capsys, "decide", study, "--budget", 1)
    assert code == 2
    assert "measures.parquet: no such file; it belongs to rows.parquet" in error
    (study / "rows.parquet").write_bytes(b"PAR1 no frame")
    code, _, error = told(capsys, "decide", study, "--budget", 1)
    assert code == 2
    assert "rows.parquet: not a readable parquet file" in error


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["Processes(workers=2)", "RayEngine(cpus=2)"])
def test_every_engine_gives_the_same_frames(capsys: pytest.CaptureFixture[str], study: Path, engine: str) -> None:
    decided(capsys, study)
    frames = {file.name: pl.read_parquet(file) for file in study.glob("*.parquet")}
    for file in study.glob("*.parquet"):
        file.unlink()
    out = study.parent / "others"
    code, _, error = told(capsys, "decide", study, "--out", out, "--budget", 1, "--engine", engine)
    assert code == 0, error
    clocks = ("seconds", "parent_seconds")
    for name, frame in frames.items():
        assert pl.read_parquet(study / name).drop(clocks, strict=False).equals(frame.drop(clocks, strict=False))
