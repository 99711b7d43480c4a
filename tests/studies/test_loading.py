"""A study is a file or a folder, named by its path; what it registers is known in every worker."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsity_lab.cli import run
from sparsity_lab.generators import Planted
from sparsity_lab.settings import SettingError
from sparsity_lab.studies import Study, load_study, results_folder, studies_in
from sparsity_lab.sweeps import Engine, Processes, RayEngine, Serial, run_sweep

RULES = """
from sparsity_lab.generators import Parity
from sparsity_lab.settings import register

@register
class OneOf{name}(Parity):
    def words(self):
        return "first"
"""
STUDY = """
from matplotlib.figure import Figure
from sparsity_lab.generators import Planted
from sparsity_lab.models import Decoder
from sparsity_lab.studies import Arm, Study, difference_claim, seeded
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

def arms(size):
    base = RunConfig(
        task=Planted(k=1, rule=OneOf{name}()),
        model=Decoder(num_layers=1, num_heads=1, d_model=8),
        training=Training(steps=2, batch_size=4, curriculum=UniformLength(low=4, high=8)),
        evaluation=Evaluation(lengths=(8, 16), sequences=4),
    )
    return {{"one": Arm(seeded(base), 1), "two": Arm(seeded(base.replace(task=Planted(k=2))), 1)}}

study = Study(
    name="{name}",
    title="Made up",
    question="Which?",
    arms=arms,
    claims=(difference_claim("one", "One.", "one", "two", lengths=(8, 16), source="this lab"),),
    figure=lambda evidence: Figure(),
)
"""


@pytest.fixture(autouse=True)
def paths() -> Iterator[None]:
    """What is added to ``sys.path`` goes again."""
    path = list(sys.path)
    yield
    sys.path[:] = path


def file_study(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(RULES.format(name=name) + STUDY.format(name=name))
    return path


def folder_study(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "rules.py").write_text(RULES.format(name=name))
    study = f"from .rules import OneOf{name}\n{STUDY.format(name=name)}"
    (folder / name / "study.py").write_text(study)
    return folder / name


def rule_of(study: Study) -> Any:
    """The rule that the study itself registers."""
    task = study.arms("smoke")["one"].run(0).task
    assert isinstance(task, Planted)
    return task.rule


@pytest.mark.parametrize(
    ("make", "engine"),
    [
        (file_study, Serial()),
        (file_study, Processes(workers=1)),
        (folder_study, Processes(workers=1)),
        pytest.param(folder_study, RayEngine(cpus=0.5), marks=pytest.mark.slow),
    ],
    ids=lambda one: getattr(one, "kind", one.__name__ if callable(one) else ""),
)
def test_what_a_study_registers_is_known_on_every_engine(
    make: Callable[[Path, str], Path], engine: Engine, tmp_path: Path
) -> None:
    name = f"registers_{engine.kind}_{make.__name__}"
    study = load_study(make(tmp_path, name))
    results = run_sweep(study.sweep("smoke"), tmp_path / "runs", engine)
    assert results.failures == ()
    assert f"OneOf{name}" in " ".join(results.frame("evaluation")["task.rule"].unique().to_list())
    rule = rule_of(study)
    assert type(rule).__module__ == (name if make is file_study else f"{name}.rules")


def test_the_command_line_takes_a_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and a folder, from sweep to page, checked again; the result of a file lies in a folder beside it."""
    monkeypatch.chdir(tmp_path)
    for path in (file_study(Path(), "by_file"), folder_study(Path(), "by_folder"), Path("by_folder/study.py")):
        assert run(["sweep", str(path), "--size", "smoke", "--workers", "1", "--out", f"runs/{path.parts[0]}"]) == 0
        assert run(["report", f"runs/{path.parts[0]}", "--study", str(path), "--size", "smoke"]) == 0
        page = (results_folder(path) / "result.md").read_text()
        assert f"`sparsity-lab sweep {path} --size smoke`" in page
        assert run(["report", str(path), "--check"]) == 0
    assert results_folder(Path("by_file.py")) == Path("by_file")
    assert results_folder(Path("by_folder/study.py")) == results_folder(Path("by_folder")) == Path("by_folder")
    assert studies_in(Path()) == [Path("by_file.py"), Path("by_folder")]
    # The table of all claims belongs to a folder of studies.
    assert run(["report", ".", "--check"]) == 1
    assert run(["report", ".", "--render"]) == 0
    assert "[Made up](by_file/result.md)" in Path("README.md").read_text()
    assert run(["report", ".", "--check"]) == 0
    Path("README.md").write_text("My own words.")
    assert run(["report", ".", "--render"]) == 2
    assert Path("README.md").read_text() == "My own words."
    assert "README.md: this file is not a table of claims" in capsys.readouterr().err


