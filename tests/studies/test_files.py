"""Result files: written from runs, rendered again from the committed frame."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import polars as pl
import pytest
from studies.rates.study import measure, study

from sparsity_lab.settings import SettingError
from sparsity_lab.studies import check_results, fix_rules, relabel_results, render_results, write_result
from sparsity_lab.studies import files as result_files
from sparsity_lab.studies.files import read_found, record
from sparsity_lab.studies.overview import studies_overview
from sparsity_lab.studies.page import first_verdict, page
from sparsity_lab.studies.rules import changed_rules, fixed_rules
from sparsity_lab.sweeps import Results, Serial, run_sweep
from sparsity_lab.training import Run


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of studies with a copy of this one; ``sys.path`` is as before afterwards."""
    before = list(sys.path)
    (tmp_path / "rates").mkdir()
    shutil.copy(Path(__file__).parent / "rates" / "study.py", tmp_path / "rates")
    yield tmp_path
    sys.path[:] = before


def write(runs: Path, folder: Path) -> Path:
    """The result of the runs and the table of all claims in a folder of studies; the page."""
    page = write_result(
        study, Results(runs, study.sweep("small")), "small", folder / "rates", "sparsity-lab sweep it"
    )
    render_results(folder)
    return page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_sweep(study.sweep("small"), folder, Serial())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a result and the table, by path."""
    return {str(one): one.read_bytes() for one in folder.rglob("*.*") if one.is_file() and one.suffix != ".pyc"}


def test_rows_name_arm_and_seed(runs: Path) -> None:
    rows = study.rows(Results(runs, study.sweep("small")), "small")
    assert rows["arm"].unique(maintain_order=True).to_list() == ["one", "two"]
    assert rows.height == 2 * 2 * 3
    config = study.arms("small")["two"].run(1)
    assert (rows["seconds"] > 0).all()
    assert rows["parent_seconds"].unique().to_list() == [0.0]
    assert rows.filter(pl.col("run") == config.id).select("arm", "seed").unique().rows() == [("two", 1)]


def test_measures_name_arm_seed_and_run(runs: Path) -> None:
    found = study.evidence(Results(runs, study.sweep("small")), "small").measured
    assert found.select("arm", "seed").rows() == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    config = study.arms("small")["two"].run(1)
    assert found.row(3)[:3] == ("two", 1, config.id)
    assert found["rate"].to_list() == [None, None, 0.1, 0.1]
    assert found["size at 0.1"].null_count() == 2
    assert found["size at 0.1"][3] == measure(Run.load(runs / config.id))["size at 0.1"][0]


def test_evidence_without_measures_says_so(runs: Path) -> None:
    plain = dataclasses.replace(study, measure=None, tables=None)
    evidence = plain.evidence(Results(runs, study.sweep("small")), "small")
    assert evidence.measures is None
    with pytest.raises(ValueError, match="no measures beyond the evaluation"):
        _ = evidence.measured


def test_pages_are_rendered_again_byte_for_byte(runs: Path, folder: Path) -> None:
    written = write(runs, folder)
    data = json.loads((folder / "rates" / "result.json").read_text())
    (claim,) = data["claims"]
    assert (claim["id"], claim["primary"], claim["verdict"]) == ("rate", True, "not decided")
    assert (claim["seeds"], claim["more_seeds"], claim["rule_id"]) == (2, None, study.claims[0].rule_id)
    assert (data["arms"]["one"]["seeds"], data["primary"]) == (2, ["rate"])
    assert data["arms"]["one"]["core_minutes"] > 0
    text = written.read_text()
    row = r"\| A ¦ higher rate .* \| \*\*not decided\*\*.* \| .* of accuracy \| 2 \| .* / .* / .* \|\n"
    assert re.search(row, text)
    assert f"{claim['estimate']:.3f}" in text
    drawn = (folder / "rates" / "result.svg").read_text()
    assert f"![{data['finding']}](result.svg)" in text
    assert f'aria-label="{escape(data["finding"])}"' in drawn
    assert data["finding"].startswith(f"Not decided ({claim['estimate']:.3f}")
    assert "A ¦ higher rate" in text, "a bar in a cell would end it"
    size = pl.read_parquet(folder / "rates" / "measures.parquet")["size at 0.1"][2]
    assert "### Sizes of weights\n\n| arm | seed | size at 0.1 |" in text
    assert "| one | 0 | – |" in text
    assert f"| two | 0 | {size:.3f} |" in text
    assert "`sparsity-lab sweep it`" in text
    assert "[Rates](rates/result.md)" in (folder / "README.md").read_text()
    assert check_results(folder) == []


def test_a_page_says_why_nothing_is_decided_and_how_many_of_the_averaged_runs_learned(runs: Path) -> None:
    evidence = study.evidence(Results(runs, study.sweep("small")), "small")
    some = dataclasses.replace(evidence, rows=evidence.rows.with_columns(learned=pl.Series([True] * 9 + [False] * 3)))
    data = record(study, some, {"rules": study.rules()})
    (claim,) = data["claims"]
    told = {
        "held": {"verdict": "held", "low": 0.1, "high": 0.4, "estimate": 0.2, "more_seeds": 0},
        "open": {"more_seeds": 7, "more_core_minutes": 3.4, "primary": False, "estimate": None, "low": None},
        "at its end": {"cannot_tell": "at the ceiling or floor", "primary": False},
    }
    data["claims"] = [claim | {"id": name, "statement": name} | more for name, more in told.items()]
    text = page(study, some, data, "rates.svg", "- Nothing.\n")
    assert f"![{data['finding']}](rates.svg)" in text
    assert first_verdict("Rates", data["claims"]) == "Held (0.200 [0.100, 0.400] of accuracy): held"
    assert "## Notes\n\n- Nothing.\n\n## How it was made" in text
    primary, exploratory = text.split("### Exploratory claims")
    assert "| held | **held** | 0.200 [0.100, 0.400] of accuracy | 2 |" in primary
    assert "| open | **not decided**: about 7 more seeds, 3 core-minutes | – | 2 |" in exploratory
    assert "| at its end | **not decided**: at the ceiling or floor |" in exploratory
    assert "\n| one | " in text
    assert "\n| two (1 of 2 learned) | " in text


def test_a_page_says_which_rules_are_younger_than_their_runs(runs: Path, folder: Path) -> None:
    """Rules are fixed with the first run; what changes afterwards is named. Frames without rules are older."""
    evidence = study.evidence(Results(runs, study.sweep("small")), "small")
    (claim,) = study.claims
    other = dataclasses.replace(claim, outcome="Another number.")
    changed = dataclasses.replace(study, claims=(other,))

    def told(facts: dict[str, object], one: object = study) -> tuple[str, bool]:
        data = record(one, evidence, facts)  # type: ignore[arg-type]
        return page(one, evidence, data, "a.svg", ""), data["claims"][0]["rule_changed"]  # type: ignore[arg-type]

    text, is_changed = told({"rules": study.rules()})
    assert "## Rules, fixed before the runs" in text
    assert (is_changed, "Changed or added" in text) == (False, False)
    text, is_changed = told({"rules": study.rules()}, changed)
    assert "**Changed or added after the first run:** rate." in text
    assert is_changed
    for facts in ({}, {"rules": study.rules(), "rules_after_runs": True}):
        text, is_changed = told(facts)
        assert "## Rules\n\nThese rules were written after the first runs." in text
        assert is_changed
    # The store says which rules were fixed; another text of the same study is found by it.
    fix_rules(changed, folder / "runs")
    shutil.copytree(runs, folder / "runs", dirs_exist_ok=True)
    results = Results(folder / "runs", study.sweep("small"))
    written = write_result(study, results, "small", folder / "rates").read_text()
    assert "**Changed or added after the first run:** rate." in written


def test_rules_that_nothing_fixed_before_the_runs_are_said_to_be_late(runs: Path, folder: Path) -> None:
    results = Results(runs, study.sweep("small"))
    late = "These rules were written after the first runs."
    assert late in write_result(study, results, "small", folder / "a").read_text()
    # Recording them afterwards changes nothing.
    shutil.copytree(runs, folder / "runs")
    fix_rules(study, folder / "runs")
    results = Results(folder / "runs", study.sweep("small"))
    assert late in write_result(study, results, "small", folder / "b").read_text()


def test_another_store_makes_no_changed_rule_a_fixed_one(runs: Path, folder: Path) -> None:
    """The record of the first result counts, whatever the store says in which the next runs are made."""
    (claim,) = study.claims
    exploratory = dataclasses.replace(study, primary=())
    changed = dataclasses.replace(exploratory, claims=(dataclasses.replace(claim, outcome="Another number."),))
    for one in (exploratory, changed):
        store = folder / f"runs {one is changed}"
        fix_rules(one, store)
        shutil.copytree(runs, store, dirs_exist_ok=True)
        written = write_result(one, Results(store, one.sweep("small")), "small", folder / "rates").read_text()
        assert ("**Changed or added after the first run:** rate." in written) == (one is changed)


def test_runs_from_several_kinds_of_device_are_told(runs: Path, folder: Path) -> None:
    words = "made on different kinds of device"
    assert words not in write(runs, folder).read_text()
    shutil.copytree(runs, folder / "runs")
    file = next((folder / "runs").glob("*/environment.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "devices": ["cpu OTHER with 1 thread"]}))
    assert f"{words} (" in (told := write(folder / "runs", folder).read_text())
    assert "cpu OTHER with 1 thread" in told


def test_rules_in_a_store_behind_a_link_are_found(tmp_path: Path) -> None:
    """Otherwise they would be fixed once more at each start, as they are by then."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    fix_rules(study, tmp_path / "out")
    assert fixed_rules(tmp_path / "out") == fixed_rules(tmp_path / "disk") == study.rules()


