"""Every study in ``experiments/`` runs at its smoke size, and committed results are what their frames give."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_prose import faults

from sparsity_lab.settings import to_data
from sparsity_lab.studies import SIZES, check_results, load_study, results_folder, write_result
from sparsity_lab.sweeps import Results, Serial, run_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDIES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/study.py"))


@pytest.mark.parametrize("name", [STUDIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in STUDIES[1:])])
def test_smoke_size_runs(name: str, tmp_path: Path) -> None:
    """Through the sweep to the result files and back."""
    study = load_study(EXPERIMENTS / name)
    sweep = study.sweep("smoke")
    results = run_sweep(sweep, tmp_path / "runs", Serial())
    assert results.failures == ()
    assert results.frame("evaluation")["run"].n_unique() == len(sweep.runs)
    page = write_result(study, Results(tmp_path / "runs", sweep), "smoke", tmp_path / name)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {study.title}\n")
    assert study.finding is not None, "the title of the figure"
    (words,) = re.findall(r"^!\[(.*)\]\(result\.svg\)$", text, re.MULTILINE)
    assert len(words.split()) > 4


@pytest.mark.parametrize("name", STUDIES)
def test_sizes_grow(name: str) -> None:
    """Every size is a valid sweep, and none has fewer runs or steps than the one before it."""
    sweeps = [load_study(EXPERIMENTS / name).sweep(size) for size in SIZES]
    costs = [sum(run.training.steps for run in sweep.runs) for sweep in sweeps]
    assert costs == sorted(costs)
    assert {sweep.name for sweep in sweeps} == {name}


@pytest.mark.parametrize("name", STUDIES)
def test_runs_of_an_arm_differ_in_their_seeds_alone(name: str) -> None:
    study = load_study(EXPERIMENTS / name)
    for size in SIZES[:2]:
        for arm, one in study.arms(size).items():
            runs = [one.run(seed) for seed in (one.first, one.first + 1, 1000)]
            unseeded = [_unseeded(to_data(run)) for run in runs]
            assert all(other == unseeded[0] for other in unseeded), f"{arm} in size {size}"
            assert [run.data_seed for run in runs] == [one.first, one.first + 1, 1000]
            assert len({run.id for run in runs}) == len(runs)


def _unseeded(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: 0 if name.endswith("seed") else _unseeded(value) for name, value in data.items()}
    return [_unseeded(value) for value in data] if isinstance(data, list) else data


@pytest.mark.committed
def test_committed_results_are_what_their_frames_give() -> None:
    assert check_results(EXPERIMENTS) == []


@pytest.mark.parametrize("name", STUDIES)
def test_committed_rows_have_the_ids_of_this_release(name: str) -> None:
    """A release that changes ids by mistake fails here; one that must, runs ``sparsity-lab report --relabel``."""
    folder = results_folder(EXPERIMENTS / name)
    if not (folder / "rows.parquet").is_file():
        pytest.skip("it has not been run yet")
    arms = load_study(folder).arms(json.loads((folder / "result.json").read_text())["run"]["size"])
    for file in sorted(folder.glob("*.parquet")):
        rows = pl.read_parquet(file).select("arm", "seed", "run").unique().rows()
        assert [(arm, seed) for arm, seed, run in rows if arms[arm].run(seed).id != run] == [], file


def test_every_study_has_notes_and_one_that_was_run_a_result() -> None:
    files = ("result.json", "result.svg", "result.md")
    run = [name for name in STUDIES if any((EXPERIMENTS / name).glob("*.parquet"))]
    expected = [(name, "notes.md") for name in STUDIES] + [(name, file) for name in run for file in files]
    assert [f"{name}/{file}" for name, file in expected if not (EXPERIMENTS / name / file).is_file()] == []
    without = [name for name in STUDIES if name not in run]
    assert [file.name for name in without for file in (EXPERIMENTS / name).glob("result.*")] == []
    assert all(results_folder(EXPERIMENTS / name) == EXPERIMENTS / name for name in STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_study_says_is_understood_at_one_reading(name: str) -> None:
    study = load_study(EXPERIMENTS / name)
    texts = [study.title, study.question, *(claim.statement for claim in study.claims)]
    assert [fault for text in texts for fault in faults(text)] == []


def test_notes_have_no_link_to_another_file() -> None:
    """They become a part of the result page, which stands in other folders on the site."""
    links = re.compile(r"\]\((?!https?:)[^)]*\)")
    assert [str(file) for file in EXPERIMENTS.glob("*/notes.md") if links.search(file.read_text())] == []


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of what a file imports from the package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparsity_lab") and not node.level:
            yield from ((str(node.module), one.name) for one in node.names)
        elif isinstance(node, ast.Import):
            yield from ((one.name, "") for one in node.names if one.name.startswith("sparsity_lab"))


def is_public(module: str, name: str) -> bool:
    """Whether a name is one that a subpackage itself re-exports."""
    parts = module.split(".")
    found = importlib.import_module(module)
    # A package that does not list its names lists them by importing each as itself.
    source = ast.parse(Path(str(found.__file__)).read_text(encoding="utf-8"))
    exported = {one.asname for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for one in node.names}
    return len(parts) == 2 and name in exported | set(getattr(found, "__all__", ()))


@pytest.mark.parametrize("name", STUDIES)
def test_primary_claims_can_be_run_for(name: str) -> None:
    """Each study has some, and their arms are arms of it in every size; a headline is always primary."""
    study = load_study(EXPERIMENTS / name)
    assert study.primary
    for claim in study.claims:
        assert claim.name in study.primary or not claim.name.startswith("headline_")
        for size in SIZES:
            assert set(claim.arms) <= set(study.arms(size)), f"{claim.name} in size {size}"


def test_studies_import_public_names_alone() -> None:
    found = {(file, *one) for file in EXPERIMENTS.glob("*/*.py") for one in imported(file)}
    assert len(found) > 100
    private = [f"{file.parent.name}/{file.name}: {module}.{name}" for file, module, name in found
               if not is_public(module, name)]  # fmt: skip
    assert private == []
    assert not is_public("sparsity_lab.models.positions", "PositionScheme")
    assert not is_public("sparsity_lab.kernels", "kernel")
    assert is_public("sparsity_lab.settings", "SettingError")
