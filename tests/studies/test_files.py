"""Result files: written from runs, rendered again from the committed frame."""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from matplotlib.figure import Figure

from sparsity_lab.analysis import extrapolation_curve
from sparsity_lab.generators import Planted
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.recipes import recipe
from sparsity_lab.settings import SettingError
from sparsity_lab.studies import Claim, Decision, Study, check_results, judged, paired, write_result
from sparsity_lab.sweeps import Results, Serial, grid, run_sweep
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength


def arms(size: str) -> dict[str, list[RunConfig]]:
    base = RunConfig(
        task=Planted(k=1),
        model=Decoder.Config(num_layers=1, num_heads=2, d_model=16, position=NoPE()),
        training=Training(steps=4, batch_size=4, curriculum=UniformLength(low=4, high=8)),
        evaluation=Evaluation(lengths=(4, 8, 16), sequences=16),
    )
    return {
        "one": grid(base, {"seed": range(2)}),
        "two": grid(base.replace(training=base.training.replace(learning_rate=0.1)), {"seed": range(2)}),
    }


def decide(rows: pl.DataFrame) -> Decision:
    interval = paired(rows, "one", "two", 16)
    return Decision(judged(interval), interval, "accuracy", f"The difference was {interval.estimate:.3f}.")


def figure(rows: pl.DataFrame) -> Figure:
    return extrapolation_curve(rows, by="arm", measure="accuracy", only_learned=False).figure()


@pytest.fixture(scope="module")
def study() -> Iterator[Study]:
    claim = Claim(name="rate", statement="A | higher rate is worse.", source="this lab", rule="By t.", decide=decide)
    made = Study(
        name="study_for_tests",
        title="Rates",
        question="Which?",
        arms=arms,
        claims=(claim,),
        figure=figure,
        notes="No.",
    )
    recipe(made)
    yield made
    recipe.drop(made.name)


@pytest.fixture(scope="module")
def runs(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_sweep(study("small"), folder, Serial())
    return folder


def test_rows_name_arm_and_seed(study: Study, runs: Path) -> None:
    rows = study.rows(Results(runs, study("small")), "small")
    assert rows["arm"].unique(maintain_order=True).to_list() == ["one", "two"]
    assert rows.height == 2 * 2 * 3
    config = study.arms("small")["two"][1]
    assert rows.filter(pl.col("run") == config.id).select("arm", "seed").unique().rows() == [("two", 1)]


def test_pages_are_rendered_again_byte_for_byte(study: Study, runs: Path, tmp_path: Path) -> None:
    page = write_result(study, Results(runs, study("small")), "small", tmp_path)
    data = json.loads((tmp_path / "study_for_tests.json").read_text())
    (claim,) = data["claims"]
    assert claim["verdict"] in ("held", "did not hold", "not decided")
    assert data["arms"]["one"]["seeds"] == 2
    text = page.read_text()
    assert f"{claim['estimate']:.3f}" in text
    assert "A ¦ higher rate" in text, "a bar in a cell would end it"
    assert "sparsity-lab sweep study_for_tests --size small" in text
    assert "[Rates](study_for_tests.md)" in (tmp_path / "README.md").read_text()
    assert check_results(tmp_path) == []


@pytest.mark.parametrize("name", ["study_for_tests.md", "study_for_tests.json", "study_for_tests.svg", "README.md"])
def test_a_typed_number_is_found(study: Study, runs: Path, tmp_path: Path, name: str) -> None:
    write_result(study, Results(runs, study("small")), "small", tmp_path)
    path = tmp_path / name
    text = path.read_text()
    place = next(i for i in range(len(text) - 1, 0, -1) if text[i].isalpha())
    path.write_text(text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :])
    if name.endswith(".json"):
        path.write_text(text.replace('"seeds": 2', '"seeds": 3', 1))
    assert name in check_results(tmp_path)


def test_no_finished_run(study: Study, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="finished runs of study_for_tests in size small"):
        write_result(study, Results(tmp_path, study("small")), "small", tmp_path)