def test_other_primary_claims_are_a_change(runs: Path, folder: Path) -> None:
    """How much evidence decides a claim depends on how many are primary."""
    (claim,) = study.claims
    second = dataclasses.replace(claim, name="second")
    both = dataclasses.replace(study, claims=(claim, second), primary=(claim.name, "second"))
    fewer = dataclasses.replace(both, primary=(claim.name,))
    assert changed_rules(both, both.rules()) == []
    assert changed_rules(fewer, both.rules()) == [claim.name]


@pytest.mark.parametrize("text", ["<<<<<<< ours", "{}", "[]", '{"run": 3}'])
def test_a_damaged_record_is_named(runs: Path, folder: Path, text: str) -> None:
    write(runs, folder)
    (folder / "rates" / "result.json").write_text(text)
    with pytest.raises(SettingError, match=r"result.json: the record of the result is damaged"):
        read_found(study, folder / "rates")


def test_frames_and_records_have_a_largest_size(runs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(runs, folder)
    place = folder / "rates"
    rows = pl.read_parquet(place / "rows.parquet")
    monkeypatch.setattr(result_files, "_MOST_VALUES", rows.height * rows.width)
    assert result_files.read_rows(place / "rows.parquet") is not None
    monkeypatch.setattr(result_files, "_MOST_VALUES", rows.height * rows.width - 1)
    readers = (lambda: read_found(study, place), lambda: relabel_results(place), lambda: studies_overview(folder))
    for read in readers:
        with pytest.raises(SettingError, match=rf"rows.parquet: expected at most {rows.height - 1} rows of"):
            read()
    with (place / "result.json").open("ab") as opened:
        opened.truncate(2**40)
    for read in readers[1:]:
        with pytest.raises(SettingError, match=r"result.json: expected a file of at most \d+ bytes, got more"):
            read()


@pytest.mark.parametrize("name", ["rates/result.md", "rates/result.json", "rates/result.svg", "README.md"])
def test_a_typed_number_is_found(runs: Path, folder: Path, name: str) -> None:
    write(runs, folder)
    path = folder / name
    text = path.read_text()
    place = next(i for i in range(len(text) - 1, 0, -1) if text[i].isalpha())
    path.write_text(text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :])
    if name.endswith(".json"):
        path.write_text(text.replace('"seeds": 2', '"seeds": 3', 1))
    assert str(path) in check_results(folder)


