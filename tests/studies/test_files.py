"""Result files: written from runs, rendered again from the committed frame."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from matplotlib.figure import Figure

from sparsity_lab.analysis import Interval, extrapolation_curve
from sparsity_lab.generators import Planted
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.recipes import recipe
from sparsity_lab.settings import SettingError
from sparsity_lab.studies import (
    Claim,
    Decision,
    Evidence,
    Study,
    check_results,
    judged,
    paired,
    render_results,
    write_result,
)
from sparsity_lab.studies.page import page
from sparsity_lab.sweeps import Results, Serial, grid, run_sweep
from sparsity_lab.training import Evaluation, Run, RunConfig, Training, UniformLength


def arms(size: str) -> dict[str, list[RunConfig]]:
    base = RunConfig(
        task=Planted(k=1),
        model=Decoder(num_layers=1, num_heads=2, d_model=16, position=NoPE()),
        training=Training(steps=4, batch_size=4, curriculum=UniformLength(low=4, high=8)),
        evaluation=Evaluation(lengths=(4, 8, 16), sequences=16),
    )
    return {
        "one": grid(base, {"seed": range(2)}),
        "two": grid(base.replace(training=base.training.replace(learning_rate=0.1)), {"seed": range(2)}),
    }


def decide(evidence: Evidence) -> Decision:
    interval = paired(evidence.rows, "one", "two", 16)
    return Decision(judged(interval), interval, "accuracy", f"The difference was {interval.estimate:.3f}.")


def figure(evidence: Evidence) -> Figure:
    return extrapolation_curve(evidence.rows, by="arm", measure="accuracy", only_learned=False).figure()


def measure(run: Run) -> pl.DataFrame:
    """A column for each rate, so that each arm lacks one, and one that is null in the first arm."""
    rate = run.config.training.learning_rate
    size = float(sum(parameter.detach().abs().sum() for parameter in run.model().parameters()))
    return pl.DataFrame({f"size at {rate}": [size], "rate": [rate if rate == 0.1 else None]})


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    return {"Sizes of weights": evidence.measured.select("arm", "seed", "size at 0.1")}


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
        measure=measure,
        tables=tables,
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


def test_measures_name_arm_seed_and_run(study: Study, runs: Path) -> None:
    found = study.evidence(Results(runs, study("small")), "small").measured
    assert found.select("arm", "seed").rows() == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    config = study.arms("small")["two"][1]
    assert found.row(3)[:3] == ("two", 1, config.id)
    assert found["rate"].to_list() == [None, None, 0.1, 0.1]
    assert found["size at 0.1"].null_count() == 2
    assert found["size at 0.1"][3] == measure(Run.load(runs / config.id))["size at 0.1"][0]


def test_evidence_without_measures_says_so(study: Study, runs: Path) -> None:
    plain = dataclasses.replace(study, measure=None, tables=None)
    evidence = plain.evidence(Results(runs, study("small")), "small")
    assert evidence.measures is None
    with pytest.raises(ValueError, match="measures nothing"):
        _ = evidence.measured


def test_pages_are_rendered_again_byte_for_byte(study: Study, runs: Path, tmp_path: Path) -> None:
    written = write_result(study, Results(runs, study("small")), "small", tmp_path)
    data = json.loads((tmp_path / "study_for_tests.json").read_text())
    (claim,) = data["claims"]
    assert claim["verdict"] in ("held", "did not hold", "not decided")
    assert data["arms"]["one"]["seeds"] == 2
    assert (claim["count"], claim["over"]) == (2, "seeds")
    text = written.read_text()
    assert re.search(r"\| A ¦ higher rate .* \| 2 seeds \|\n", text)
    assert f"{claim['estimate']:.3f}" in text
    assert "A ¦ higher rate" in text, "a bar in a cell would end it"
    size = pl.read_parquet(tmp_path / "study_for_tests.measures.parquet")["size at 0.1"][2]
    assert "### Sizes of weights\n\n| arm | seed | size at 0.1 |" in text
    assert "| one | 0 | – |" in text
    assert f"| two | 0 | {size:.3f} |" in text
    assert "sparsity-lab sweep study_for_tests --size small" in text
    assert "[Rates](study_for_tests.md)" in (tmp_path / "README.md").read_text()
    assert check_results(tmp_path) == []


def test_a_page_says_what_a_mean_is_over_and_how_many_of_the_averaged_runs_learned(
    study: Study, runs: Path, tmp_path: Path
) -> None:
    evidence = study.evidence(Results(runs, study("small")), "small")
    one = Decision("held", Interval(0.5, None, None, 1), "nats", over="activations")
    none = Decision("not decided", Interval(None, None, None, 0), "nats")
    arms = {arm: {"seeds": 2, "learned": 1} for arm in ("one", "two")}
    claims = [
        dataclasses.asdict(decision) | {"count": decision.interval.count, "statement": name, "claim": name}
        | {"estimate": decision.interval.estimate, "low": None, "rule": "", "source": "", "seeds": 2}
        for name, decision in (("a", one), ("b", none))
    ]  # fmt: skip
    some = evidence.rows.with_columns(learned=pl.Series([True] * 9 + [False] * 3))
    text = page(study, dataclasses.replace(evidence, rows=some), {"arms": arms, "claims": claims, "run": {}})
    assert "| a | **held** | 0.500 nats | 1 activation |" in text
    assert "| b | **not decided** | – | – |" in text
    assert "\n| one | " in text
    assert "\n| two (1 of 2 learned) | " in text


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


def test_the_last_place_of_a_number_is_the_processor_s(study: Study, runs: Path, tmp_path: Path) -> None:
    """One more in it is left as it is, two more are rendered again."""
    write_result(study, Results(runs, study("small")), "small", tmp_path)
    path = tmp_path / "study_for_tests.md"
    text = path.read_text()
    found = list(re.finditer(r"\d+\.\d{3}", text))[-1]
    for more, wrong in ((1, []), (2, [path.name])):
        path.write_text(text[: found.start()] + f"{float(found[0]) + more / 1000:.3f}" + text[found.end() :])
        assert check_results(tmp_path) == wrong
        assert render_results(tmp_path) == wrong
    assert path.read_text() == text


def test_measures_are_rendered_too_and_missed(study: Study, runs: Path, tmp_path: Path) -> None:
    write_result(study, Results(runs, study("small")), "small", tmp_path)
    path = tmp_path / "study_for_tests.measures.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("size at 0.1") + 1.0).write_parquet(path)
    assert check_results(tmp_path) == ["study_for_tests.md"], "only the table shows the sizes"
    path.unlink()
    assert check_results(tmp_path) == [path.name]


def test_pages_are_rendered_again_from_the_frames_alone(study: Study, runs: Path, tmp_path: Path) -> None:
    write_result(study, Results(runs, study("small")), "small", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("study_for_tests.md", "README.md"):
        (tmp_path / name).write_text("typed")
    (tmp_path / "study_for_tests.svg").unlink()
    assert render_results(tmp_path) == ["study_for_tests.svg", "study_for_tests.md", "README.md"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert render_results(tmp_path) == []
    (tmp_path / "study_for_tests.measures.parquet").unlink()
    (tmp_path / "README.md").write_text("typed")
    with pytest.raises(SettingError, match=r"study_for_tests\.measures\.parquet"):
        render_results(tmp_path)
    assert (tmp_path / "README.md").read_text() == "typed"


def test_measures_of_nothing_are_found(study: Study, runs: Path, tmp_path: Path) -> None:
    write_result(study, Results(runs, study("small")), "small", tmp_path)
    (tmp_path / "study_for_tests.parquet").unlink()
    assert check_results(tmp_path) == ["study_for_tests.measures.parquet"]


def test_lists_show_the_title(study: Study) -> None:
    assert study.__doc__ == "Rates\n\nWhich?"


def test_no_finished_run(study: Study, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="finished runs of study_for_tests in size small"):
        write_result(study, Results(tmp_path, study("small")), "small", tmp_path)