@pytest.mark.slow
def test_a_store_of_a_study_is_read_in_another_process(tmp_path: Path) -> None:
    """``--import`` takes the path of the study, whose classes are in the store."""
    for path in (file_study(tmp_path, "alone"), folder_study(tmp_path, "with_rules")):
        out = str(tmp_path / "runs" / path.stem)
        assert run(["sweep", str(path), "--size", "smoke", "--out", out, "--engine", "Serial()"]) == 0
        command = [sys.executable, "-m", "sparsity_lab.cli", "sweep", "--status", out]
        known = subprocess.run([*command, "--import", str(path)], capture_output=True, text=True, check=False)
        assert (known.returncode, known.stderr) == (0, "")
        unknown = subprocess.run(command, capture_output=True, text=True, check=False)
        assert unknown.returncode == 2
        assert f"'OneOf{path.stem}'" in unknown.stderr


def test_a_folder_that_is_no_study_is_imported_as_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_package").mkdir()
    (tmp_path / "my_own_package" / "__init__.py").write_text(RULES.format(name="PackageOfMine"))
    assert run(["list", "rule", "--import", "my_own_package"]) == 0
    assert "OneOfPackageOfMine" in capsys.readouterr().out


def test_a_study_whose_runs_failed_has_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so, the failed runs are named, and the report is written all the same."""
    path, out = file_study(tmp_path, "fails"), str(tmp_path / "runs")

    def fail(*_: object) -> None:
        raise RuntimeError("no data")

    monkeypatch.setattr(Planted, "sample", fail)
    options = ["--size", "smoke", "--out", out, "--engine", "Serial()", "--report"]
    assert run(["sweep", str(path), *options]) == 1
    assert (tmp_path / "runs" / "report.html").is_file()
    capsys.readouterr()
    assert run(["report", out, "--study", str(path), "--size", "smoke"]) == 1
    said = capsys.readouterr()
    assert "No result: folder: expected finished runs of fails" in said.out
    assert said.out.count("no data") == 2
    assert said.err == ""


@pytest.mark.slow
def test_what_a_study_prints_is_no_part_of_the_document(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With ``--json``; neither here nor in a worker."""
    path = file_study(tmp_path, "talks")
    path.write_text(f"print('made up')\n{path.read_text()}")
    options = ["--size", "smoke", "--workers", "1", "--out", str(tmp_path / "runs"), "--json"]
    assert run(["sweep", str(path), *options]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["unfinished"] == []
    assert said.err.count("made up") == 2


BROKEN = {
    "missing": (None, "study: expected a file that ends in .py or a folder with a study.py"),
    "empty": ("", "expected a file that defines one Study, got none"),
    "twice": ("{study}\nimport dataclasses\nagain = dataclasses.replace(study)", "one Study, got study and again"),
    "wrong_name": ("{study}\nnothing_of_this_name", "NameError: name 'nothing_of_this_name' is not defined (wro"),
    "syntax": ("def", "SyntaxError: invalid syntax (syntax.py, line 1)"),
    "imports": ("import no_such_module", "Error: No module named 'no_such_module' (imports.py, line 1)"),
    "setting": ("\n\nfrom sparsity_lab.generators import Planted\nPlanted(k=-1)", "(setting.py, line 4)"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "numpy": ("{study}", "expected a name without dots that no other module has, got 'numpy'"),
    "json": ("{study}", "expected a name without dots that no other module has, got 'json'"),
    "with.dot": ("{study}", "expected a name without dots that no other module has, got 'with'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = BROKEN[name]
    if text is not None:
        whole = (RULES + STUDY).format(name=f"Broken_{name.replace('.', '_')}")
        Path(f"{name}.py").write_text(text.replace("{study}", whole))
    before = set(sys.modules)
    assert run(["sweep", f"{name}.py", "--size", "smoke"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert message in told.err
    assert not Path("runs").exists()
    assert {"numpy", "json"} & before == {"numpy", "json"} & set(sys.modules)


WORKS = STUDY.format(name="works").replace("rule=OneOfworks()", "")
BASE, MADE, FIGURE = "    base = RunConfig(", "study = Study(", "evidence: Figure()"
FAILS: dict[str, tuple[str, str, str]] = {
    "arms": (BASE, f"    {{}}['no such arm']\n{BASE}", "whose `arms` works, got KeyError: 'no such arm' ("),
    "setting": ("num_layers=1", "num_layers=0", "`arms` works, got SettingError: num_layers: expected at least 1, g"),
    "figure": (FIGURE, "evidence: 1 / 0", "whose `figure` works, got ZeroDivisionError: division by zero ("),
    "measure": (MADE, f"{MADE}measure=lambda run: run.no_such,", "whose `measure` works, got AttributeError: "),
    "tables": (MADE, f"{MADE}tables=lambda evidence: 1 / 0,", "whose `tables` works, got ZeroDivisionError: "),
    "claim": ("(8, 16), source", "(8, 17), source", "claim 'one' can be decided, got SettingError: length: "),
    "long": (FIGURE, "evidence: {}['long' * 99]", "longlonglong"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the study that works."""
    folder, path = tmp_path_factory.mktemp("finished"), list(sys.path)
    (folder / "works.py").write_text(WORKS)
    run_sweep(load_study(folder / "works.py").sweep("smoke"), folder / "runs", Serial())
    sys.path[:] = path
    return folder / "runs"


@pytest.mark.parametrize("name", FAILS)
def test_an_error_in_a_function_of_a_study_is_one_line_with_its_place(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new, message = FAILS[name]
    path = Path(f"fails_{name}.py")
    assert old in WORKS
    path.write_text(WORKS.replace(old, new, 1))
    line = next(number for number, one in enumerate(path.read_text().splitlines(), 1) if new.split("\n")[0] in one)
    assert run(["report", str(finished), "--study", str(path), "--size", "smoke"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told
    assert f"(fails_{name}.py, line {line})" in told or name == "claim"


def test_folders_without_a_study_are_refused_and_near_names_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_study(tmp_path, "near_by")
    (tmp_path / "nothing_here").mkdir()
    assert run(["sweep", "nothing_here"]) == 2
    assert run(["sweep", "near_bi"]) == 2
    assert run(["report", "nothing_here", "--check"]) == 2
    assert run(["report", "near_by", "--check"]) == 2
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert "study: expected a file that ends in .py or a folder with a study.py" in first
    assert second.endswith("did you mean 'near_by'?")
    assert "no study with a result (rows.parquet) in it" in third
    assert "near_by" in fourth


def test_two_studies_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    """Their modules would have one name; the second is refused rather than the first taken for it."""
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        folder_study(tmp_path / place, "same_name")
    assert load_study(tmp_path / "first" / "same_name").name == "same_name"
    with pytest.raises(SettingError, match="same_name: expected a name without dots that no other module has"):
        load_study(tmp_path / "second" / "same_name")


def test_an_edited_study_is_read_again(tmp_path: Path) -> None:
    """Also the modules beside it, as in a notebook that loads it again; the class registered before goes on."""
    path = folder_study(tmp_path, "edited")
    before = rule_of(load_study(path))
    rules = path / "rules.py"
    rules.write_text(rules.read_text().replace("first", "second"))
    os.utime(rules, (0, 0))  # another time than that of the compiled file, which has the text from before
    after = rule_of(load_study(path))
    assert [one.words() for one in (before, after)] == ["second", "second"]
    assert after == before


def test_results_go_with_the_folder(tmp_path: Path) -> None:
    """A folder that was moved is the same study elsewhere."""
    path = folder_study(tmp_path, "moved")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(path, tmp_path / "elsewhere")
    assert load_study(tmp_path / "elsewhere" / "moved").name == "moved"


def test_an_edit_within_a_second_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same size and second, as bytecode would be told from its source."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / f"edited_{tmp_path.name}"
    folder.mkdir()
    source = (Path(__file__).parent / "rates" / "study.py").read_text()
    for matters in ("0.1", "0.2", "0.3"):
        (folder / "study.py").write_text(source.replace("matters=0.1", f"matters={matters}"))
        os.utime(folder / "study.py", (1_000_000_000, 1_000_000_000))
        (claim,) = load_study(folder).claims
        assert f"matters={matters}" in repr(claim.criterion)