def test_the_last_place_of_a_number_is_the_processor_s(runs: Path, folder: Path) -> None:
    """One more in it is left as it is, two more are rendered again."""
    path = write(runs, folder)
    text = path.read_text()
    found = list(re.finditer(r"\d+\.\d{3}", text))[-1]
    for more, wrong in ((1, []), (2, [str(path)])):
        path.write_text(text[: found.start()] + f"{float(found[0]) + more / 1000:.3f}" + text[found.end() :])
        assert check_results(folder) == wrong
        assert render_results(folder) == wrong
    assert path.read_text() == text


def test_measures_are_rendered_too_and_missed(runs: Path, folder: Path) -> None:
    write(runs, folder)
    path = folder / "rates" / "measures.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("size at 0.1") + 1.0).write_parquet(path)
    assert check_results(folder) == [str(folder / "rates" / "result.md")], "only the table shows the sizes"
    path.unlink()
    assert check_results(folder) == [str(path)]


def test_pages_are_rendered_again_from_the_frames_alone(runs: Path, folder: Path) -> None:
    write(runs, folder)
    before = contents(folder)
    (folder / "rates" / "result.md").write_text("typed")
    (folder / "README.md").write_text("# Results\n\ntyped")
    (folder / "rates" / "result.svg").unlink()
    assert render_results(folder) == [
        str(folder / name) for name in ("rates/result.svg", "rates/result.md", "README.md")
    ]
    assert contents(folder) == before
    assert render_results(folder) == []
    (folder / "rates" / "measures.parquet").unlink()
    (folder / "README.md").write_text("# Results\n\ntyped")
    with pytest.raises(SettingError, match=r"measures\.parquet"):
        render_results(folder)
    assert (folder / "README.md").read_text() == "# Results\n\ntyped"


def test_measures_without_rows_are_found(runs: Path, folder: Path) -> None:
    write(runs, folder)
    (folder / "rates" / "rows.parquet").unlink()
    assert check_results(folder) == [str(folder / "rates" / "rows.parquet")]


def test_notes_are_read_from_their_file(runs: Path, folder: Path) -> None:
    (folder / "rates" / "notes.md").write_text("- Tried **nothing** else.\n")
    page = write(runs, folder)
    assert "\n## Notes\n\n- Tried **nothing** else.\n\n## How" in page.read_text()
    (folder / "rates" / "notes.md").write_text("- Tried all.\n")
    assert check_results(folder) == [str(page)]


def test_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="finished runs of rates in size small"):
        write_result(study, Results(tmp_path, study.sweep("small")), "small", tmp_path)


def test_frames_of_a_release_with_other_ids_are_relabeled(runs: Path, folder: Path) -> None:
    write(runs, folder)
    assert relabel_results(folder) == []
    before = contents(folder)
    files = [folder / "rates" / name for name in ("rows.parquet", "measures.parquet")]
    frames = [pl.read_parquet(file) for file in files]
    for file, frame in zip(files, frames, strict=True):
        frame.with_columns(run=pl.lit("old ") + pl.col("run")).write_parquet(file)
    assert relabel_results(folder) == [str(file) for file in files]
    assert all(pl.read_parquet(file).equals(frame) for file, frame in zip(files, frames, strict=True))
    assert check_results(folder) == []
    assert contents(folder) == before


def test_rows_that_are_not_the_study_s_are_not_relabeled(runs: Path, folder: Path) -> None:
    write(runs, folder)
    file = folder / "rates" / "measures.parquet"
    pl.read_parquet(file).with_columns(run=pl.lit("old"), arm=pl.lit("three")).write_parquet(file)
    before = contents(folder)
    with pytest.raises(
        SettingError, match=r"measures.parquet: expected rows of arms of rates \(one of one, two\), got 'three'"
    ):
        relabel_results(folder)
    assert contents(folder) == before
